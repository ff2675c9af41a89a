"""NUQ: few integer levels for a weight; each iteration helps, the best levels are a bound (amct_formats.md: NUQ)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.rounding import quantize
from amct_onnx.numerics.settings import Nuq
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.nuq import cluster_levels, round_to_levels, solve_levels

VALUES = np.arange(-128, 128)
steps = st.sampled_from([16, 32])
counts = hnp.arrays(np.int64, 256, elements=st.one_of(st.just(0), st.integers(0, 10**6))).filter(np.any)


def distance(counts: np.ndarray, levels: np.ndarray) -> int:
    """Sum of squared distances of the integers to their nearest level, exactly."""
    return int((counts * ((VALUES[:, None] - levels) ** 2).min(axis=1)).sum())


def least_distance(counts: np.ndarray, steps: int) -> int:
    """The least distance that any `steps` integer levels have: dynamic programming over all partitions."""
    values = np.flatnonzero(counts)
    weight, value = counts[values].astype(object), values.astype(object) - 128
    sums = [np.concatenate([[0], np.cumsum(weight * value**power)]) for power in (0, 1, 2)]
    size = len(values)
    cost = np.zeros((size, size + 1), object)  # of one level for values[i:j]
    for i in range(size):
        for j in range(i + 1, size + 1):
            n, s, q = (total[j] - total[i] for total in sums)
            level = (2 * s + n) // (2 * n)
            cost[i, j] = q - 2 * level * s + n * level**2
    best = [cost[0, j] if j else 0 for j in range(size + 1)]
    for _ in range(steps - 1):
        best = [min([best[j], *(best[i] + cost[i, j] for i in range(j))]) for j in range(size + 1)]
    return int(best[size])


@given(counts, steps)
def test_levels_are_few_different_and_in_range(counts: np.ndarray, steps: int) -> None:
    for rounds in range(6):
        levels = solve_levels(counts, Nuq(num_steps=steps, num_of_iteration=rounds))
        assert levels.size == min(steps, np.count_nonzero(counts))
        assert (np.diff(levels) > 0).all()
        assert ((levels >= -128) & (levels <= 127)).all()


@given(counts, steps)
def test_no_iteration_makes_the_distance_larger(counts: np.ndarray, steps: int) -> None:
    found = [distance(counts, solve_levels(counts, Nuq(num_steps=steps, num_of_iteration=n))) for n in range(6)]
    assert found == sorted(found, reverse=True)


@given(hnp.arrays(np.int64, 40, elements=st.integers(0, 1000)), st.integers(0, 5))
def test_the_best_levels_are_a_bound(some: np.ndarray, rounds: int) -> None:
    counts = np.zeros(256, np.int64)
    counts[100:140] = some
    counts[100] += 1
    found = distance(counts, solve_levels(counts, Nuq(num_steps=16, num_of_iteration=rounds)))
    assert least_distance(counts, 16) <= found


def gaussian(seed: int, size: int = 20000) -> np.ndarray:
    """Counts of the integers of a weight as networks have them."""
    weight = np.random.default_rng(seed).normal(0, 1, (1, size)).astype(np.float32)
    return np.bincount(quantize(weight, solve_arq(weight, QSpec(bits=8))).reshape(-1) + 128, minlength=256)


def test_iterations_help_and_the_best_levels_are_a_bound() -> None:
    some = gaussian(0, 400)
    found = [distance(some, solve_levels(some, Nuq(num_steps=16, num_of_iteration=n))) for n in range(6)]
    assert found[5] < found[1] < found[0]
    best = least_distance(some, 16)
    assert best <= found[5] <= 1.1 * best  # measured: 1.005


@pytest.mark.parametrize("steps", [16, 32])
def test_more_levels_are_nearer_and_better_than_even_ones(steps: int) -> None:
    some = gaussian(1)
    occupied = np.flatnonzero(some) - 128
    even = np.rint(np.linspace(occupied[0], occupied[-1], steps)).astype(np.int64)
    mine = distance(some, solve_levels(some, Nuq(num_steps=steps)))
    assert mine < 0.8 * distance(some, even)  # measured: 0.6
    assert distance(some, solve_levels(some, Nuq(num_steps=32))) <= mine


@given(st.sets(st.integers(-128, 127), min_size=1, max_size=16), steps)
def test_few_values_keep_themselves(values: set[int], steps: int) -> None:
    counts = np.bincount(np.array(sorted(values)) + 128, minlength=256)
    assert solve_levels(counts, Nuq(num_steps=steps)).tolist() == sorted(values)


def test_the_weight_takes_its_levels_only_and_the_nearest_ones() -> None:
    weight = np.random.default_rng(2).normal(0, 1, (6, 300)).astype(np.float32)
    params = solve_arq(weight, QSpec(bits=8, channel_axis=0))
    cluster = cluster_levels(weight, params, Nuq(num_steps=16))
    clustered = round_to_levels(weight, params, cluster)
    assert len(cluster) == 16
    assert clustered.dtype == np.float32
    uniform, integers = quantize(weight, params), quantize(clustered, params)
    assert set(np.unique(integers)) <= set(cluster)
    nearest = np.abs(uniform[..., None] - np.array(cluster)).min(axis=-1)
    np.testing.assert_array_equal(np.abs(uniform - integers), nearest)
    np.testing.assert_array_equal(clustered, integers.astype(np.float32) * params.scale.reshape(-1, 1))


def test_a_weight_of_few_values_is_not_changed_and_fills_its_cluster_up() -> None:
    weight = np.array([[-1.0, 0.0, 0.5, 1.0]], np.float32)
    params = solve_arq(weight, QSpec(bits=8))
    cluster = cluster_levels(weight, params, Nuq(num_steps=16))
    clustered = round_to_levels(weight, params, cluster)
    np.testing.assert_array_equal(quantize(clustered, params), quantize(weight, params))
    assert cluster == (-127, 0, 64, *[127] * 13)
