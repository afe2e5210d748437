"""Several runs of one recipe, side by side: does the result of one seed hold over seeds?

The script reads the metrics.json of finished runs. It prints each method's accuracy by run at each number of candidates
and the mean over runs, then one last line of JSON. Runs with different seeds have different problems, models and
samples.

    for s in 11 12 13; do stepmark run recipes/demo.yaml seed=$s --out runs/demo-$s; done
    python bench/seeds.py runs/demo-11 runs/demo-12 runs/demo-13
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def table(runs: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """method -> N -> accuracy in each run, for the methods that all runs have."""
    methods = [m for m in runs[0]["best_of_n"] if all(m in r["best_of_n"] for r in runs)]
    return {
        m: {n: [r["best_of_n"][m][n]["mean"] for r in runs] for n in runs[0]["best_of_n"][m]}
        for m in methods
        if m.count(":") == 0
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories that have a metrics.json")
    args = parser.parse_args()
    runs = [json.loads((path / "metrics.json").read_text()) for path in args.runs]
    accuracies = table(runs)
    ns = list(next(iter(accuracies.values())))
    seeds = [r["seed"] for r in runs]
    print(
        f"Accuracy in percent for seeds {', '.join(map(str, seeds))}, their mean; {runs[0]['problems']} problems each"
    )
    print(f"{'':32}" + "".join(f"{'N = ' + n:>{6 * len(runs) + 9}}" for n in ns))
    for method, by_n in accuracies.items():
        cells = "".join("  |" + "".join(f"{100 * v:6.1f}" for v in by_n[n]) + f"{100 * mean(by_n[n]):6.1f}" for n in ns)
        print(f"{method:32}{cells}")
    spread = {
        m: {n: {"mean": mean(v), "stdev": stdev(v) if len(v) > 1 else 0.0, "runs": v} for n, v in b.items()}
        for m, b in accuracies.items()
    }
    aucs = {name: [r["auc"][name]["within_problem"]["mean"] for r in runs] for name in runs[0].get("auc", {})}
    print(
        json.dumps({"seeds": seeds, "problems": runs[0]["problems"], "best_of_n": spread, "within_problem_auc": aucs})
    )


if __name__ == "__main__":
    main()
