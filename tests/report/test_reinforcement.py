"""The section about reinforcement: its figures and page_text about policies; over-optimisation is visible."""

import copy
import dataclasses
import json
import random
import re

import pytest

from stepmark import report
from stepmark.errors import DataError
from stepmark.report import Metrics
from stepmark.report.findings import of_policies

POLICIES = {"rft": 0.505, "orm_ppo": 0.548, "step_ppo": 0.61, "gold_ppo": 0.66, "step_ppo_2": 0.64}
METHODS = {
    "pass@1": 0.0,
    "self_consistency": 0.06,
    "orm": 0.09,
    "self_consistency+orm": 0.13,
    "prm": 0.12,
    "self_consistency+prm": 0.2,
    "oracle": 0.31,
}


def interval(mean, half=0.03):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def made():
    rng = random.Random(3)
    greedy = {"sft": 0.37} | POLICIES
    after = {}
    for name, level in greedy.items():
        # Trained on the generator's samples, the verifier misjudges those of the policy that learned from it.
        stale = -0.14 if name == "step_ppo" else 0.0
        rows = {m: up + (stale if "prm" in m else 0.0) for m, up in METHODS.items()} | {"prm_refreshed": 0.11}
        after[name] = {
            m: {str(n): interval(min(0.97, level - 0.03 + up * part)) for n, part in ((1, 0), (4, 0.6), (16, 1))}
            for m, up in rows.items()
        }
    curve = [[u, 0.37 + 0.25 * (1 - 0.93**u)] for u in range(0, 41, 5)]
    back = [[0, 0.37], [5, 0.45], [10, 0.5], [15, 0.41], [20, 0.3], [15, 0.52], [20, 0.55]]
    names = list(POLICIES)
    return {
        "problems": 500,
        "greedy": {name: interval(x) for name, x in greedy.items()},
        "greedy_differences": {f"{a} - sft": interval(x - 0.37) for a, x in POLICIES.items()}
        | {f"{a} - {b}": interval(POLICIES[a] - POLICIES[b]) for i, b in enumerate(names) for a in names[i + 1 :]},
        "after": after,
        "after_differences": {
            "step_ppo": {
                "prm - self_consistency": {"1": interval(0.0, 0.0), "4": interval(0.0), "16": interval(-0.08)},
                "prm_refreshed - self_consistency": {"16": interval(0.05)},
                "self_consistency+prm - greedy": {"16": interval(0.03)},
                "self_consistency+prm - sft": {"16": interval(0.1)},
            }
        },
        "reward_curve": {
            n: [[u, 3.1 * (1 - 0.9**u) + rng.uniform(0, 0.2)] for u in range(1, 41)] for n in names if n != "rft"
        },
        "accuracy_curve": {n: back if n == "step_ppo" else curve for n in names if n != "rft"},
        "held_out_reward_curve": {},
        "kl_curve": {},
        "policies": {
            n: {
                "method": "rft" if n == "rft" else "ppo",
                "updates": 20 if n == "step_ppo" else 40,
                "best": 20 if n == "step_ppo" else 35,
                "stopped": "the reward rose and the accuracy fell at two looks in a row" if n == "step_ppo" else "",
                "tokens": 812_345,
                "seconds": 301.5,
                "kl": 0.041,
            }
            for n in names
        },
    }


@pytest.fixture
def raw():
    return json.loads(json.dumps(made()))


@pytest.fixture
def page(report_data, raw_metrics):
    def make(raw):
        return report.render(dataclasses.replace(report_data, metrics=Metrics.parse(raw_metrics | raw)))

    return make


def text(html):
    section = re.search(r'<section id="policies".*?</section>', html, re.S)
    return re.sub(r"<[^>]+>", " ", section[0])


def several(raw):
    """The same metrics as three seeds give them."""
    raw = copy.deepcopy(raw)
    for name in ("reward_curve", "accuracy_curve"):
        raw[f"{name}_per_seed"] = {
            policy: {str(seed): [[u, y + 0.02 * seed] for u, y in points] for seed in (1, 2, 3)}
            for policy, points in raw[name].items()
        }
    return raw


def test_every_policy_has_its_accuracy_its_gain_and_how_it_ended(page, raw):
    page_text = text(page(raw))
    for name, accuracy in POLICIES.items():
        assert f"{100 * accuracy:.1f}" in page_text and name in page_text
        assert f"+{100 * (accuracy - 0.37):.1f}" in page_text
    assert "Stopped early after 20 updates, handed on update 20: the reward rose" in page_text
    assert "update 35, the best on held-out problems" in page_text
    assert "812,345" in page_text and "0.041" in page_text


def test_updates_of_several_seeds_are_means_and_say_so(page, raw):
    raw["policies"]["orm_ppo"] |= {"updates": 92 / 3, "best": 16}
    assert "30.7 updates as planned; handed on: update 16 (means over seeds), the best" in text(page(raw))


def test_the_findings_are_no_rosier_than_the_numbers(raw):
    result = of_policies(Metrics.parse(raw))
    assert result[0] == (
        "Greedily, gold_ppo is best: it answers 66.0%, the generator it started from 37.0% "
        "(+29.0 points, 95% interval +26.0 to +32.0)."
    )
    assert any("gold_ppo is better than step_ppo_2 can't be told" in line for line in result)
    assert any(line.startswith("step_ppo stopped early after update 20") for line in result)
    assert any("On samples of step_ppo, the best of 16 by prm is below plain voting: −8.0" in line for line in result)
    assert not any("below the generator" in line for line in result)
    raw["greedy"] = {"sft": interval(0.5), "step_ppo": interval(0.08)}
    raw["greedy_differences"] = {"step_ppo - sft": interval(-0.42)}
    result = of_policies(Metrics.parse(raw))
    assert "no policy is better than the generator" in result[0]
    assert any("step_ppo ended below the generator: −42.0 points" in line for line in result)
    assert of_policies(Metrics.parse({})) == []


def test_before_and_after_has_every_way_for_every_policy(page, raw):
    page_text = text(page(raw))
    assert "best by prm_refreshed" in page_text.lower() and "its greedy answer" in page_text
    for name in raw["after"]:
        value = raw["after"][name]["self_consistency"]["16"]["mean"]
        assert f"{100 * value:.1f}" in page_text
    del raw["after"], raw["after_differences"]
    assert "Votes and verifiers" not in text(page(raw))


def test_several_seeds_are_drawn_beside_their_mean(page, raw):
    html = page(several(raw))
    assert html.count("</svg>each seed</li>") == 8  # rewards and accuracies of four policies


EXPLORED = {
    "same_reward_curve": "prompts, all attempts earning the same",
    "empty_curve": "empty attempts",
    "truncated_curve": "attempts out of tokens",
    "entropy_curve": "entropy, nats a token",
}


def explored(raw):
    """The metrics with the curves of what step_ppo and orm_ppo explored."""
    curves = {n: [[u, 0.02 * u] for u in range(1, 41)] for n in ("step_ppo", "orm_ppo")}
    return raw | {name: dict(curves) for name in EXPLORED}


def test_what_the_attempts_explored_is_drawn_for_each_policy_that_has_it(page, raw):
    html = page(explored(raw))
    for title in EXPLORED.values():
        assert html.count(f"<figcaption>{title}</figcaption>") == 2
    assert "explored" not in text(page(raw))  # metrics.json of an earlier version


def test_it_is_folded_where_there_are_many_policies(page, raw):
    folded, open_ = "<details><summary>What its attempts explored", "<details open><summary>What its attempts explored"
    assert page(explored(raw)).count(folded) == 2
    few = explored(raw)
    few["greedy"] = {name: few["greedy"][name] for name in ("sft", "step_ppo", "orm_ppo", "rft")}
    html = page(few)
    assert (html.count(open_), html.count(folded)) == (2, 0)


def test_what_several_seeds_explored_is_drawn_beside_their_mean(page, raw):
    raw = explored(raw)
    for name in EXPLORED:
        raw[f"{name}_per_seed"] = {"orm_ppo": {"1": raw[name]["orm_ppo"], "2": raw[name]["orm_ppo"]}}
    assert page(raw).count("</svg>each seed</li>") == 4


def test_the_terminal_has_the_policies_too(raw):
    page_text = report.table(raw | {"best_of_n": {}})
    assert re.search(r"step_ppo +61\.0", page_text) and re.search(r"sft +37\.0", page_text)
    assert "gold_ppo is best" in page_text


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"greedy": 3}, "greedy"),
        ({"greedy": {"sft": "x"}}, "greedy.sft"),
        ({"reward_curve": {"a": [[1]]}}, "reward_curve.a.0"),
        ({"accuracy_curve": {"a": "x"}}, "accuracy_curve.a"),
        ({"entropy_curve": {"a": "x"}}, "entropy_curve.a"),
        ({"empty_curve_per_seed": {"a": {"1": "x"}}}, "empty_curve_per_seed.a.1"),
        ({"policies": {"a": {"updates": "many"}}}, "policies.a.updates"),
        ({"after": {"a": {"prm": {"x": 1}}}}, "after.a.prm"),
    ],
)
def test_a_malformed_part_is_named(raw, change, where):
    with pytest.raises(DataError, match=re.escape(f"metrics: {where} is")):
        Metrics.parse(raw | change)


def test_nothing_in_a_name_is_markup(page, raw):
    attack = '<img src=x onerror="window.ran=1">'
    for name in ("greedy", "after", "after_differences", "reward_curve", "accuracy_curve", "policies"):
        raw[name] = {attack if k == "step_ppo" else k: v for k, v in raw[name].items()}
    raw["policies"][attack]["stopped"] = attack
    raw["greedy_differences"][f"{attack} - sft"] = interval(0.1)
    raw["reward_curve_per_seed"] = {attack: {attack: [[1, 2.0], [2, 3.0]]}}
    html = page(raw)
    assert "<img" not in html and "&lt;img" in html


def test_the_section_fits_the_screen(visit, page, raw):
    raw = explored(raw)
    for width in (390, 1280):
        opened, messages, asked = visit(page(raw), width)
        opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert (messages, asked) == ([], [])
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        outside = opened.evaluate(
            """w => [...document.querySelectorAll('#policies *')]
            .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > w + 1).length""",
            width,
        )
        assert outside == 0
        assert opened.locator("#policies .course").count() == len(raw["accuracy_curve"])
