"""Which nodes to leave in float first: what each costs and what noise goes with it, without any model.

The noise of a quantized network is taken as the sum of its parts. A part goes where one of its cures is taken: the
weight of a layer when the layer is in float, a tensor when all units that hold it are. A unit that follows goes to
float with the first tensor that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["float", "int16"]
Wish = tuple[Kind, str]  # how a unit is computed instead of in int8
Wishes = frozenset[Wish]

_LEAST = 0.02  # of the noise that is left: what buys less waits for the end, however little it costs
_ENOUGH = 1e-4  # of all noise: nobody asks for a step behind that, but for the last one
NONE: Wishes = frozenset()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A share of the noise, and the sets of wishes of which each alone makes it go."""

    noise: float
    cures: tuple[Wishes, ...]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The parts of the noise, and the prices of wishes. follows: of each unit that follows, for each tensor that it
    reads, the units that hold that tensor."""

    parts: Sequence[Part]
    prices: Mapping[Wish, float]
    follows: Mapping[str, Sequence[Wishes]] = field(default_factory=dict)

    def closed(self, wishes: Wishes) -> Wishes:
        """These wishes and those for the units that go to float with them."""
        while True:
            wanted: list[tuple[Wish, Sequence[Wishes]]] = [(("float", unit), own) for unit, own in self.follows.items()]
            more = {wish for wish, own in wanted if wish not in wishes and any(holders <= wishes for holders in own)}
            if not more:
                return wishes
            wishes |= more

    def cost(self, wishes: Wishes) -> float:
        """What wishes cost together: of two for one unit the dearer one counts."""
        dearest: dict[str, float] = {}
        for wish in wishes:
            dearest[wish[1]] = max(dearest.get(wish[1], 0.0), self.prices[wish])
        return math.fsum(dearest.values())  # exact, in whatever order a set has them

    def noise(self, wishes: Wishes) -> float:
        """The noise that is left."""
        return sum(part.noise for part in self._left(wishes))

    def path(self) -> list[Wishes]:
        """Growing sets of wishes, from none until no noise is left that could go: each step buys most for its cost.

        A step of several wishes is taken one by one where a part of it buys something, too.
        """
        path, moves = [NONE], self._moves()
        whole = self.noise(NONE)
        everything = self.closed(frozenset(wish for move in moves for wish in move))
        while (best := self._best_move(path[-1], moves)) is not None:
            path += [*self._between(path[-1], best), best]
            if self.noise(best) <= _ENOUGH * whole:
                break
        if self.noise(path[-1]) > self.noise(everything):
            path.append(everything)
        return path

    def cheapest(self, limit: float, known: Iterable[Wishes], behind: Wishes) -> Wishes:
        """The cheapest set that leaves at most `limit` of noise: one of `known`, or `behind` and one more move, each
        without the wishes that are not needed for it."""
        starts = [*known, *(self.closed(behind | move) for move in self._moves())]
        found = [self._trimmed(wishes, limit) for wishes in starts if self.noise(wishes) <= limit]
        return min(found, key=lambda wishes: (self.cost(wishes), self.noise(wishes), sorted(wishes)))

    def _moves(self) -> list[Wishes]:
        priced = (cure for part in self.parts for cure in part.cures if all(wish in self.prices for wish in cure))
        return list(dict.fromkeys(map(self.closed, priced)))

    def _left(self, wishes: Wishes) -> list[Part]:
        return [part for part in self.parts if part.noise and not any(cure <= wishes for cure in part.cures)]

    def _best_move(self, taken: Wishes, moves: Iterable[Wishes]) -> Wishes | None:
        """`taken` and what buys most for its cost; what buys next to nothing only if nothing else does."""
        left, spent = self._left(taken), self.cost(taken)
        whole = sum(part.noise for part in left)
        best: tuple[bool, float, Wishes] | None = None
        for move in moves:
            if move <= taken:
                continue
            wanted = self.closed(taken | move)
            gain = sum(part.noise for part in left if any(cure <= wanted for cure in part.cures))
            value = gain >= _LEAST * whole, gain / max(self.cost(wanted) - spent, 1e-30)
            if gain > 0 and (best is None or value > best[:2]):
                best = *value, wanted
        return None if best is None else best[2]

    def _between(self, low: Wishes, high: Wishes) -> Iterator[Wishes]:
        """Sets between two, each with one wish more that buys something."""
        while True:
            steps = {self.closed(low | {wish}) for wish in high - low}
            left = self.noise(low)
            better = [step for step in steps if step < high and self.noise(step) < left]
            if not better:
                return
            low = min(better, key=lambda step: (self.noise(step), self.cost(step), sorted(step)))
            yield low

    def _trimmed(self, wishes: Wishes, limit: float) -> Wishes:
        for wish in sorted(wishes, key=lambda wish: (-self.prices[wish], wish)):
            less = self.closed(wishes - {wish})
            if less < wishes and self.noise(less) <= limit:
                wishes = less
        return wishes
