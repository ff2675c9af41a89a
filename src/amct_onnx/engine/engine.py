"""Who does work that comes in parts: this process, several on this machine, or a cluster; and what all of them promise.

A `Work` is what a worker needs once: a model, settings. It travels once to each node. Its items are small, and each has
one outcome, which depends on the item alone. So it does not matter who works on an item, in which order, or how often:
a worker that is lost on the way is replaced, and its items are worked on again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Item_contra = TypeVar("Item_contra", contravariant=True)
Outcome_co = TypeVar("Outcome_co", covariant=True)


class Work(Protocol[Item_contra, Outcome_co]):
    """Something that is done to items. It can be pickled, and so can its items and outcomes."""

    def open(self) -> AbstractContextManager[Callable[[Item_contra], Outcome_co]]:
        """What a worker does to an item, as long as the block runs. A worker opens it once, for all items that it
        gets: what is dear to make, as a session of ONNX Runtime, is made here. Items come one at a time."""
        ...


class Engine(Protocol):
    """Works on items. workers: how many are worked on at a time. alone: this process does it all."""

    workers: int
    alone: bool

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        """The outcome of each item, in the order of `items`, which are asked for as workers become free: few wait.

        What an item raises is raised here, and what is behind it is dropped. Raises EngineError for an item with which
        workers are lost again and again.
        """
        ...

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        """All outcomes merged to one, None without items. `merge` is associative and commutative and can be pickled:
        outcomes are merged as they come, where they are. Raises as `map` does."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class LocalEngine:
    """Works in this process, on one item after the other: what an item does may have threads of its own."""

    workers, alone = 1, True

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        with work.open() as do:
            for item in items:
                yield do(item)

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        return merged(self, work, items, merge)

    def close(self) -> None:
        """There is nobody to let go."""


HERE = LocalEngine()


def merged(
    engine: Engine, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
) -> Outcome | None:
    """The outcomes of `engine.map`, merged here."""
    whole: Outcome | None = None
    with closing(engine.map(work, items)) as outcomes:
        for outcome in outcomes:
            whole = outcome if whole is None else merge(whole, outcome)
    return whole
