"""The order in which layers go to float, as arithmetic on shares of noise and prices."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.ptq.mixed.order import Part, Wish, cost, greedy_path, noise

NAMES = "abcd"
FLOATS: list[Wish] = [("float", name) for name in NAMES]
PRICES: dict[Wish, float] = {
    wish: price for name in NAMES for wish, price in ((("float", name), 3.0), (("int16", name), 1.0))
}


def alone(name: str, amount: float) -> Part:
    return Part(noise=amount, cures=(frozenset([("float", name)]),))


def test_what_buys_most_goes_first() -> None:
    path = greedy_path([alone("a", 1.0), alone("b", 8.0), alone("c", 2.0)], {**PRICES, ("float", "c"): 0.5})
    assert [sorted(name for _, name in wishes) for wishes in path] == [[], ["c"], ["b", "c"], ["a", "b", "c"]]


def test_a_tensor_goes_when_all_who_hold_it_do() -> None:
    tensor = Part(noise=10.0, cures=(frozenset([("float", "a"), ("float", "b")]),))
    path = greedy_path([tensor, alone("c", 2.0)], PRICES)
    assert path[1] == {("float", "a"), ("float", "b")}
    assert noise(frozenset([("float", "a")]), [tensor]) == 10.0
    assert noise(path[1], [tensor]) == 0.0


def test_the_cheaper_cure_is_taken_and_the_dearer_one_takes_its_place() -> None:
    activation = Part(noise=10.0, cures=(frozenset([("float", "a")]), frozenset([("int16", "a")])))
    path = greedy_path([activation, alone("a", 1.0)], PRICES)
    assert path == [frozenset(), {("int16", "a")}, {("int16", "a"), ("float", "a")}]
    assert cost(path[2], PRICES) == 3.0


def test_what_makes_no_noise_stays() -> None:
    assert greedy_path([alone("a", 0.0)], PRICES) == [frozenset()]


parts = st.lists(
    st.builds(
        lambda amount, names: Part(noise=amount, cures=(frozenset(("float", name) for name in names),)),
        st.floats(0, 100),
        st.sets(st.sampled_from(NAMES), min_size=1, max_size=3),
    ),
    max_size=6,
)


@given(parts)
def test_a_path_grows_until_no_noise_is_left(found: list[Part]) -> None:
    path = greedy_path(found, PRICES)
    left = [noise(wishes, found) for wishes in path]
    assert all(first < second for first, second in itertools.pairwise(path))
    assert all(first > second for first, second in itertools.pairwise(left))
    assert left[-1] == 0


@given(parts)
def test_the_first_step_is_the_best_move(found: list[Part]) -> None:
    path = greedy_path(found, PRICES)
    whole = noise(frozenset(), found)
    moves = [cure for part in found for cure in part.cures]
    gains = [(whole - noise(move, found)) / cost(move, PRICES) for move in moves]
    if len(path) > 1:
        assert (whole - noise(path[1], found)) / cost(path[1], PRICES) == max(gains)
