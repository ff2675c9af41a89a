"""A crew without processes: workers, nodes and what lies on them are lost at random, and nothing is done in order."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any

from amct_onnx.engine.engine import Work
from amct_onnx.engine.scattered import Hand, LostThingError, LostWorkerError, Said, map_scattered, merge_scattered


@dataclass(eq=False)
class Lying:
    """Something that lies on a node; "" for the driver's, which is never lost."""

    node: str
    value: Any = None


@dataclass(eq=False)
class Order:
    hand: Hand
    run: int
    work: Any
    arguments: Sequence[Any]
    has_item: bool
    result: Lying


class LossyCrew:
    """A `Crew` of `nodes` nodes with two workers each. losses: how many times a worker or, one time in four, its whole
    node is lost, which then comes back.

    lost: how many losses there were. done: how many items were worked on, some of them again. fetched: how many things
    the driver has asked for. most_at_a_time: jobs.
    """

    def __init__(self, seed: int, nodes: int, losses: int) -> None:
        self._random, self._left, self._count = random.Random(seed), losses, nodes
        self.hands: list[Hand] = []
        self.nodes: Collection[str] = ()
        self.lost, self.done, self.most_at_a_time, self.fetched = 0, 0, 0, 0
        self._here = {""}
        self._open: dict[tuple[Hand, int], tuple[ExitStack, Any, Any]] = {}
        self.grow()

    def grow(self) -> int:
        for number in range(self._count):
            known = [hand.node for hand in self.hands if hand.node.startswith(f"{number}.")]
            node = known[0] if known else f"{number}.{self.lost}"  # one that comes back has nothing of what it had
            self._here.add(node)
            self.hands += [Hand(object(), node) for _ in range(2 - len(known))]
        if not self.nodes or self._random.random() < 0.5:  # else it looks later
            self.nodes = set(self._here)
        return len(self.hands)

    def pack(self, value: Any) -> tuple[Any, int]:
        return value, self._random.choice((1, 10**6))

    def put(self, packed: Any) -> Lying:
        return Lying("", packed)

    def give(self, hand: Hand, run: int, work: Lying, arguments: Sequence[Any], has_item: bool) -> tuple[Any, Any]:
        order = Order(hand, run, work.value, arguments, has_item, Lying(hand.node))
        return order, order.result

    def ended(self, jobs: Sequence[Order]) -> Sequence[Order]:
        self.most_at_a_time = max(self.most_at_a_time, len(jobs))
        return self._random.sample(jobs, self._random.randint(min(1, len(jobs)), len(jobs)))

    def said(self, job: Order) -> Said:
        if self._left and self._random.random() < 0.2:
            self._left -= 1
            self.lost += 1
            if self._random.random() < 0.25:
                self._here.discard(job.hand.node)
            raise LostWorkerError("it was time")
        if job.hand.node not in self._here:
            raise LostWorkerError("its node is gone")
        values = [self.fetch(one, count=False) if isinstance(one, Lying) else one for one in job.arguments]
        try:
            do, merge = self._opened(job)
            if job.has_item:
                self.done += 1
                values[0] = do(values[0])
            job.result.value = reduce(merge, values)
        except Exception as error:
            return Said(error=pickle.dumps(error))
        return Said()

    def _opened(self, job: Order) -> tuple[Any, Any]:
        key = (job.hand, job.run)
        if key not in self._open:
            work, merge = job.work
            stack = ExitStack()
            self._open[key] = stack, stack.enter_context(work.open()), merge
        return self._open[key][1:]

    def fetch(self, reference: Lying, count: bool = True) -> Any:
        self.fetched += count
        if reference.node not in self._here:
            raise LostThingError
        return reference.value

    def lose(self, hand: Hand) -> None:
        gone = [other for other in self.hands if other is hand or other.node not in self._here]
        self.hands = [other for other in self.hands if other not in gone]

    def close(self, run: int, hands: Sequence[Hand], patience: float) -> Sequence[Said]:
        for hand in hands:
            if (hand, run) in self._open:  # else it has not come to what it was given
                self._open.pop((hand, run))[0].close()
        return []


class LossyEngine:
    """An engine whose workers are a `LossyCrew`; `workers` as many as it has."""

    alone = False

    def __init__(self, seed: int, nodes: int, losses: int) -> None:
        self.crew = LossyCrew(seed, nodes, losses)
        self.workers = 2 * nodes

    def map(self, work: Work[Any, Any], items: Iterable[Any]) -> Generator[Any, None, None]:
        return map_scattered(self.crew, work, items)

    def merge(self, work: Work[Any, Any], items: Iterable[Any], merge: Callable[[Any, Any], Any]) -> Any:
        return merge_scattered(self.crew, work, items, merge)

    def close(self) -> None:
        """There is nobody to let go."""
