"""Sample solutions: a few problems with candidates, the verifiers' scores of each step, and the selections.

The problems show good and bad cases: some that only the best verifier answers correctly, some that only plain voting
does, one that both do and one that neither does. They are taken in the order of the data, so a run always shows the
same ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from stepmark.report.data import ORACLE, PLAIN_VOTE, ReportData, phrase, verifier_of
from stepmark.report.findings import best_method
from stepmark.report.markup import Child, Html, h, join
from stepmark.report.results import scroller
from stepmark.types import Finish, Grade, Outcome, Problem, Selection, Solution, Verdict, Verification

PROBLEMS, CANDIDATES, STEPS, CHARACTERS, RATIONALES = 6, 4, 40, 1200, 3  # largest number of each that is shown
THRESHOLD = 0.5  # a step scored below this is predicted wrong
MARK = {Verdict.CORRECT: "✓ correct", Verdict.INCORRECT: "✗ wrong", Verdict.UNGRADABLE: "? ungradable"}
CASES = {
    "won": "The verifier finds the right answer, plain voting does not",
    "lost": "Plain voting finds the right answer, the verifier does not",
    "both": "Both find the right answer",
    "neither": "Neither finds the right answer",
    "mixed": "Candidates differ",
}
TALLY = {"won": "the first alone", "lost": "voting alone", "both": "both", "neither": "neither"}
QUOTA = {"won": 2, "lost": 2, "both": 1, "neither": 1, "mixed": PROBLEMS}


@dataclass(slots=True)
class Case:
    """A problem with its candidates and the selections among them."""

    problem: Problem
    solutions: list[Solution] = field(default_factory=list)
    chosen: dict[str, Selection] = field(default_factory=dict)  # method -> its selection at its largest N
    kind: str = "mixed"  # key of CASES


def samples(data: ReportData) -> Html:
    """The content of the section; "" without solutions."""
    grades = {g.solution_id: g.grade for g in data.grades}
    by_verifier = {name: {v.solution_id: v for v in records} for name, records in data.verifications.items()}
    best, _ = best_method(data.metrics)
    cases = _cases(data, grades, best)
    chosen: list[Case] = []
    for kind, quota in QUOTA.items():
        chosen += [c for c in cases if c.kind == kind][:quota]
    chosen += [c for c in cases if c not in chosen][: max(0, PROBLEMS - len(chosen))] if chosen else []
    lead, best_words = verifier_of(best), phrase(best)
    tally = Counter(c.kind for c in cases)
    summary = None
    if tally.total() > tally["mixed"]:
        counts = ", ".join(f"{tally[kind]:,} by {words}" for kind, words in TALLY.items())
        summary = h("p", f"{best_words[0].upper()}{best_words[1:]} against plain voting. Problems answered: {counts}.")
    problems = (_problem(c, data, grades, by_verifier, lead, is_open=i == 0) for i, c in enumerate(chosen[:PROBLEMS]))
    return join([summary, *problems])


def _cases(data: ReportData, grades: dict[str, Grade], best: str) -> list[Case]:
    cases = {p.id: Case(p) for p in data.problems}
    for s in data.solutions:
        if s.problem_id in cases:
            cases[s.problem_id].solutions.append(s)
    for choice in data.selections:
        case = cases.get(choice.problem_id)
        if case and ":" not in choice.method:
            earlier = case.chosen.get(choice.method)
            if earlier is None or earlier.n < choice.n:
                case.chosen[choice.method] = choice
    for case in cases.values():
        vote_right, best_right = (_right(case.chosen.get(m), grades) for m in (PLAIN_VOTE, best))
        if vote_right is not None and best_right is not None:
            case.kind = ("both" if best_right else "lost") if vote_right else ("won" if best_right else "neither")
    sampled = [c for c in cases.values() if c.solutions]
    # Without selections, problems with both correct and wrong candidates come first.
    return sorted(sampled, key=lambda c: c.kind == "mixed" and len({_verdict(s, grades) for s in c.solutions}) < 2)


def _right(choice: Selection | None, grades: dict[str, Grade]) -> bool | None:
    if choice is None:
        return None
    grade = grades.get(choice.solution_id or "")
    return grade is not None and grade.correct


def _verdict(solution: Solution, grades: dict[str, Grade]) -> Verdict | None:
    grade = grades.get(solution.id)
    return grade.verdict if grade else None


def _shown(case: Case, grades: dict[str, Grade]) -> list[Solution]:
    """The candidates to show: the selected ones, those of most methods first, then a correct and a wrong one if there
    is none yet."""
    times = Counter(c.solution_id for m, c in case.chosen.items() if m != ORACLE)
    ranked = sorted(case.solutions, key=lambda s: (-times[s.id], s.sample))
    picked = [s for s in ranked if times[s.id]][:CANDIDATES]
    for verdict in (Verdict.CORRECT, Verdict.INCORRECT):
        if len(picked) < CANDIDATES and all(_verdict(s, grades) is not verdict for s in picked):
            picked += [s for s in ranked if _verdict(s, grades) is verdict][:1]
    picked += [s for s in ranked if s not in picked][: max(0, 2 - len(picked))]
    return picked


def _problem(
    case: Case,
    data: ReportData,
    grades: dict[str, Grade],
    verifications: dict[str, dict[str, Verification]],
    lead: str,
    *,
    is_open: bool,
) -> Html:
    voters = (grades[s.id].answer for s in case.solutions if s.id in grades and s.finish is Finish.STOP)
    votes = Counter(answer for answer in voters if answer is not None)
    summary = [h("span", CASES[case.kind], class_=f"case {case.kind}"), " "]
    cards = [_candidate(s, case, data, grades.get(s.id), verifications, lead, votes) for s in _shown(case, grades)]
    question = case.problem.question
    reference = h("strong", _cut(case.problem.answer, 200))
    return h(
        "details",
        h("summary", *summary, h("span", _cut(question, 140), class_="brief")),
        h("p", _cut(question, 4000), class_="question"),
        h("p", "Reference answer ", reference, f" · {len(case.solutions):,} candidates"),
        h("div", *cards, class_="cards"),
        class_="problem",
        open=is_open,
    )


def _candidate(
    s: Solution,
    case: Case,
    data: ReportData,
    grade: Grade | None,
    verifications: dict[str, dict[str, Verification]],
    lead: str,
    votes: Counter[str],
) -> Html:
    of_solution = {name: by_solution[s.id] for name, by_solution in verifications.items() if s.id in by_solution}
    scored = {name: v for name, v in of_solution.items() if v.outcome is Outcome.SCORED}
    # With one step, the step's score equals the solution's score, which the chip shows already.
    by_step = {name: v.scores for name, v in scored.items() if len(v.scores) == len(s.spans) > 1}
    choosers = [phrase(m) for m, c in case.chosen.items() if c.solution_id == s.id and m != ORACLE]
    badge = answer = tally = None
    if grade:
        badge = h("span", MARK[grade.verdict], class_=f"badge {grade.verdict.value}", title=grade.reason[:300])
        answer = "no answer found" if grade.answer is None else _cut(f"answer {grade.answer}", 80)
        tally = None if grade.answer is None else f"{votes[grade.answer]} of {len(case.solutions)} votes"
    if s.finish is Finish.LENGTH:
        answer, tally = "cut off by the token budget", None
    chips = [_chip(name, v) for name, v in of_solution.items()]
    return h(
        "article",
        h("header", badge, " ", join([answer, tally], " · "), " ", h("code", f"#{s.sample}")),
        h("p", "Chosen by ", h("strong", ", ".join(choosers)), class_="choosers") if choosers else None,
        h("p", join(chips, " ")) if chips else None,
        _steps(s, data, by_step, lead),
        *(_rationales(name, v) for name, v in of_solution.items() if v.rationales),
        class_="candidate",
    )


def _chip(name: str, v: Verification) -> Html:
    """A verifier's score of the whole solution, or the reason why there is none."""
    if v.outcome is not Outcome.SCORED:
        return h("span", name, f" {v.outcome.value}", class_="chip", title=v.reason[:300])
    aggregate = f" {v.aggregate}" if len(v.scores) > 1 else None
    return h("span", name, " ", h("b", f"{v.score:.2f}"), aggregate, class_="chip", style=_tint(v.score))


def _rationales(name: str, v: Verification) -> Html:
    """The rationales of a generative verifier, with their votes if each has one."""
    votes = v.votes if len(v.votes) == len(v.rationales) else ()
    count_text = "1 rationale" if len(v.rationales) == 1 else f"{len(v.rationales):,} rationales"
    parts: list[Child] = [h("summary", f"{name}: {count_text}")]
    for i, text in enumerate(v.rationales[:RATIONALES]):
        vote = h("span", "p(Yes) ", h("b", f"{votes[i]:.2f}"), class_="chip", style=_tint(votes[i])) if votes else None
        parts += [h("p", vote) if votes else None, h("p", _cut(text, CHARACTERS), class_="rationale")]
    if len(v.rationales) > RATIONALES:
        parts.append(h("p", f"… and {len(v.rationales) - RATIONALES:,} more", class_="dim"))
    if len(v.votes) > 1:
        parts.append(h("p", f"All votes: {', '.join(f'{x:.2f}' for x in v.votes)}", class_="dim"))
    return h("details", *parts, class_="rationales")


def _steps(s: Solution, data: ReportData, by_step: dict[str, tuple[float, ...]], lead: str) -> Html:
    if not s.spans:
        return h("p", "(no steps)" if s.text.strip() else "(empty)", class_="dim")
    oracle = data.oracle.get(s.id)
    flags = list(oracle) if oracle is not None and len(oracle) == len(s.spans) else None
    wrong = flags.index(False) if flags and False in flags else None
    tinting = by_step.get(lead) or next(iter(by_step.values()), None)
    predicted = {name: _first_below(scores) for name, scores in by_step.items()}
    rows = []
    for i, text in enumerate(s.steps[:STEPS]):
        kind = data.kinds.get(s.id, "")
        tag = h("span", "first error" + (f": {kind}" if kind else ""), class_="tag") if i == wrong else None
        cells: list[Child] = [
            h(
                "td",
                f"{scores[i]:.2f}",
                class_="score predicted" if predicted[name] == i else "score",
                style=_tint(scores[i]),
                title=f"{name}: first step below {THRESHOLD}" if predicted[name] == i else None,
            )
            for name, scores in by_step.items()
        ]
        if flags is not None:
            right = flags[i]
            cells.append(h("td", "✓" if right else "✗", class_="flag right" if right else "flag wrong"))
        body = [tag, _cut(text, CHARACTERS)]
        if tinting:
            step = h("td", *body, class_="step tinted", style=_tint(tinting[i]))
        else:
            step = h("td", *body, class_="step")
        rows.append(h("tr", step, *cells, class_="first-error" if i == wrong else None))
    columns = ["Step", *by_step, *(["oracle"] if flags else [])]
    head = h("tr", *(h("th", join(name.split("_"), Html("_<wbr>")), scope="col") for name in columns))
    table = h("table", h("thead", head), h("tbody", *rows), class_="steps")
    rest = h("p", f"… and {len(s.spans) - STEPS:,} more steps", class_="dim") if len(s.spans) > STEPS else None
    return join([scroller(table, f"steps of candidate {s.sample}"), rest])


def _first_below(scores: tuple[float, ...]) -> int | None:
    return next((i for i, score in enumerate(scores) if score < THRESHOLD), None)


def _tint(score: float) -> str:
    return f"--s:{100 * min(1.0, max(0.0, score)):.0f}%" if score == score else "--s:50%"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"
