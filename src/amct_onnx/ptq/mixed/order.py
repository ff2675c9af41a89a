"""Which layers to leave in float first: what each costs and what noise goes with it, without any model.

The noise of a quantized network is taken as the sum of its parts. A part goes where one of its cures is taken: the
weight of a layer when the layer is in float, a tensor when all layers that hold it are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "int16"]
Wish = tuple[Kind, str]  # how a unit is computed instead of in int8


@dataclass(frozen=True, kw_only=True)
class Part:
    """A share of the noise, and the sets of wishes of which each alone makes it go."""

    noise: float
    cures: tuple[frozenset[Wish], ...]


def cost(wishes: frozenset[Wish], prices: Mapping[Wish, float]) -> float:
    """What wishes cost together: of two for one unit the dearer one counts."""
    dearest: dict[str, float] = {}
    for wish in wishes:
        dearest[wish[1]] = max(dearest.get(wish[1], 0.0), prices[wish])
    return sum(dearest.values())


def noise(wishes: frozenset[Wish], parts: Sequence[Part]) -> float:
    """The noise that is left."""
    return sum(part.noise for part in parts if not any(cure <= wishes for cure in part.cures))


def greedy_path(parts: Sequence[Part], prices: Mapping[Wish, float]) -> list[frozenset[Wish]]:
    """Growing sets of wishes, from none until no noise is left that could go: each step buys most for its cost."""
    path: list[frozenset[Wish]] = [frozenset()]
    moves = list(dict.fromkeys(cure for part in parts for cure in part.cures if all(w in prices for w in cure)))
    while True:
        taken = path[-1]
        spent, left = cost(taken, prices), noise(taken, parts)
        best: tuple[float, frozenset[Wish]] | None = None
        for move in moves:
            wanted = taken | move
            gain = left - noise(wanted, parts)
            if wanted == taken or gain <= 0:
                continue
            value = gain / max(cost(wanted, prices) - spent, 1e-30)
            if best is None or value > best[0]:
                best = value, wanted
        if best is None:
            return path
        path.append(best[1])
