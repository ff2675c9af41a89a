"""The order in which nodes go to float, as arithmetic on shares of noise and prices."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.ptq.mixed.order import NONE, Order, Part, Wish, Wishes

NAMES = "abcd"
PRICES: dict[Wish, float] = {
    wish: price for name in NAMES for wish, price in ((("float", name), 3.0), (("int16", name), 1.0))
}


def floats(*names: str) -> Wishes:
    return frozenset(("float", name) for name in names)


def alone(name: str, amount: float) -> Part:
    return Part(noise=amount, cures=(floats(name),))


def names_of(path: list[Wishes]) -> list[list[str]]:
    return [sorted(name for _, name in wishes) for wishes in path]


def test_what_buys_most_goes_first() -> None:
    order = Order(parts=[alone("a", 1.0), alone("b", 8.0), alone("c", 2.0)], prices={**PRICES, ("float", "c"): 0.5})
    assert names_of(order.path()) == [[], ["c"], ["b", "c"], ["a", "b", "c"]]


def test_what_buys_next_to_nothing_waits_however_cheap_it_is() -> None:
    order = Order(parts=[alone("a", 0.01), alone("b", 1.0), alone("c", 2.0)], prices={**PRICES, ("float", "a"): 1e-6})
    assert names_of(order.path()) == [[], ["c"], ["b", "c"], ["a", "b", "c"]]


def test_prices_add_up_to_the_same_in_every_order() -> None:
    """A set has its members in another order in each process."""
    prices: dict[Wish, float] = {("float", str(number)): 10.0**-number + 0.1 for number in range(30)}
    order, shuffled = Order(parts=[], prices=prices), random.Random(0)
    orders = [shuffled.sample(list(prices), len(prices)) for _ in range(50)]
    assert len({order.cost(wishes) for wishes in orders}) == 1  # type: ignore[arg-type]


def test_a_tensor_goes_when_all_who_hold_it_do() -> None:
    tensor = Part(noise=10.0, cures=(floats("a", "b"),))
    order = Order(parts=[tensor, alone("c", 2.0)], prices=PRICES)
    assert order.path()[1] == floats("a", "b")
    assert order.noise(floats("a")) == 12.0
    assert order.noise(order.path()[1]) == 2.0


def test_a_step_of_several_nodes_is_taken_one_by_one_where_that_buys_something() -> None:
    shared = Part(noise=10.0, cures=(floats("a", "b"),))
    order = Order(parts=[shared, alone("a", 1.0), alone("b", 2.0)], prices=PRICES)
    assert order.path() == [NONE, floats("b"), floats("a", "b")]


def test_what_follows_goes_with_the_first_tensor_that_it_reads() -> None:
    """b reads what a and c hold, d what b holds; all are paid for."""
    follows = {"b": [floats("a", "c"), floats("a")], "d": [floats("b")]}
    order = Order(parts=[alone("a", 5.0), alone("b", 3.0), alone("c", 1.0)], prices=PRICES, follows=follows)
    assert order.closed(floats("c")) == floats("c")
    assert order.closed(floats("a")) == floats("a", "b", "d")
    first = next(wishes for wishes in order.path() if ("float", "a") in wishes)
    assert first >= floats("a", "b", "d")
    assert order.cost(order.closed(floats("a"))) == 9.0


def test_the_cheaper_cure_is_taken_and_the_dearer_one_takes_its_place() -> None:
    activation = Part(noise=10.0, cures=(floats("a"), frozenset([("int16", "a")])))
    order = Order(parts=[activation, alone("a", 1.0)], prices=PRICES)
    path = order.path()
    assert path == [NONE, {("int16", "a")}, {("int16", "a"), ("float", "a")}]
    assert order.cost(path[2]) == 3.0


def test_what_makes_no_noise_stays() -> None:
    assert Order(parts=[alone("a", 0.0)], prices=PRICES).path() == [NONE]


def test_the_cheapest_set_leaves_out_what_is_not_needed() -> None:
    """The order buys cheap nodes first; once it has bought the dear one, they are no longer needed."""
    prices: dict[Wish, float] = {("float", "a"): 1.0, ("float", "b"): 1.0, ("float", "c"): 10.0}
    order = Order(parts=[alone("a", 2.0), alone("b", 2.0), alone("c", 15.0)], prices=prices)
    path = order.path()
    assert path[2:] == [floats("a", "b"), floats("a", "b", "c")]
    assert order.cheapest(4.0, [path[3]], path[2]) == floats("c")


parts = st.lists(
    st.builds(
        lambda amount, names: Part(noise=amount, cures=(frozenset(("float", name) for name in names),)),
        st.floats(0, 100),
        st.sets(st.sampled_from(NAMES), min_size=1, max_size=3),
    ),
    max_size=6,
)


@given(parts)
def test_a_path_grows_until_hardly_any_noise_is_left(found: list[Part]) -> None:
    order = Order(parts=found, prices=PRICES)
    path = order.path()
    left = [order.noise(wishes) for wishes in path]
    assert all(first < second for first, second in itertools.pairwise(path))
    assert all(first > second for first, second in itertools.pairwise(left))
    assert left[-1] <= 1e-9 * left[0]


@given(parts, st.floats(0, 1))
def test_a_cheaper_set_leaves_no_more_noise_than_it_may(found: list[Part], share: float) -> None:
    order = Order(parts=found, prices=PRICES)
    path = order.path()
    if len(path) > 1:
        low, high = order.noise(path[-2]), order.noise(path[-1])
        limit = high + share * (low - high)
        cheaper = order.cheapest(limit, [path[-1]], path[-2])
        assert order.noise(cheaper) <= limit
        assert order.cost(cheaper) <= order.cost(path[-1])
