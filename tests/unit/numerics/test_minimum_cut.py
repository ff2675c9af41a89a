"""The cheapest cut, beside all cuts that there are."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.numerics.minimum_cut import price_of_cut, sink_side

INNER = ("a", "b", "c", "d", "e")
PAIRS = [(first, second) for first in ("s", *INNER) for second in (*INNER, "t") if first != second]
PRICES = st.dictionaries(
    st.sampled_from(PAIRS), st.one_of(st.integers(0, 50_000).map(lambda n: n / 1000), st.just(math.inf)), max_size=18
)
TINY = 1e-6  # sums of thousandths


def all_cuts(prices: dict[tuple[str, str], float]) -> dict[frozenset[str], float]:
    """The price of each cut, by the vertices on the side of t."""
    known = sorted({vertex for pair in prices for vertex in pair} - {"s", "t"})
    sides = [frozenset({"t", *side}) for count in range(len(known) + 1) for side in combinations(known, count)]
    return {side: price_of_cut(prices, side) for side in sides}


@given(PRICES)
def test_no_cut_is_cheaper_and_no_cheapest_cut_has_fewer_on_the_far_side(prices: dict[tuple[str, str], float]) -> None:
    cuts = all_cuts(prices)
    least = min(cuts.values())
    if math.isinf(least):
        with pytest.raises(ValueError, match="may not be parted"):
            sink_side(prices, "s", "t")
        return
    price, far = sink_side(prices, "s", "t")
    assert price == pytest.approx(least, abs=TINY)
    cheapest = [side for side, cost in cuts.items() if cost <= least + TINY]
    assert far in cheapest
    assert all(far <= side for side in cheapest)


@given(PRICES, st.randoms())
def test_the_order_of_prices_changes_nothing(prices: dict[tuple[str, str], float], chance: object) -> None:
    pairs = list(prices.items())
    chance.shuffle(pairs)  # type: ignore[attr-defined]
    if not math.isinf(min(all_cuts(prices).values())):
        assert sink_side(dict(pairs), "s", "t") == sink_side(prices, "s", "t")
