"""A stranger's stage: writes down the longest solutions of the test. It knows nothing else of Stepmark."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Longest:
    count: int = 3
    after: ClassVar[str] = "sample"
    inputs: ClassVar[tuple[str, ...]] = ("solutions/test.jsonl",)
    outputs: ClassVar[tuple[str, ...]] = ("longest.json",)

    def run(self, context):
        solutions = sorted(context.solutions("test"), key=lambda s: (-len(s.text), s.id))
        context.directory.write_json("longest.json", [s.id for s in solutions[: self.count]])
