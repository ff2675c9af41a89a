"""An engine that is as far away as an engine can be, and stays in this process: all that it gets and gives is pickled,
nothing of this call's context is known there, and items are worked on in some other order."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Generator, Iterable
from contextvars import Context
from typing import Any, TypeVar

from amct_onnx.engine.engine import Work, merged

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def sent(value: Any) -> Any:
    """A value as another process gets it."""
    return pickle.loads(pickle.dumps(value, protocol=5))


class FarEngine:
    """Works on items here, in an order drawn from `seed`. works: what it was given, by their classes."""

    alone = False

    def __init__(self, workers: int = 3, seed: int = 0) -> None:
        self.workers, self.works = workers, list[str]()
        self._random = random.Random(seed)

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        self.works.append(type(getattr(work, "work", work)).__name__)
        numbered = list(enumerate(items))
        self._random.shuffle(numbered)
        found = Context().run(self._work, sent(work), [(number, sent(item)) for number, item in numbered])
        for _, outcome in sorted(found, key=lambda pair: pair[0]):
            yield outcome

    def _work(self, work: Any, items: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        with work.open() as do:
            return [(number, sent(Context().run(do, item))) for number, item in items]

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        return merged(self, work, items, sent(merge))

    def close(self) -> None:
        """Nobody is there to be let go."""
