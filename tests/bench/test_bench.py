"""The benches of real models run, on a tiny model, without the peers that have environments of their own. Their speeds
are not looked at here, only that each figure is of the work that it says."""

import importlib
import json
import stat
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
ROW = '{{"question": "{0}+1?", "answer": "{0}+1\\n#### {1}"}}\n'
STUB = """#!{python}
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[2]).read_text())
pathlib.Path({seen!r}).write_text(json.dumps(job))
tokens = job["n"] * len(job["prompts"])
pathlib.Path(sys.argv[3]).write_text(json.dumps(dict(rollouts=tokens, tokens=tokens, wall=2.0, cpu=1.0, note="stub")))
"""


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory):
    """A directory with problems in GSM8K's form."""
    place = tmp_path_factory.mktemp("gsm8k")
    for split, first in (("train", 100), ("test", 300)):
        (place / f"{split}.jsonl").write_text("".join(ROW.format(i, i + 1) for i in range(first, first + 100)))
    return place


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys):
    """(script, arguments) -> the figures that a bench prints as its last line, which are also in its file.

    Contenders run in this process, since starting each in one of its own takes far longer than its work here."""
    monkeypatch.syspath_prepend(BENCH)

    def run(script, *arguments):
        module = importlib.import_module(script)
        monkeypatch.setattr(module, "alone", lambda function, *given: function(*given), raising=False)
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments), "--out", str(out)])
        module.main()
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures == json.loads(out.read_text())
        assert f"bench/{script}.py" in figures["command"] and figures["machine"]["processor"]
        return figures

    return run


def test_rollouts(bench, tiny, gsm8k, tmp_path):
    """The same prompts go to Stepmark and to vLLM, whose interpreter is a stub here. A few-shot prompt is read once."""
    solutions, seen, stub = (tmp_path / name for name in ("solutions.jsonl", "seen.json", "python"))
    solutions.write_text('{"context": "3+1?\\n", "text": "3+1\\nis\\n4"}\n' * 2)
    stub.write_text(STUB.format(python=sys.executable, seen=str(seen)))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    figures = bench(
        *("rollouts", "--model", tiny, "--solutions", solutions, "--data", gsm8k, "--few-shot", 2),
        *("--prompt", "Q {question}\n", "--n", 2, "--max-tokens", 3, "--generate-seconds", 0.5, "--vllm", stub),
        *("--contenders", "generate;stepmark;vllm"),
    )
    job = json.loads(seen.read_text())
    assert job["stop"] == ["\n\nQ"]
    assert figures["prefixes"] == len(job["prompts"]) == 4
    ours, vllm, generate = (figures["contenders"][name] for name in ("stepmark", "vllm", "generate"))
    assert (ours["rollouts"], vllm["rollouts"], vllm["tokens_per_cpu_second"]) == (8, 8, 8)
    assert ours["tokens"] <= 3 * 8 and 0 < generate["rollouts"] <= 8
    reading = figures["prompt_reading"]
    assert (reading["questions"], reading["times_few_shot_prompt_was_read"]) == (100, 1)
    assert reading["least_possible"] <= reading["prompt_tokens_read"] < reading["prompt_tokens_given"] / 2


def test_training(bench, tiny, gsm8k):
    """Each contender trains on about as many tokens, and only Trainer's batches have padding."""
    pytest.importorskip("accelerate")
    figures = bench(
        *("training", "--model", tiny, "--data", gsm8k, "--prompt", "{question}\n", "--count", 100),
        *("--update-tokens", 256, "--updates", 2, "--batches", "1,2"),
    )
    contenders = figures["contenders"]
    assert set(contenders) == {"stepmark", "Trainer, padded", "Trainer, by length"}
    for speed in contenders.values():
        assert 300 <= speed["tokens"] <= 600 and speed["memory"] > 0
        assert not speed["padded"] or speed["padded"] >= speed["tokens"]
    assert set(figures["batches_tried"]) == {"1", "2"} and figures["ratio_to_padded"] > 0


def test_memory(bench, tiny, tmp_path):
    """Two trainings at once: each one's memory and progress, and the memory of both."""
    row = {"sample_id": 0, "solution": "2 + 2 = 4. The answer is 4.", "target": "4", "reference_solution": "4"}
    asked = "Verification: Is the answer correct (Yes/No)? "
    rows = [
        row
        | {"question_id": q, "question": f"{q} and 2?", "correct": q % 2 > 0, "rationale": asked + ("No", "Yes")[q % 2]}
        for q in range(6)
    ]
    released = tmp_path / "rationales.jsonl"
    released.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = bench(
        *("memory", "--models", tiny, "--rationales", released, "--kinds", "generator,orm", "--two"),
        *("--count", 4, "--seconds", 100),
    )
    assert (figures["problems"], figures["solutions"]) == (4, 4)
    for training in figures["trainings"]:
        assert training["memory"] > 0.05 and training["first_line"] <= training["first_work"]
        assert training["updates"] >= 1 and training["note"] in ("finished", "stopped")
    (together,) = figures["together"]
    assert together["kinds"] == ["generator", "orm"]
    assert 0 < together["together"] <= sum(t["memory"] for t in figures["trainings"]) + 0.05
