"""Samples and labels slowly in small units, so that tests can kill it. `python job.py DIRECTORY WORKERS DELAY`."""

import sys
from pathlib import Path

from stepmark.data import work_units
from stepmark.data.store import Records
from stepmark.graders.numeric import Numeric
from stepmark.labelers.monte_carlo import MonteCarlo
from stepmark.plugins import registry
from stepmark.plugins.loading import load_executor
from stepmark.protocols import Tools
from stepmark.stages.label import label
from stepmark.stages.sample import sample
from stepmark.text.prompts import Template
from stepmark.types import LabelledSolution, SamplingParams, Solution


def main(place, workers, delay):
    here = Path(__file__).parent
    problems = registry.load("task", str(here / "task.py"), size=20).load("train").problems
    backend = registry.load("backend", str(here / "backend.py"), truncated=0.1, delay=float(delay))
    settings = {"context": Template(), "params": SamplingParams(seed=5), "executor": load_executor(int(workers))}
    solutions = Records(f"{place}/solutions.jsonl", Solution)
    sample(problems, backend, solutions, n=6, steps="line", rows=6, **settings)
    pairs = work_units.pair(problems, solutions)
    labels = Records(f"{place}/labels.jsonl", LabelledSolution)
    tools = Tools(Numeric(), settings["context"], settings["params"], backend)
    label(pairs, MonteCarlo(rollouts=3), tools, labels, steps=9, executor=settings["executor"])


if __name__ == "__main__":
    main(*sys.argv[1:])
