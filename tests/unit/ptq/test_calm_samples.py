"""Groups of samples: what they hold together, and which of them are the calmest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.ptq.recipe.calm_samples import CALM, SampleGroups


def held(values: np.ndarray) -> dict[str, DyadicHistogram]:
    """One group: a tensor of these values, one of ten times as much, and one of zeros."""
    tensors = {"a": values, "b": 10 * values, "zero": np.zeros(3)}
    return {name: DyadicHistogram.of(array.astype(np.float32)) for name, array in tensors.items()}


def together(arrays: list[np.ndarray]) -> dict[str, DyadicHistogram]:
    return {**held(np.concatenate(arrays)), "zero": DyadicHistogram.of(np.zeros(3 * len(arrays), np.float32))}


def groups_of(arrays: list[np.ndarray], first: int) -> SampleGroups:
    groups = SampleGroups(first)
    for array in arrays:
        groups.add(held(array))
    return groups


sizes = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


@given(sizes=sizes, first=st.integers(1, 4), seed=st.integers(0, 99))
def test_they_hold_what_their_values_hold_together(sizes: list[float], first: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = [size * random.standard_normal(20) for size in sizes]
    groups = groups_of(arrays, first)
    others = random.standard_normal(5)
    groups.add_others(held(others))
    assert groups.first == together(arrays[:first])
    assert groups.all == together([*arrays, others])
    order, calm = groups.calmest()
    if order:
        reaches = [float(np.abs(array).max()) for array in arrays]
        assert sorted(order) == list(range(len(sizes)))
        assert [reaches[group] for group in order] == pytest.approx(sorted(reaches))
        assert calm == together([arrays[group] for group in order[:CALM]])


@pytest.mark.parametrize(("sizes", "calmest"), [((8, 1, 1, 2), (1, 2, 3, 0)), ((1, 8, 2, 1), (0, 3, 2, 1))])
def test_the_calmest_come_first(sizes: tuple[int, ...], calmest: tuple[int, ...]) -> None:
    order, _ = groups_of([size * np.array([-0.5, 1.0]) for size in sizes], 2).calmest()
    assert order == calmest


@pytest.mark.parametrize("sizes", [(1, 1, 8, 8), (1.1, 1.1, 1, 1), (3, 3), (5,)])
def test_those_that_came_first_stay_where_they_reach_hardly_further(sizes: tuple[float, ...]) -> None:
    assert groups_of([size * np.array([-0.5, 1.0]) for size in sizes], 2).calmest() == ((), {})


def test_less_than_a_group_is_none_of_the_calmest() -> None:
    groups = groups_of([size * np.ones(4) for size in (8, 8, 1, 1)], 2)
    groups.add(held(np.array([0.01])), whole=False)
    order, calm = groups.calmest()
    assert order == (2, 3, 0, 1)
    assert calm["a"].maximum == 1
    assert groups.all["a"].total == 17


def test_a_tensor_without_finite_magnitudes_says_nothing() -> None:
    groups = groups_of([np.ones(4)], 1)
    groups.add({name: DyadicHistogram.not_finite() for name in ("a", "b", "zero")})
    assert groups.calmest() == ((), {})
    assert not groups.all["a"].is_finite
