"""Recommendations of a finished run for a budget of tokens, from the command line."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stepmark.cli import app


def interval(mean: float, half: float = 0.02) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def point(method: str, n: int, k: int, tokens: float, accuracy: float) -> dict:
    return {"method": method, "n": n, "k": k, "tokens": tokens, "accuracy": interval(accuracy), "front": True}


ONE = point("pass@1", 1, 0, 10, 0.50)
VOTE_4, VOTE_16 = point("self_consistency", 4, 0, 40, 0.60), point("self_consistency", 16, 0, 160, 0.62)
GENRM = point("genrm", 4, 1, 120, 0.61)
BIG = point("self_consistency+genrm", 16, 32, 5000, 0.90)


def split(tokens, voting=None, verified=None, voting_gain=None, over_one=None, over_voting=None) -> dict:
    return {
        "tokens": tokens,
        "one": ONE,
        "voting": voting,
        "verified": verified,
        "voting_over_one": voting_gain,
        "verified_over_one": over_one,
        "verified_over_voting": over_voting,
    }


SPLITS = [
    split(10),
    split(40, VOTE_4, None, interval(0.10)),
    split(120, VOTE_4, GENRM, interval(0.10), interval(0.11), interval(0.01)),
    split(160, VOTE_16, GENRM, interval(0.12), interval(0.11), interval(-0.03)),
    split(5000, VOTE_16, BIG, interval(0.12), interval(0.40), interval(0.28)),
]


def metrics(splits=SPLITS, **fields) -> dict:
    points = [ONE, VOTE_4, GENRM, VOTE_16, BIG]
    return {"problems": 200, "compute": {"points": points, "splits": splits, "splits_by_verifier": {}}, **fields}


@pytest.fixture
def plan(tmp_path):
    def go(metrics_json: dict, *arguments, code: int = 0):
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "metrics.json").write_text(json.dumps(metrics_json))
        done = CliRunner().invoke(app, ["plan", "--optimal", str(run), *map(str, arguments)])
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    def read(metrics_json: dict, *budgets) -> dict[float, dict]:
        tokens = [x for b in budgets for x in ("--tokens", b)]
        return {a["budget"]: a for a in json.loads(go(metrics_json, *tokens, "--json"))["in_distribution"]["advice"]}

    go.read = read
    return go


def chosen(advice: dict) -> tuple:
    return (*(advice["chosen"][key] for key in ("method", "n", "k")), advice["verify"])


def test_the_simplest_that_nothing_beats_beyond_the_noise(plan):
    advice = plan.read(metrics(), 39.9, 40, 130, 200, 6000)
    assert {b: chosen(a) for b, a in advice.items()} == {
        39.9: ("pass@1", 1, 0, False),
        40: ("self_consistency", 4, 0, False),
        130: ("self_consistency", 4, 0, False),  # a point better, which is within the noise
        200: ("self_consistency", 16, 0, False),
        6000: ("self_consistency+genrm", 16, 32, True),
    }
    assert (
        advice[130]["reason"]
        == "leave verification out: plain voting is as good within the noise as the best of N = 4 by genrm, K = 1"
    )
    assert (
        advice[200]["reason"] == "leave verification out: plain voting is better than the best of N = 4 by genrm, K = 1"
    )
    assert advice[200]["verified"]["method"] == "genrm"
    assert (advice[6000]["plain"]["n"], advice[6000]["gain"]) == (16, interval(0.28))
    assert advice[40]["gain"] is None


def test_a_vote_within_the_noise_of_one_sample_is_not_worth_its_tokens(plan):
    advice = plan.read(metrics([split(10), split(40, VOTE_4, None, interval(0.01))]), 40)
    assert chosen(advice[40]) == ("pass@1", 1, 0, False)
    assert advice[40]["plain"]["n"] == 4


def test_one_sample_gives_way_to_what_only_another_clearly_beats_it(plan):
    """Voting is not clearly better than one sample. A verifier is, but it is not clearly better than voting. So voting
    is recommended."""
    state = split(120, VOTE_4, GENRM, interval(0.015), interval(0.03), interval(0.015))
    assert chosen(plan.read(metrics([split(10), state]), 120)[120]) == ("self_consistency", 4, 0, False)


def test_a_verifier_is_not_held_against_a_vote_that_is_worse_than_one_sample(plan):
    bad = point("self_consistency", 4, 0, 40, 0.40)
    state = split(120, bad, GENRM, interval(-0.10), interval(0.015), interval(0.21))
    advice = plan.read(metrics([split(10), state]), 120)[120]
    assert chosen(advice) == ("pass@1", 1, 0, False)
    assert advice["plain"]["method"] == "pass@1"


def test_without_a_budget_powers_of_two_from_one_sample_to_the_last_change(plan):
    assert list(plan.read(metrics())) == [2.0**i for i in range(4, 14)]


def test_a_table_for_people(plan):
    output = plan(metrics(), "--tokens", 130, "--tokens", 6000)
    lines = output.splitlines()
    assert lines[0].endswith("in distribution")
    assert [re.split("  +", line) for line in lines[2:4]] == [
        [
            "130",
            "vote of N = 4",
            "40",
            "60.0 (58.0-62.0)",
            "leave it out: best of N = 4 by genrm, K = 1 has +1.0 points (-1.0 to +3.0), no clear gain",
        ],
        [
            "6,000",
            "vote of N = 16 weighted by genrm, K = 32",
            "5,000",
            "90.0 (88.0-92.0)",
            "leaving it out loses 28.0 points (26.0 to 30.0): vote of N = 16, 62.0",
        ],
    ]
    assert "leave it out: the budget pays for none" in plan(metrics(), "--tokens", 50)
    assert "of 5 ways compared on the same 200 problems" in output
    assert "Voting was measured up to N = 16" in output
    assert "Voting was measured" not in plan(metrics(), "--tokens", 130)


def test_neighbouring_budgets_that_come_to_the_same_share_a_row(plan):
    lines = plan(metrics(), "--tokens", 11, "--tokens", 12, "--tokens", 50).splitlines()
    assert [re.split("  +", line)[:2] for line in lines[2:4]] == [["11 to 12", "one sample"], ["50", "vote of N = 4"]]


def test_what_the_run_says_of_the_count_of_tokens_is_passed_on(plan):
    output = plan(metrics(notes=["In accuracy against tokens, orm counts as free.", "Something else."]))
    assert output.rstrip().endswith("orm counts as free.") and "Something else" not in output


def test_both_parts_of_a_test_have_their_say(plan):
    ood = metrics([split(10), split(5000, VOTE_16, BIG, interval(0.12), interval(0.4), interval(-0.1))])
    advice = json.loads(plan(metrics(out_of_distribution=ood), "--tokens", 6000, "--json"))
    assert {part: advice[part]["advice"][0]["verify"] for part in advice} == {
        "in_distribution": True,
        "out_of_distribution": False,
    }
    assert "out of distribution" in plan(metrics(out_of_distribution=ood))


@pytest.mark.parametrize(
    ("metrics_json", "arguments", "code", "message"),
    [
        ({"problems": 3}, (), 1, "no accuracy against tokens. It is older"),
        ({"compute": None, "notes": ["Accuracy against tokens was not measured: why."]}, (), 1, "not measured: why."),
        (metrics(), ("--tokens", 5), 2, "--tokens is 5; one sample takes 10.0 tokens"),
        (metrics(), ("--tokens", "nan"), 2, "--tokens is nan"),
        (metrics(), ("--out", "x"), 2, "leave out --out"),
        (metrics(), ("--problems", 24, "--solutions", 9), 2, "leave out --problems, --solutions"),
        (metrics([split("ten")]), (), 1, "compute.splits.0.tokens is 'ten'; it should be a number"),
        (metrics([split(10) | {"one": None}]), (), 1, "compute.splits.0.one.method"),
        ({"compute": {"points": 3}}, (), 1, "compute.points is 3; it should be a list"),
    ],
)
def test_a_run_that_cannot_say_and_settings_that_make_no_sense(plan, metrics_json, arguments, code, message):
    assert message in plan(metrics_json, *arguments, code=code)


def test_what_is_no_finished_run(tmp_path):
    recipe = Path(__file__).parents[2] / "recipes" / "demo.yaml"

    def refused(*arguments) -> str:
        done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
        assert done.exit_code in (1, 2)
        return done.output

    assert "takes the directory of a finished run" in refused("--optimal", recipe)
    assert "Is " in refused("--optimal", tmp_path)
    assert "--tokens goes with --optimal" in refused(recipe, "--tokens", 5)
