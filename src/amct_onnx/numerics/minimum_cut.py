"""The cheapest way to part things into two sides, where some must be on one and what is parted has its price."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

Vertex = TypeVar("Vertex", bound=Hashable)
_PARTS = 1000  # of a unit of price: whole numbers add up to the same in any order


def sink_side(
    prices: Mapping[tuple[Vertex, Vertex], float], source: Vertex, sink: Vertex
) -> tuple[float, frozenset[Vertex]]:
    """The price of the cheapest cut, and the vertices on the side of the sink: as few as a cheapest cut can have there.

    prices: of having the first of two vertices on the side of the source and the second on that of the sink, at least
    0, infinite where that may not be. They are rounded to a thousandth. Raises ValueError where no cut has a price that
    is finite.

    It is the maximum flow: Ford and Fulkerson, "Maximal Flow through a Network", 1956.
    """
    return _sink_side(tuple(prices.items()), source, sink)


@lru_cache(maxsize=64)  # a recipe asks for the same again and again
def _sink_side(
    prices: tuple[tuple[tuple[Any, Any], float], ...], source: Any, sink: Any
) -> tuple[float, frozenset[Any]]:
    from networkx import DiGraph, NetworkXUnbounded, minimum_cut

    graph: DiGraph[Any] = DiGraph()
    graph.add_nodes_from((source, sink))
    for (first, second), price in prices:
        if math.isinf(price):
            graph.add_edge(first, second)  # an edge without a capacity holds anything
        else:
            graph.add_edge(first, second, capacity=round(_PARTS * price))
    try:
        value, (_, far) = minimum_cut(graph, source, sink)
    except NetworkXUnbounded as error:
        raise ValueError("the source and the sink may not be parted") from error
    return value / _PARTS, frozenset(far)


def price_of_cut(prices: Mapping[tuple[Vertex, Vertex], float], far: Collection[Vertex]) -> float:
    """What it costs to have `far` on the side of the sink and all others on that of the source."""
    parted = frozenset(far)
    return sum(price for (first, second), price in prices.items() if first not in parted and second in parted)
