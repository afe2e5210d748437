"""Ledgers: files of the rollouts that were paid for. Each rollout is on disk before it is used.

A ledger holds one rollout per line. Any number of processes append to it as rollouts arrive. A stage that was killed
reads the rollouts it had and samples only the missing ones. Two files beside the ledger hold the totals:

    rollouts/train.jsonl          the rollouts, failed ones included
    rollouts/train.spent.json     the totals as `Spent`, at most a moment old; recounted when the ledger is opened
    rollouts/train.lost.json      only where there were any: the charges of failed rollouts that were tried again

`Recorded` puts a ledger between a stage and a backend, and stops the work when a budget is spent.
"""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from stepmark.data import locks, store
from stepmark.data.store import Records
from stepmark.data.timed_batch import TimedBatch
from stepmark.errors import BudgetReached, ConfigError, DataError, StageError
from stepmark.protocols import Backend
from stepmark.types import Finish, Place, Prompt, Rollout, SamplingParams

LIMITS = ("rollouts", "tokens", "money", "hours")
AT_ONCE = 512  # rollouts of a local backend that are written together at most; they wait a second at most
SUM_EVERY = 0.5  # seconds between two writings of the totals
SLICE = 64  # with a budget: most rollouts in the first calls of the backend, while the price of one is unknown
SLICES = 1024  # with a budget: most rollouts in later calls


@dataclass(frozen=True, slots=True)
class Spent:
    """The number of rollouts, with their tokens and price."""

    rollouts: int = 0  # failed ones included
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
        """The totals with one more rollout. `price` is per million prompt tokens and per million generated tokens."""
        return Spent(
            self.rollouts + 1,
            self.failed + (finish == Finish.FAILED),
            self.prompt_tokens + prompt_tokens,
            self.tokens + tokens,
            self.money + (prompt_tokens * price[0] + tokens * price[1]) / 1e6,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what a run may spend. Raises ConfigError for a limit that is not above 0."""

    rollouts: float | None = None
    tokens: float | None = None  # prompt tokens and generated tokens together
    money: float | None = None  # in the unit of the backend's price
    hours: float | None = None  # since this command started
    began: float = field(default_factory=time.time)  # when this command started, in seconds since 1970

    def __post_init__(self) -> None:
        faults = [
            f"budget: {name} must be above 0, got {value:g}."
            for name in LIMITS
            if (value := getattr(self, name)) is not None and not value > 0
        ]
        if faults:
            raise ConfigError(faults)

    def over(self, spent: Spent) -> str | None:
        """The limit that is reached, in words; None if no limit is reached."""
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
        """The number of rollouts left, at the average cost of the rollouts so far."""
        used = {"rollouts": spent.rollouts, "tokens": spent.tokens + spent.prompt_tokens, "money": spent.money}
        limits = {name: getattr(self, name) for name in used}
        left = [spent.rollouts * (limit / used[n] - 1) for n, limit in limits.items() if limit is not None and used[n]]
        if self.rollouts is not None:
            left.append(self.rollouts - spent.rollouts)
        return max(0.0, min(left, default=float("inf")))


def parse_budget(texts: Sequence[str]) -> Budget | None:
    """Parses `tokens=2e6`, `money=5`, `hours=1.5`, `rollouts=10000`; None for no texts. Raises ConfigError with all
    faults."""
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
    """Raises ConfigError for a limit on money if no backend has a price: the limit would never be reached."""
    if budget is None or budget.money is None or any(any(getattr(b, "price", ())) for b in backends):
        return
    raise ConfigError(
        "budget: money can't be counted, since no model here has a price. Set the price in the backend's options "
        "(openai: price_input and price_output), or limit tokens, rollouts or hours."
    )


class Ledger:
    """One file of rollouts, with its totals. Pickles as its path and price."""

    def __init__(self, path: Place, price: tuple[float, float] = (0.0, 0.0)) -> None:
        self.path, self.price = Path(path), price  # price: per million prompt tokens, per million generated tokens
        self._file: io.FileIO | None = None
        self._adding = threading.Lock()  # the file's lock keeps out other processes, not other threads
        # Unwritten: what was added since the totals were last written, at the time `_written_at`.
        self._unwritten, self._written_at = Spent(), 0.0

    @classmethod
    def of(cls, path: Place, backend: Backend) -> Ledger:
        """A ledger with the backend's price, or with 0 if the backend has none."""
        return cls(path, getattr(backend, "price", (0.0, 0.0)))

    @property
    def records(self) -> Records[Rollout]:
        """The rollouts, for reading."""
        return Records(self.path, Rollout)

    @property
    def spent(self) -> Spent:
        """The ledger's totals. The latest rollouts of other processes may be missing for a moment."""
        return self._stored_totals + self._unwritten

    def open(self, keep: Callable[[str], bool]) -> dict[str, list[Rollout]]:
        """The rollouts of the prompts for which `keep(prompt id)` is true, by prompt id. A command calls it at its
        start, before any process appends.

        Reads the file once and holds in memory only what it returns. Cuts off a last line that a kill left incomplete.
        Removes the failed rollouts of these prompts from the file, so that they are tried again; what a server charged
        for them stays in the totals. Raises DataError for a line that is not a rollout."""
        by_prompt: dict[str, list[Rollout]] = {}
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
                            by_prompt.setdefault(prompt, []).append(decode(fields))
                        spent = spent.and_of(fields["finish"], fields["prompt_tokens"], fields["tokens"], self.price)
                    except (ValueError, TypeError, KeyError, AttributeError) as e:
                        reason = f"{type(e).__name__}: {e}"
                        raise DataError(
                            f"{self.path}, line {number}: not a rollout: {reason}. Delete this line."
                        ) from e
        if failed:
            if lost != Spent():
                store.write_text(self._lost_path, json.dumps(asdict(lost)) + "\n")
            self._rewrite(failed)
        store.write_text(self._totals_path, json.dumps(asdict(spent + lost)) + "\n")
        self._unwritten = Spent()  # `spent` has counted it
        for prompt, rollouts in by_prompt.items():
            # An earlier command that was still ending when this one started may have sampled the same indices.
            if len({r.index for r in rollouts}) < len(rollouts):
                by_prompt[prompt] = list({r.index: r for r in rollouts}.values())
        return by_prompt

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Appends rollouts with one write(); other processes may append too. Raises StageError when the disk refuses
        the write, and leaves the file as it was before."""
        data = b"".join(map(store.encode, rollouts))
        with self._adding, self._locked() as file:
            store.drop_torn_line(file)
            before = os.fstat(file.fileno()).st_size
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as e:
                file.truncate(before)
                raise StageError(f"{self.path} can't be written: {e.strerror}. Make room and start again.") from e
            for r in rollouts:
                self._unwritten = self._unwritten.and_of(r.finish, r.prompt_tokens, r.tokens, self.price)
            if time.monotonic() - self._written_at > SUM_EVERY:
                self._write_totals()

    def sum_up(self) -> None:
        """Adds to the stored totals what this process has appended since they were last written."""
        with self._adding:
            if self._unwritten.rollouts:
                with self._locked():
                    self._write_totals()

    def _write_totals(self) -> None:
        temporary = self._totals_path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self._stored_totals + self._unwritten)) + "\n", encoding="utf-8")
        temporary.replace(self._totals_path)
        self._unwritten, self._written_at = Spent(), time.monotonic()

    @property
    def _stored_totals(self) -> Spent:
        return Spent(**json.loads(self._totals_path.read_bytes())) if self._totals_path.exists() else Spent()

    @property
    def _totals_path(self) -> Path:
        return self.path.with_suffix(".spent.json")

    @property
    def _lost_path(self) -> Path:
        return self.path.with_suffix(".lost.json")

    def _lost(self) -> Spent:
        """The charges of failed rollouts that were tried again."""
        return Spent(**json.loads(self._lost_path.read_bytes())) if self._lost_path.exists() else Spent()

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = io.FileIO(self.path, "a+")
        with locks.held(self._file):
            yield self._file

    def _rewrite(self, without: Container[str]) -> None:
        temporary = self.path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.writelines(
                store.encode(r) for r in self.records if r.finish is not Finish.FAILED or r.key not in without
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        self.close()

    def close(self) -> None:
        """Writes the totals and closes the file; the next `add` opens it again."""
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
    """A backend with a ledger: rollouts that the ledger holds are not sampled again, and new rollouts are written to
    the ledger: if the backend's attribute `remote` is true, each before it is returned, else within a second.

    Raises BudgetReached when the totals of all ledgers in the directory of `ledger` reach the budget."""

    backend: Backend
    ledger: Ledger
    known: dict[str, Rollout] = field(default_factory=dict)  # by key; new rollouts are added
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
            part, todo = (todo, []) if self.budget is None else _split(todo, self._next_size(self.budget))
            try:
                # When the backend breaks or the reader stops, the rollouts that came before are still stored.
                with TimedBatch(self._store, AT_ONCE) as batch:
                    for rollout in self.backend.sample(part, params):
                        batch.add(rollout)
                        if self.remote:
                            batch.flush()
                        self.known[rollout.key] = rollout
                        yield rollout
            finally:
                self.ledger.sum_up()

    def _store(self, rollouts: Sequence[Rollout]) -> None:
        if rollouts:
            self.ledger.add(rollouts)

    def _next_size(self, budget: Budget) -> int:
        """The number of rollouts to sample next, fewer near the limit. Raises BudgetReached at the limit."""
        self.ledger.sum_up()
        spent = spent_in(self.ledger.path.parent)
        reached = budget.over(spent)
        if reached is not None:
            raise BudgetReached(
                f"the budget is spent: {reached}. All rollouts are kept in {self.ledger.path.parent}; "
                "the same command with a larger --budget goes on from there."
            )
        return max(1, int(min(SLICES if spent.rollouts >= SLICE else SLICE, budget.room(spent))))


def spent_in(directory: Place) -> Spent:
    """The totals of all ledgers in a directory."""
    return sum((Spent(**json.loads(p.read_bytes())) for p in sorted(Path(directory).glob("*.spent.json"))), Spent())


def move_away(path: Path, target: Path, date: str) -> None:
    """Moves a ledger to `target`, so that its rollouts are sampled anew. What they cost still counts for a budget: the
    totals stay where they are, under a name with the date."""
    totals, lost = path.with_suffix(".spent.json"), path.with_suffix(".lost.json")
    if totals.exists():
        totals.rename(path.with_name(f"{path.stem}.{date}.spent.json"))
    if lost.exists():
        lost.rename(target.with_suffix(".lost.json"))
    path.rename(target)


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising indices as consecutive runs, each (first, count). A kill may leave gaps, and a prompt asks for one run."""
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


def _split(prompts: Sequence[Prompt], size: int) -> tuple[list[Prompt], list[Prompt]]:
    """Splits prompts into those for the first `size` rollouts, and those for the rest."""
    first: list[Prompt] = []
    for position, prompt in enumerate(prompts):
        n = min(prompt.n, size)
        first.append(replace(prompt, n=n))
        size -= n
        if not size:
            rest = [replace(prompt, first=prompt.first + n, n=prompt.n - n)] if n < prompt.n else []
            return first, [*rest, *prompts[position + 1 :]]
    return first, []
