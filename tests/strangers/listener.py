"""A stranger's generative verifier: all that it learns is what it was shown, and it writes that down."""

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

from stepmark.types import Verification


@dataclass(frozen=True)
class Listener:
    path: str = ""
    generates: ClassVar[bool] = True

    def corpus(self):
        return ("Zyxwvuts: Qwertzuiop.",)

    def fit(self, examples, out):
        heard = [{"question": p.question, **asdict(x)} for p, x in examples]
        (out / "heard.json").write_text(json.dumps(heard))
        return len(heard)

    def verify(self, question, solutions):
        return [Verification(s.id, (0.5,), 0.5, "last") for s in solutions]
