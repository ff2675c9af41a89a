"""Which worker of a cluster does what: items that are given out, what they have come to, and what is done again.

Workers, and what they have made, may be lost at any time; then their items go back into the queue. What is merged stays
on the node where it was made: a worker merges what comes of its next item with something there, and in the end things
are merged in pairs, those of one node before those of two. What `MOST_ITEMS` or more have come to is fetched by the
driver, so that a node that is lost takes few items of each of its workers with it.
"""

from __future__ import annotations

import itertools
import logging
import pickle
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol, TypeVar

from amct_onnx.engine.engine import Work
from amct_onnx.errors import AmctError, EngineError, one_line

MOST_ITEMS = 64  # in something that is not fetched yet
_AHEAD = 2  # items that wait for a worker
_MOST_BYTES = 512 << 20  # of the items in all things that are not fetched: they are kept as long as they may be needed
_LARGE = 100_000  # bytes of an item that the crew keeps, so that it is not sent again with each order
_MOST_LOST = 4  # workers, with one item
_PATIENCE, _HURRY = 60.0, 5.0  # seconds for workers to close a work, at its end and where nobody wants it any more
_RUNS = itertools.count()
_log = logging.getLogger("amct_onnx.Engine")

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Merge = Callable[[Any, Any], Any]
Reference = Any  # to something that lies on some node


class LostWorkerError(Exception):
    """A worker ended before it had done what it was told."""


class LostThingError(Exception):
    """What a reference led to is gone."""


@dataclass(eq=False)
class Hand:
    """A worker as the driver knows it. node: where it is, "" until that is known. jobs: that it has not done yet."""

    actor: Any
    node: str = ""
    jobs: int = 0


@dataclass(frozen=True, kw_only=True)
class Said:
    """How a job has ended: what was logged, and what was raised, pickled, with its traceback; `in_merging` and not by
    the item."""

    log: Sequence[logging.LogRecord] = ()
    error: bytes | None = None
    trace: str = ""
    in_merging: bool = False

    def heard(self) -> BaseException | None:
        """Log what was logged. What was raised: an error of this package as it is, another one with its traceback as
        the cause."""
        for record in self.log:
            logging.getLogger(record.name).handle(record)
        if self.error is None:
            return None
        error: BaseException = pickle.loads(self.error)
        if not isinstance(error, AmctError):
            error.__cause__ = RuntimeError(f"on a worker:\n{self.trace}")
        return error


class Crew(Protocol):
    """The workers of a cluster, which come and go. nodes: those that were there when `grow` looked."""

    hands: list[Hand]
    nodes: Collection[str]

    def grow(self) -> int:
        """Look for processors that have no worker; how many workers there should be."""
        ...

    def pack(self, value: Any) -> tuple[Any, int]:
        """A value in the form in which it travels, and the bytes of that. Raises EngineError if it has none."""
        ...

    def put(self, packed: Any) -> Reference:
        """Let it lie here, where others can read it, each node once."""
        ...

    def give(self, hand: Hand, run: int, work: Reference, arguments: Sequence[Any], has_item: bool) -> tuple[Any, Any]:
        """Let a worker merge the arguments, packed or as references, of which the first is an item to be worked on
        before, if that is said. Gives what the job is known by, and a reference to what it makes."""
        ...

    def ended(self, jobs: Sequence[Any]) -> Sequence[Any]:
        """Those of the jobs that have ended; waits a while if there is none."""
        ...

    def said(self, job: Any) -> Said:
        """What a job that has ended says. Raises LostWorkerError, and LostThingError where an argument was gone."""
        ...

    def fetch(self, reference: Reference) -> Any:
        """What lies there, as an object of this process. Raises LostThingError."""
        ...

    def lose(self, hand: Hand) -> None:
        """Make sure that a worker is gone."""
        ...

    def close(self, run: int, hands: Sequence[Hand], patience: float) -> Sequence[Said]:
        """Let workers close the work of a run in so many seconds, or else lose them."""
        ...


def map_scattered(crew: Crew, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
    """What `Engine.map` promises, by the workers of a crew."""
    outcomes: dict[int, Outcome] = {}
    with _Run(crew, items, work) as run:
        wanted = 0
        while True:
            while wanted in outcomes:
                yield outcomes.pop(wanted)
                wanted += 1
            if wanted in run.failures:
                raise run.failures[wanted]
            if not run.is_busy():
                return
            run.advance(2 * crew.grow() + _AHEAD - (run.asked - wanted))
            for thing in run.take(lambda thing: True):
                for outcome in run.fetch(thing):
                    outcomes[thing.items[0].number] = outcome


def merge_scattered(
    crew: Crew, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
) -> Outcome | None:
    """What `Engine.merge` promises, by the workers of a crew."""
    fetched: list[Outcome] = []
    with _Run(crew, items, work, merge) as run:
        while run.is_busy() or run.things:
            crew.grow()
            run.advance(_AHEAD)
            run.raise_first()
            for thing in run.take(run.is_due):
                fetched += run.fetch(thing)
            if fetched:
                fetched = [reduce(merge, fetched)]
    return fetched[0] if fetched else None


@dataclass(eq=False)
class _Item:
    """An item on its way. argument: the item, packed, or a reference to it. size: its bytes."""

    number: int
    argument: Any
    size: int
    losses: int = 0

    @property
    def name(self) -> str:
        return f"part {self.number + 1} of the work"


@dataclass(eq=False)
class _Thing:
    """What some items have come to, on a node."""

    reference: Reference
    node: str
    items: list[_Item]
    losses: int = 0

    @property
    def name(self) -> str:
        return f"what {len(self.items)} items have come to, among them {self.items[0].name}"


@dataclass(eq=False)
class _Job:
    hand: Hand
    item: _Item | None
    things: list[_Thing]
    result: Reference

    def items(self) -> list[_Item]:
        return [*([] if self.item is None else [self.item]), *(item for thing in self.things for item in thing.items)]


@dataclass(eq=False)
class _Run:
    """One call of `map`, or of `merge` if `merges` says how. A context that closes the work in the end.

    asked: how many items were asked for. things: what has come of them, but for what was taken. failures: what items
    raised, by their numbers.
    """

    crew: Crew
    source: Iterable[Any]
    work: Any
    merges: Merge | None = None
    asked: int = 0
    things: list[_Thing] = field(default_factory=list)
    failures: dict[int, BaseException] = field(default_factory=dict)

    def __enter__(self) -> _Run:
        self._number, self._work = next(_RUNS), self.crew.put(self.crew.pack((self.work, self.merges))[0])
        self._source, self._ended = iter(self.source), False
        self._queue, self._jobs, self._opened = deque[_Item](), dict[Any, _Job](), set[Hand]()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        patience = _PATIENCE if kind is None else 0.0 if kind is KeyboardInterrupt else _HURRY
        said = self.crew.close(self._number, [hand for hand in self._opened if hand in self.crew.hands], patience)
        for job in self._jobs.values():
            job.hand.jobs -= 1
        errors = [error for error in (one.heard() for one in said) if error is not None]
        if errors and kind is None:
            raise errors[0]

    def is_busy(self) -> bool:
        """Whether there is something to do, but for merging the things that are there."""
        return not self._ended or bool(self._queue or self._jobs)

    def advance(self, room: int) -> None:
        """Give workers what they can do, with at most `room` items that nobody has asked for yet, and wait a while for
        something to be done. Raises EngineError for an item with which workers are lost again and again."""
        for thing in self.take(lambda thing: thing.node not in self.crew.nodes):
            self._again(thing.items)  # at once: the cluster may take a minute to say that it cannot be fetched
        self._give_out()
        while not self._ended and room > 0 and len(self._queue) < _AHEAD:
            room -= 1
            self._ask()
            self._give_out()
        if self._jobs or self._queue or len(self.things) > 1:
            for job in self.crew.ended(list(self._jobs)):
                self._end(job)

    def take(self, wanted: Callable[[_Thing], bool]) -> list[_Thing]:
        """The things that are wanted; nobody merges them any more."""
        taken = [thing for thing in self.things if wanted(thing)]
        self.things = [thing for thing in self.things if thing not in taken]
        return taken

    def is_due(self, thing: _Thing) -> bool:
        """Whether a thing is to be fetched: it is the last, or doing it again would cost much."""
        if not self.is_busy() and len(self.things) == 1:
            return True
        size = sum(item.size for item in thing.items)
        return len(thing.items) >= MOST_ITEMS or size > _MOST_BYTES / max(1, len(self.crew.hands))

    def fetch(self, thing: _Thing) -> list[Any]:
        """What was made; nothing if it is lost, and then its items are worked on again."""
        try:
            return [self.crew.fetch(thing.reference)]
        except LostThingError:
            self._again(thing.items)
            return []

    def raise_first(self) -> None:
        """Raise what an item has raised, if none in front of it can raise any more."""
        if not self.failures:
            return
        first = min(self.failures)
        left = [*self._queue, *(job.item for job in self._jobs.values() if job.item is not None)]
        if first < 0 or all(item.number > first for item in left):
            raise self.failures[first]

    def _ask(self) -> None:
        try:
            item = next(self._source)
        except StopIteration:
            self._ended = True
        except Exception as error:
            self._fail(self.asked, error)
        else:
            argument, size = self.crew.pack(item)
            argument = self.crew.put(argument) if size >= _LARGE else argument
            self._queue.append(_Item(number=self.asked, argument=argument, size=size))
            self.asked += 1

    def _give_out(self) -> None:
        at_work = {job.hand for job in self._jobs.values()}
        for hand in [hand for hand in self.crew.hands if hand not in at_work]:
            here = [thing for thing in self.things if thing.node == hand.node]
            if self._queue:
                self._give(hand, self._queue.popleft(), here[:1] if self.merges else [])
            elif self.merges and len(here) > 1:
                self._give(hand, None, here[:2])
            elif self.merges and self._ended and len(self.things) > 1 and not self._merges_at_home():
                self._give(hand, None, [*here, *(thing for thing in self.things if thing not in here)][:2])

    def _merges_at_home(self) -> bool:
        """Whether there are things that can be merged where they are."""
        nodes = {node for node, count in Counter(thing.node for thing in self.things).items() if count > 1}
        return any(hand.node in nodes for hand in self.crew.hands)

    def _give(self, hand: Hand, item: _Item | None, things: list[_Thing]) -> None:
        arguments = [*([] if item is None else [item.argument]), *(thing.reference for thing in things)]
        job, result = self.crew.give(hand, self._number, self._work, arguments, item is not None)
        self.things = [thing for thing in self.things if thing not in things]
        self._jobs[job] = _Job(hand, item, things, result)
        self._opened.add(hand)
        hand.jobs += 1

    def _end(self, job: Any) -> None:
        ended = self._jobs.pop(job)
        ended.hand.jobs -= 1
        try:
            error = (said := self.crew.said(job)).heard()
        except LostThingError:
            self._again(ended.items())
        except LostWorkerError as lost:
            self.crew.lose(ended.hand)
            self.things += ended.things
            self._again([] if ended.item is None else [ended.item])
            self._count_loss(ended.item or ended.things[0], lost)
        else:
            if error is None:
                self.things.append(_Thing(ended.result, ended.hand.node, ended.items()))
            else:
                self._fail(-1 if ended.item is None or said.in_merging else ended.item.number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        """Nothing behind this item is wanted any more."""
        self.failures[number], self._ended = error, True
        self._again([])

    def _again(self, items: Sequence[_Item]) -> None:
        end = min(self.failures, default=self.asked)
        wanted = [item for item in [*self._queue, *items] if item.number < end]
        self._queue = deque(sorted(wanted, key=lambda item: item.number))

    @staticmethod
    def _count_loss(what: _Item | _Thing, lost: LostWorkerError) -> None:
        what.losses += 1
        _log.info("A worker is lost (%s); another one does its work again.", lost)
        if what.losses >= _MOST_LOST:
            name = what.name[0].upper() + what.name[1:]
            raise EngineError(
                f"{name} has ended {what.losses} workers that worked on it ({one_line(lost, 80)}). See whether they "
                "have memory for the model and for their part of the data; the logs of Ray and of the kernel tell more."
            ) from None
