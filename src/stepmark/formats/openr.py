r"""Format `openr`: rows of openr's process data, and the trees of OmegaPRM (Luo et al., arXiv 2406.06592).

    {"question": "...", "process": "step 1\n\n\n\n\nstep 2\n\n\n\n\n", "label": ["+", "-"]}
    {"text": "the question", "mc_value": null, "children": [{"text": "step 1", "mc_value": 0.5, "children": []}]}

Five new lines follow each step. In a tree each path to a leaf is a solution. A step that several solutions share has
its label in the first of them and none in the others, so that its evidence counts once.

    stepmark convert trees.jsonl --to stepwise rows.jsonl
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from stepmark.data import exchange, rows
from stepmark.types import Imported, LabelledSolution, Place, Problem, Quarantined, Solution, StepLabel

TAG = "\n" * 5


@dataclass(frozen=True)
class OpenR:
    """Reads and writes the format."""

    tree: bool = False  # whether a tree for each problem is written in place of a row for each solution
    separator: str = "\n"  # what stands between two steps of a solution's text
    estimate: exchange.Estimate = "auto"  # signs (hard), shares (soft), or as the evidence is; a tree has shares
    split: str = "train"  # of a data set with splits

    holds: ClassVar[frozenset[str]] = frozenset({exchange.LABELS, exchange.SOFT})

    @property
    def groups(self) -> bool:
        """Whether solutions of one problem belong together: in a tree."""
        return self.tree

    @staticmethod
    def sniff(row: Mapping[str, object]) -> bool:
        return {"question", "process", "label"} <= set(row) or {"text", "mc_value", "children"} <= set(row)

    def read(self, path: Place) -> Iterator[Imported | Quarantined]:
        """Each row: a problem, one solution and its step labels; of a tree, a problem and all its solutions."""
        return exchange.each(path, (), partial(self._make, numbers=exchange.Numbering()), split=self.split)

    def _make(self, row: rows.Row, numbers: exchange.Numbering) -> exchange.Made:
        if "children" in row.values:
            return self._of_tree(row, numbers)
        question, process = row.values.get("question"), row.values.get("process")
        if fault := exchange.fault_of_steps([question, process]):
            return f"'question' and 'process': {fault}"
        # A new line more than five belongs to the next step.
        steps = [step.strip() for step in str(process).split(TAG)]
        if steps[-1]:
            return f"field 'process': text after the last tag: {steps[-1][:40]!r}"
        if fault := exchange.fault_of_steps(steps[:-1]):
            return f"field 'process': {fault}"
        given = exchange.listed(row.values.get("label"))
        labels = "a list is needed" if given is None else exchange.labels_of(given, len(steps) - 1)
        if isinstance(labels, str):
            return f"field 'label': {labels}"
        more = exchange.extra(row, "question", "process", "label")
        if process != "".join(step + TAG for step in steps[:-1]):
            more["unusual white space"] = True
        return exchange.imported(row, str(question), steps[:-1], labels, separator=self.separator, more=more)

    def _of_tree(self, row: rows.Row, numbers: exchange.Numbering) -> exchange.Made:
        root = row.values
        if fault := exchange.fault_of_steps([root.get("text")]):
            return f"the root's text: {fault}"
        problem = Problem(exchange.question_id(str(root["text"])), str(root["text"]), "", "")
        more = exchange.extra(row, "text", "children", "mc_value")
        if root.get("mc_value") is not None:
            more["mc_value of the root"] = root["mc_value"]
        found: list[list[tuple[str, StepLabel]]] = []
        open_: list[tuple[Mapping[str, Any], list[tuple[str, StepLabel]]]] = [(root, [])]
        while open_:
            node, path = open_.pop()
            children = node.get("children") or []
            if not isinstance(children, list):
                return f"field 'children' is no list but {children!r:.40}"
            if not children and path:
                found.append(path)
            for i, child in reversed(list(enumerate(children))):
                if not isinstance(child, Mapping):
                    return f"a node at depth {len(path) + 1} is no object but {child!r:.40}"
                if fault := exchange.fault_of_steps([child.get("text")]):
                    return f"a node at depth {len(path) + 1}: {fault}"
                label = exchange.label_of(child.get("mc_value"))
                if label is None:
                    return f"mc_value at depth {len(path) + 1} is {child['mc_value']!r:.40}; it can be a share or null"
                above = path if i == 0 else [(text, exchange.NONE) for text, _ in path]
                open_.append((child, [*above, (str(child["text"]), label)]))
        if not found:
            return "a tree without a step"
        labelled = []
        for number, path in zip(numbers.take(problem.id, len(found)), found, strict=True):
            text, spans = exchange.joined([step for step, _ in path], self.separator)
            solution = Solution(f"{problem.id}#{number}", problem.id, number, text, spans)
            labelled.append(LabelledSolution(solution, exchange.UNSAID, tuple(label for _, label in path)))
        return Imported(problem, tuple(x.solution for x in labelled), labels=tuple(labelled), extra=more)

    def encode(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """One row for each solution with a label for every step; or one tree."""
        if self.tree:
            yield from self._tree(imported, lost)
            return
        for x in exchange.whole(imported, lost):
            steps = exchange.pieces(x.solution, self.separator, lost)
            if any(TAG in step for step in steps):
                lost[exchange.TAGGED] += 1
                continue
            values = exchange.values(x.labels, self.estimate)
            signs = [("+" if v else "-") if isinstance(v, bool) else v for v in values]
            process = "".join(step + TAG for step in steps)
            yield {"question": imported.problem.question, "process": process, "label": signs}

    def _tree(self, imported: Imported, lost: Counter[str]) -> Iterator[Mapping[str, object]]:
        """The solutions as one tree: equal steps after equal steps are one node, whose label is the first that is
        known."""
        lost[exchange.UNLABELLED] += len(imported.solutions) - len(imported.labels)
        root: dict[str, Any] = {"text": imported.problem.question, "mc_value": None, "children": []}
        for x in imported.labels:
            node = root
            for text, label in zip(exchange.pieces(x.solution, self.separator, lost), x.labels, strict=True):
                value = label.soft if label.known else None
                child = next((c for c in node["children"] if c["text"] == text), None)
                if child is None:
                    child = {"text": text, "mc_value": value, "children": []}
                    node["children"].append(child)
                elif child["mc_value"] is None:
                    child["mc_value"] = value
                elif value is not None:
                    lost["second labels of a step that two solutions share"] += 1
                node = child
        if root["children"]:
            lost["solutions that are the beginning of another"] += len(imported.labels) - _leaves(root)
            yield root


def _leaves(root: Mapping[str, Any]) -> int:
    open_, count = [root], 0
    while open_:
        children = open_.pop()["children"]
        count += not children
        open_ += children
    return count
