"""Rollouts that were paid for: each is on disk before anything is made of it.

A ledger is a file of rollouts, one line each, to which any number of processes append as rollouts arrive; a stage
that was killed finds there what it had, and asks for the rest alone. Beside it lies what it all came to:

    rollouts/train.jsonl          the rollouts: one outcome each, FAILED ones included
    rollouts/train.spent.json     Spent, never long behind; made anew from the lines when the ledger is opened
    rollouts/train.lost.json      where there were any: the charges of failed rollouts that were then tried again

`Recorded` puts a ledger between a stage and a backend, and ends the work when a budget is spent.
"""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from stepmark.data import store
from stepmark.data.store import Records
from stepmark.errors import BudgetReached, ConfigError, DataError, StageError
from stepmark.protocols import Backend
from stepmark.types import Finish, Place, Prompt, Rollout, SamplingParams

LIMITS = ("rollouts", "tokens", "money", "hours")
AT_ONCE = 512  # rollouts of a backend that costs nothing but time that may be lost to a kill
SUM_EVERY = 0.5  # seconds between two writings of the sums
SLICE = 64  # most rollouts that a backend gets at first while a budget is watched: nobody knows yet what one costs
SLICES = 1024  # ... and later, while there is room for them


@dataclass(frozen=True, slots=True)
class Spent:
    """What rollouts came to."""

    rollouts: int = 0  # outcomes, failed ones included
    failed: int = 0
    prompt_tokens: int = 0  # as the backend charges them
    tokens: int = 0  # generated
    money: float = 0.0  # in the unit of the backend's price

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.rollouts + other.rollouts,
            self.failed + other.failed,
            self.prompt_tokens + other.prompt_tokens,
            self.tokens + other.tokens,
            self.money + other.money,
        )

    def and_of(self, finish: str, prompt_tokens: int, tokens: int, price: tuple[float, float]) -> Spent:
        """With one more rollout. `price` is per million prompt tokens and per million generated ones."""
        return Spent(
            self.rollouts + 1,
            self.failed + (finish == Finish.FAILED),
            self.prompt_tokens + prompt_tokens,
            self.tokens + tokens,
            self.money + (prompt_tokens * price[0] + tokens * price[1]) / 1e6,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what a run may spend. Raises ConfigError for one that is not above 0."""

    rollouts: float | None = None
    tokens: float | None = None  # prompt tokens and generated ones together
    money: float | None = None  # in the unit of the backend's price
    hours: float | None = None  # of this sitting
    began: float = field(default_factory=time.time)  # of this sitting, in seconds since 1970

    def __post_init__(self) -> None:
        faults = [
            f"budget: {name} must be above 0, got {value:g}."
            for name in LIMITS
            if (value := getattr(self, name)) is not None and not value > 0
        ]
        if faults:
            raise ConfigError(faults)

    def over(self, spent: Spent) -> str | None:
        """Which limit is reached, in words; None while there is something left."""
        used = {
            "rollouts": spent.rollouts,
            "tokens": spent.tokens + spent.prompt_tokens,
            "money": spent.money,
            "hours": (time.time() - self.began) / 3600,
        }
        for name, value in used.items():
            limit = getattr(self, name)
            if limit is not None and value >= limit:
                return f"{name} {value:.6g} of {limit:g}"
        return None

    def room(self, spent: Spent) -> float:
        """How many rollouts are left, if they go on costing what they cost so far."""
        used = {"rollouts": spent.rollouts, "tokens": spent.tokens + spent.prompt_tokens, "money": spent.money}
        limits = {name: getattr(self, name) for name in used}
        left = [spent.rollouts * (limit / used[n] - 1) for n, limit in limits.items() if limit is not None and used[n]]
        if self.rollouts is not None:
            left.append(self.rollouts - spent.rollouts)
        return max(0.0, min(left, default=float("inf")))


def parse_budget(texts: Sequence[str]) -> Budget | None:
    """`tokens=2e6`, `money=5`, `hours=1.5`, `rollouts=10000`; None for none. Raises ConfigError with all faults."""
    limits, faults = dict[str, float](), []
    for text in texts:
        name, _, number = text.partition("=")
        try:
            limits[name] = float(number)
        except ValueError:
            faults.append(f"budget: {text!r} is not NAME=NUMBER, e.g. tokens=2e6.")
        if name not in LIMITS:
            faults.append(f"budget: there is no limit {name!r}. There are: {', '.join(LIMITS)}.")
    if faults:
        raise ConfigError(faults)
    return Budget(**limits) if limits else None


def need_price(budget: Budget | None, backends: Iterable[Backend | None]) -> None:
    """Raises ConfigError for a limit on money where no backend has a price: it would never be reached."""
    if budget is None or budget.money is None or any(any(getattr(b, "price", ())) for b in backends):
        return
    raise ConfigError(
        "budget: money can't be counted, since no model here has a price. Give the backend its price (openai: "
        "price_input and price_output), or limit tokens, rollouts or hours."
    )


class Ledger:
    """One file of rollouts. Pickles as its path and price."""

    def __init__(self, path: Place, price: tuple[float, float] = (0.0, 0.0)) -> None:
        self.path, self.price = Path(path), price  # price: per million prompt tokens, per million generated ones
        self._file: io.FileIO | None = None
        self._new, self._summed = Spent(), 0.0  # added since the sums were written, and when that was

    @classmethod
    def of(cls, path: Place, backend: Backend) -> Ledger:
        """With the backend's price, where it has one."""
        return cls(path, getattr(backend, "price", (0.0, 0.0)))

    @property
    def records(self) -> Records[Rollout]:
        """The rollouts, for reading."""
        return Records(self.path, Rollout)

    @property
    def spent(self) -> Spent:
        """What the ledger's rollouts came to; other processes' latest ones may be missing for a moment."""
        return self._stored + self._new

    def open(self, keep: Callable[[str], bool]) -> dict[str, list[Rollout]]:
        """The rollouts of the prompts for which `keep(prompt id)` holds, by prompt id, for a sitting that starts.

        Reads the file once and holds no more than what it returns; what is left of a line that a kill tore is cut
        off. Failed rollouts among those kept are taken out of the file: they are to be tried again; what a server
        charged for them stays in the sums. Call it before others append. Raises DataError for a line that is none."""
        found: dict[str, list[Rollout]] = {}
        spent, lost, failed = Spent(), self._lost(), set[str]()
        decode = store.decoder(Rollout)
        if self.path.exists():
            with self._locked() as file, self.path.open("rb", buffering=1 << 20) as lines:
                store.drop_torn_line(file)
                for number, line in enumerate(lines, 1):
                    try:
                        fields = json.loads(line)
                        key, prompt = fields.pop("key"), fields["prompt_id"]
                        wanted = keep(prompt)
                        if wanted and fields["finish"] == Finish.FAILED:
                            failed.add(key)
                            cost = Spent().and_of("", fields["prompt_tokens"], fields["tokens"], self.price)
                            lost += replace(cost, rollouts=0)
                            continue
                        if wanted:
                            found.setdefault(prompt, []).append(decode(fields))
                        spent = spent.and_of(fields["finish"], fields["prompt_tokens"], fields["tokens"], self.price)
                    except (ValueError, TypeError, KeyError, AttributeError) as e:
                        why = f"{type(e).__name__}: {e}"
                        raise DataError(f"{self.path}, line {number}: not a rollout: {why}. Delete this line.") from e
        if failed:
            if lost != Spent():
                store.write_text(self._charges, json.dumps(asdict(lost)) + "\n")
            self._rewrite(failed)
        store.write_text(self._sums, json.dumps(asdict(spent + lost)) + "\n")
        self._new = Spent()  # it is among the lines
        for prompt, rollouts in found.items():
            if len({r.index for r in rollouts}) < len(rollouts):  # another sitting was still ending as this one began
                found[prompt] = list({r.index: r for r in rollouts}.values())
        return found

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Appends rollouts with one write(), whoever else is appending. Raises StageError when the disk refuses, with
        the file as it was before."""
        data = b"".join(map(store.encode, rollouts))
        with self._locked() as file:
            store.drop_torn_line(file)
            before = os.fstat(file.fileno()).st_size
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as e:
                file.truncate(before)
                raise StageError(f"{self.path} can't be written: {e.strerror}. Make room and start again.") from e
            for r in rollouts:
                self._new = self._new.and_of(r.finish, r.prompt_tokens, r.tokens, self.price)
            if time.monotonic() - self._summed > SUM_EVERY:
                self._sum_up()

    def sum_up(self) -> None:
        """Brings the sums up to date with what this process has added."""
        if self._new.rollouts:
            with self._locked():
                self._sum_up()

    def _sum_up(self) -> None:
        beside = self._sums.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self._stored + self._new)) + "\n", encoding="utf-8")
        beside.replace(self._sums)
        self._new, self._summed = Spent(), time.monotonic()

    @property
    def _stored(self) -> Spent:
        return Spent(**json.loads(self._sums.read_bytes())) if self._sums.exists() else Spent()

    @property
    def _sums(self) -> Path:
        return self.path.with_suffix(".spent.json")

    @property
    def _charges(self) -> Path:
        return self.path.with_suffix(".lost.json")

    def _lost(self) -> Spent:
        """What failed rollouts cost that were tried again."""
        return Spent(**json.loads(self._charges.read_bytes())) if self._charges.exists() else Spent()

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = io.FileIO(self.path, "a+")
        with store.locked(self._file):
            yield self._file

    def _rewrite(self, without: Container[str]) -> None:
        beside = self.path.with_suffix(".new")
        with beside.open("wb") as file:
            file.writelines(
                store.encode(r) for r in self.records if r.finish is not Finish.FAILED or r.key not in without
            )
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self.close()

    def close(self) -> None:
        """Closes the file, all sums written; the next `add` opens it again."""
        self.sum_up()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self._file.close()  # type: ignore[union-attr]

    def __getstate__(self) -> tuple[Path, tuple[float, float]]:
        return self.path, self.price

    def __setstate__(self, state: tuple[Path, tuple[float, float]]) -> None:
        self.__init__(*state)  # type: ignore[misc]


@dataclass(frozen=True)
class Recorded:
    """A backend whose rollouts go through a ledger: known ones come from it, new ones are in it before they are
    seen. A backend with a true attribute `remote` has each written as it comes.

    Raises BudgetReached when what all the ledgers in the directory of `ledger` came to exceeds the budget."""

    backend: Backend
    ledger: Ledger
    known: dict[str, Rollout] = field(default_factory=dict)  # by key; new ones join as they come
    budget: Budget | None = None

    @property
    def remote(self) -> bool:
        """Whether the backend's rollouts are paid for one by one."""
        return bool(getattr(self.backend, "remote", False))

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Rollout]:
        """Known rollouts first, then new ones as they come."""
        todo: list[Prompt] = []
        for prompt in prompts:
            missing = []
            for index in range(prompt.first, prompt.first + prompt.n):
                rollout = self.known.get(f"{prompt.id}#{index}")
                if rollout is None:
                    missing.append(index)
                else:
                    yield rollout
            todo += [replace(prompt, first=first, n=n) for first, n in runs(missing)]
        while todo:
            part, todo = (todo, []) if self.budget is None else _cut(todo, self._room(self.budget))
            fresh: list[Rollout] = []
            try:
                for rollout in self.backend.sample(part, params):
                    fresh.append(rollout)
                    if len(fresh) >= (1 if self.remote else AT_ONCE):
                        kept, fresh = self._kept(fresh), []
                        yield from kept
            finally:  # a backend that breaks, or a reader that stops, loses nothing that came before
                self._kept(fresh)
                self.ledger.sum_up()
            yield from fresh

    def _kept(self, rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
        if rollouts:
            self.ledger.add(rollouts)
            self.known.update((r.key, r) for r in rollouts)
        return rollouts

    def _room(self, budget: Budget) -> int:
        """How many rollouts to ask for next, few when the end is near. Raises BudgetReached at the end."""
        self.ledger.sum_up()
        spent = spent_in(self.ledger.path.parent)
        why = budget.over(spent)
        if why is not None:
            raise BudgetReached(
                f"the budget is spent: {why}. All rollouts are kept in {self.ledger.path.parent}; "
                "the same command with a larger --budget goes on from there."
            )
        return max(1, int(min(SLICES if spent.rollouts >= SLICE else SLICE, budget.room(spent))))


def spent_in(directory: Place) -> Spent:
    """What all the ledgers of a directory came to."""
    return sum((Spent(**json.loads(p.read_bytes())) for p in sorted(Path(directory).glob("*.spent.json"))), Spent())


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising indices as (first, how many) runs: a kill may leave holes, and a prompt asks for a run."""
    first = count = 0
    for index in indices:
        if count and index == first + count:
            count += 1
        else:
            if count:
                yield first, count
            first, count = index, 1
    if count:
        yield first, count


def _cut(prompts: Sequence[Prompt], size: int) -> tuple[list[Prompt], list[Prompt]]:
    """The first `size` rollouts of prompts, and the others."""
    first: list[Prompt] = []
    for at, prompt in enumerate(prompts):
        n = min(prompt.n, size)
        first.append(replace(prompt, n=n))
        size -= n
        if not size:
            rest = [replace(prompt, first=prompt.first + n, n=prompt.n - n)] if n < prompt.n else []
            return first, [*rest, *prompts[at + 1 :]]
    return first, []
