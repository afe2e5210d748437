"""Why no example has a training signal: the error of a training that has nothing to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from stepmark.data.outcome_counts import ANSWERS, COMPARED, QUOTED, most_frequent
from stepmark.types import LabelledSolution, Verdict

SHOWN = 300  # characters of a solution in an error
ROLLOUT_OUTCOMES = ("gradable", "ungradable", "truncated", "failed")


def without_signal(examples: Sequence[Any]) -> str:
    """Why no example has a training signal: what became of the solutions and of their rollouts."""
    start = f"none of the {len(examples)} examples has a training signal"
    labelled = [x[1] for x in examples if isinstance(x, tuple) and isinstance(x[-1], LabelledSolution)]
    if not labelled:
        return (
            f"{start}: no demonstration, or no label. Give a generator problems with demonstrations or reference "
            "solutions, and a verifier labelled solutions."
        )
    unread = [x for x in labelled if x.grade.verdict is Verdict.UNGRADABLE]
    graded = len(labelled) - len(unread)
    said = [f"{graded} of the {len(labelled)} solutions could be graded, {len(unread)} could not"]
    shown = labelled[0]
    if unread:
        place, count = most_frequent([x.grade.reason for x in unread], QUOTED)
        shown = unread[place]
        said[0] += f" ({count} of these because: {shown.grade.reason})"
    labels = [label for x in labelled for label in x.labels if label.source not in COMPARED and not label.inferred]
    counts = {name: sum(getattr(label, name) for label in labels) for name in ROLLOUT_OUTCOMES}
    if made := sum(counts.values()):
        listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        said.append(f"of the {made} rollouts behind their step labels, {listed}")
    else:
        said.append("there are no rollouts behind step labels")
    lost = Counter(r.lost for x in labelled for r in x.rationales if r.lost)
    said += [f"of their verifications, {', '.join(f'{n} {why}' for why, n in lost.most_common())}"] if lost else []
    return f"{start}: {'; '.join(said)}. One text: {shorten(shown.solution.text)!r}. {ANSWERS}"


def shorten(text: str) -> str:
    """The text, without its middle where it is long: the answer is at the end."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"
