"""HFMG against a plain implementation (amct_formats.md: HFMG): raw batches, uniform bins and one range a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.activations.hfmg import candidate_ranges, range_losses, solve_hfmg, uniform_counts
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.grid import FLT_EPSILON, QParams, QSpec
from amct_onnx.numerics.settings import ActivationSettings, Hfmg
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

Array = np.ndarray[Any, np.dtype[np.float64]]

# AMCT splits the counts of old bins in proportion at every batch, here they are split once and at the end.
SCALE_TOLERANCE = 0.02
# The closed form subtracts moments: of float64's 1e-16 up to eight digits go.
LOSS_TOLERANCE = 1e-8
ASYMMETRIC, SYMMETRIC = QSpec(symmetric=False), QSpec(symmetric=True)


# The specification


def _histogram(x: Array, low: float, high: float, bins: int) -> Array:
    if high == low:
        counts = np.zeros(bins)
        counts[bins // 2] = x.size
        return counts
    index = np.minimum(np.floor((x - low) / ((high - low) / bins)).astype(int), bins - 1)
    return np.bincount(index, minlength=bins).astype(np.float64)


def _rebinned(counts: Array, old: tuple[float, float], new: tuple[float, float], bins: int) -> Array:
    result = np.zeros(bins)
    old_width, new_width = (old[1] - old[0]) / bins, (new[1] - new[0]) / bins
    for i, count in enumerate(counts):
        begin = (old[0] + i * old_width - new[0]) / new_width
        end = begin + old_width / new_width
        first, last = min(int(begin), bins - 1), min(int(end), bins - 1)
        if first == last:
            result[first] += count
        else:
            lower = math.floor(count * (last - begin) / (end - begin))
            result[first] += lower
            result[last] += count - lower
    return result


def _collect(batches: list[Array], bins: int) -> tuple[Array, float, float]:
    low, high = float(batches[0].min()), float(batches[0].max())
    counts = _histogram(batches[0], low, high, bins)
    for batch in batches[1:]:
        merged = min(low, float(batch.min())), max(high, float(batch.max()))
        if merged != (low, high):
            counts = _rebinned(counts, (low, high), merged, bins)
        low, high = merged
        counts += _histogram(batch, low, high, bins)
    return counts, low, high


def _search(counts: Array) -> list[tuple[int, int]]:
    step = max(1, math.ceil(counts.sum() / 100000))
    left, right = 0, counts.size - 1
    found = [(left, right)]
    while right - left > math.ceil(counts.size / 4):
        tl, passed = left, 0.0
        while tl < right and passed < step:
            passed += counts[tl]
            tl += 1
        tr, passed = right, 0.0
        while tr > left and passed < step:
            passed += counts[tr]
            tr -= 1
        if right - tr >= tl - left:
            right = tr
        else:
            left = tl
        found.append((left, right))
    return found


def _loss(counts: Array, left: int, right: int, destinations: int) -> float:
    """Each source bin is cut at the borders of the destination bins, and the pieces add up; in units of a bin width."""
    width = (right - left + 1) / destinations
    edges = np.union1d(np.arange(counts.size + 1.0) - left, width * np.arange(1, destinations))
    start, stop = edges[:-1], edges[1:]
    middle = (start + stop) / 2
    centre = (np.clip(np.floor(middle / width), 0, destinations - 1) + 0.5) * width
    pieces = ((stop - centre) ** 3 - (start - centre) ** 3) / 3
    return float(np.sum(counts[np.floor(middle).astype(int) + left] * pieces))


def _reference(batches: list[Array], bins: int, spec: QSpec) -> tuple[float, int]:
    counts, low, high = _collect(batches, bins)
    width = (high - low) / bins
    ranges = _search(counts)
    losses = [_loss(counts, left, right, 2**spec.bits) for left, right in ranges]
    left, right = ranges[int(np.argmin(losses))]
    clip_min, clip_max = low + left * width, low + (right + 1) * width
    if spec.symmetric:
        v = clip_max if abs(clip_max) > abs(clip_min) else clip_min
        return (v / 127 if v > 0 else -v / 128), 0
    clip_min, clip_max = min(clip_min, 0.0), max(clip_max, 0.0)
    scale = (clip_max - clip_min) / 255
    return scale, -128 - round(clip_min / scale)


def _batches(name: str, n: int = 4000) -> list[Array]:
    rng = np.random.default_rng(list(name.encode()))
    batches = {
        "normal": lambda: [rng.normal(0, 1, n) for _ in range(3)],
        "growing": lambda: [rng.normal(0, s, 5 * n) for s in (1, 2, 4)],
        "growing_few": lambda: [rng.normal(0, s, n) for s in (1, 2, 4)],
        "relu": lambda: [np.maximum(rng.normal(0, 1, n), 0) for _ in range(2)],
        "laplace": lambda: [rng.laplace(1, 1, n) for _ in range(2)],
        "heavy_tail": lambda: [rng.standard_t(3, n) for _ in range(2)],
        "outliers": lambda: [np.concatenate([rng.normal(0, 1, n), rng.uniform(-30, 30, 5)])],
        "uniform": lambda: [rng.uniform(-1, 3, n)],
        "positive": lambda: [rng.uniform(2, 3, n)],
        "negative": lambda: [-rng.gamma(2, 1, n)],
    }[name]()
    return [batch.astype(np.float32).astype(np.float64) for batch in batches]


@pytest.mark.parametrize("spec", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(
    "name",
    ["normal", "growing", "relu", "laplace", "heavy_tail", "outliers", "uniform", "positive", "negative"],
)
def test_scale_of_the_specification_on_raw_batches(name: str, spec: QSpec) -> None:
    batches = _batches(name)
    statistic = DyadicHistogram.empty()
    for batch in batches:
        statistic = statistic.merge(DyadicHistogram.of(batch.astype(np.float32)))
    scale, offset = _reference(batches, 1024, spec)
    params = solve_hfmg(statistic, spec, Hfmg(num_of_bins=1024))
    assert params.scale[0] == pytest.approx(scale, rel=SCALE_TOLERANCE)
    assert abs(int(params.zero_point[0]) - offset) <= 255 * SCALE_TOLERANCE


@pytest.mark.parametrize("spec", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])
def test_splitting_a_run_into_batches_changes_nothing(spec: QSpec) -> None:
    """AMCT moves lone elements of early batches when the range grows; here it is as if all had come in one batch."""
    batches = _batches("growing_few")
    statistic = DyadicHistogram.empty()
    for batch in batches:
        statistic = statistic.merge(DyadicHistogram.of(batch.astype(np.float32)))
    scale, offset = _reference([np.concatenate(batches)], 1024, spec)
    params = solve_hfmg(statistic, spec, Hfmg(num_of_bins=1024))
    assert params.scale[0] == pytest.approx(scale, rel=SCALE_TOLERANCE)
    assert abs(int(params.zero_point[0]) - offset) <= 255 * SCALE_TOLERANCE


@st.composite
def _counts_and_range(draw: st.DrawFn) -> tuple[Array, int, int, int]:
    bins = draw(st.sampled_from([16, 64, 1024]))
    counts = draw(hnp.arrays(np.float64, bins, elements=st.integers(0, 1000) | st.just(0)))
    left = draw(st.integers(0, bins - 1))
    return counts, left, draw(st.integers(left, bins - 1)), draw(st.sampled_from([4, 16, 256]))


@settings(max_examples=examples(100))
@given(_counts_and_range())
def test_closed_form_of_the_loss(case: tuple[Array, int, int, int]) -> None:
    counts, left, right, destinations = case
    got = range_losses(counts, np.asarray([[left, right]], np.float64), destinations)
    # Relative to what the moments add up to before they cancel.
    scale = counts.sum() * counts.size**2
    # With very many destinations those that a bin's edge cuts count like the others.
    rel = (right - left + 1) / destinations if destinations >= 8 * counts.size else LOSS_TOLERANCE
    assert got[0] == pytest.approx(_loss(counts, left, right, destinations), rel=rel, abs=1e-14 * scale)


@pytest.mark.parametrize("bits", [8, 16])
def test_sixteen_bits_are_finer_than_eight(bits: int) -> None:
    """The range is that of the data, and the error that of rounding: the scale squared over twelve."""
    x = np.random.default_rng(3).normal(0, 1, 50_000).astype(np.float32)
    params = solve_hfmg(DyadicHistogram.of(x), QSpec(bits=bits, symmetric=False), Hfmg(num_of_bins=8192))
    q = np.clip(np.rint(x / params.scale[0]) + params.zero_point[0], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    error = np.mean(((q - params.zero_point[0]) * params.scale[0] - x.astype(np.float64)) ** 2)
    assert error == pytest.approx(float(params.scale[0]) ** 2 / 12, rel=0.1)
    assert params.scale[0] * (2**bits - 1) == pytest.approx(x.max() - x.min(), rel=0.2)


def test_losses_of_many_ranges_at_once() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 256).astype(np.float64)
    ranges = [(0, 255), (3, 200), (100, 101), (0, 0), (255, 255)]
    got = range_losses(counts, np.asarray(ranges, np.float64), 16)
    np.testing.assert_allclose(got, [_loss(counts, *pair, 16) for pair in ranges], rtol=LOSS_TOLERANCE)


@settings(max_examples=examples(100))
@given(hnp.arrays(np.float64, st.sampled_from([16, 40, 128]), elements=st.integers(0, 5) | st.integers(0, 10**6)))
def test_ranges_are_those_of_the_walk(counts: Array) -> None:
    if counts.sum() == 0:
        return  # a histogram has at least one element
    walked = [pair for pair in _search(counts) if pair[1] > pair[0]]
    assert candidate_ranges(counts)[: len(walked)] == walked


def test_rounding_of_the_total_does_not_change_the_step() -> None:
    """100000 elements take steps of one; a sum of fractions that ends a hair above must not take steps of two."""
    counts = np.full(1024, 100000 / 1024)
    counts[0] += 1e-9
    assert counts.sum() > 100000
    assert candidate_ranges(counts) == _search(np.full(1024, 100000 / 1024))


@settings(max_examples=examples(100))
@given(
    hnp.arrays(np.float32, st.integers(2, 200), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([1024, 4096]),
)
def test_uniform_counts_conserve_mass(x: np.ndarray, bins: int) -> None:
    statistic = DyadicHistogram.of(x)
    if statistic.minimum == statistic.maximum:
        return
    counts = uniform_counts(statistic, bins)
    assert counts.shape == (bins,)
    assert (counts >= 0).all()
    assert counts.sum() == pytest.approx(x.size, rel=1e-12)
    # Up to any edge of the new grid the mass is right, but for the elements of the bin that the edge cuts.
    edges = np.linspace(statistic.minimum, statistic.maximum, bins + 1)
    lower, upper = statistic.edges()
    assert (np.diff(lower) >= 0).all()
    assert (np.diff(upper) >= 0).all()
    first, behind = np.searchsorted(upper, edges[1:], "left"), np.searchsorted(lower, edges[1:], "right")
    below = np.concatenate([[0], np.cumsum(statistic.counts)])
    cut = below[np.maximum(behind, first)] - below[first]
    elements = np.searchsorted(np.sort(x), edges[1:], "right")
    assert (np.abs(np.cumsum(counts) - elements) <= cut + 1e-6).all()


def test_uniform_counts_of_a_uniform_sample_are_equal() -> None:
    x = np.linspace(-3, 5, 1_000_001).astype(np.float32)
    counts = uniform_counts(DyadicHistogram.of(x), 1024)
    # One element more or less at either side of a dyadic bin (0.5 % of its 244 elements at 1/2048 of the span).
    np.testing.assert_allclose(counts, x.size / 1024, rtol=0.005)


@pytest.mark.parametrize(
    ("value", "spec", "scale", "zero_point"),
    [
        (0.0, ASYMMETRIC, 1.0, -128),
        (0.0, SYMMETRIC, 1.0, 0),
        (5.1, ASYMMETRIC, 5.1 / 255, -128),
        (-5.1, ASYMMETRIC, 5.1 / 255, 127),
        (5.1, SYMMETRIC, 5.1 / 127, 0),
        (-5.1, SYMMETRIC, 5.1 / 128, 0),
    ],
)
def test_constants(value: float, spec: QSpec, scale: float, zero_point: int) -> None:
    params = solve_hfmg(DyadicHistogram.of(np.full(10, value, np.float32)), spec, Hfmg())
    assert params.scale[0] == pytest.approx(scale, rel=1e-6)
    assert params.zero_point.tolist() == [zero_point]


def test_outliers_are_clipped() -> None:
    """What the search is for: a few far elements do not take the grid from all the others."""
    x = np.concatenate([np.random.default_rng(2).normal(0, 1, 500_000), [12.0, -12.0]]).astype(np.float32)
    params = solve_hfmg(DyadicHistogram.of(x), ASYMMETRIC, Hfmg())
    assert params.scale[0] < 0.6 * 24 / 255
    whole = QParams(scale=np.float32(24 / 255), zero_point=np.int32(0), spec=ASYMMETRIC)
    assert _error(x, params) < 0.6 * _error(x, whole)


def test_the_whole_range_where_both_ends_are_heavy() -> None:
    """Any narrower range would clip half of all elements: both outermost bins belong to the result."""
    x = np.concatenate([np.full(1000, -1.0), np.full(1000, 3.0), np.linspace(-1, 3, 50)]).astype(np.float32)
    params = solve_hfmg(DyadicHistogram.of(x), ASYMMETRIC, Hfmg(num_of_bins=1024))
    assert params.scale[0] == pytest.approx(4 / 255, rel=1e-6)
    assert params.zero_point.tolist() == [-64]


@pytest.mark.parametrize("sign", [1, -1])
def test_mass_at_the_extreme_is_not_lost(sign: int) -> None:
    """Half of all elements at -1, which is on the dyadic grid: clipping them would be the worst choice."""
    rest = np.random.default_rng(4).normal(0, 0.2, 10_000).clip(-0.9, 0.9)
    x = (sign * np.concatenate([np.full(10_000, -1.0), rest])).astype(np.float32)
    params = solve_hfmg(DyadicHistogram.of(x), ASYMMETRIC, Hfmg())
    assert _error(x, params) < float(params.scale[0]) ** 2 / 4


def _error(x: np.ndarray, params: QParams) -> float:
    scale, zero = float(params.scale[0]), int(params.zero_point[0])
    q = np.clip(np.rint(x / scale) + zero, -128, 127)
    return float(np.mean(((q - zero) * scale - x) ** 2))


@settings(max_examples=examples(50))
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**28), 2.0**28, width=32)),
    st.booleans(),
    st.sampled_from([1024, 2048, 4096, 8192]),
)
def test_parameters_hold_their_invariants(x: np.ndarray, asymmetric: bool, bins: int) -> None:
    activation = ActivationSettings(asymmetric=asymmetric, solver=Hfmg(num_of_bins=bins))
    if 0 < float(np.abs(x).max()) < FLT_EPSILON * 256:  # refused when everything would round to zero
        return
    params = solve_activation(DyadicHistogram.of(x), activation)
    assert params.spec == QSpec(symmetric=not asymmetric)
    assert params.scale.shape == params.zero_point.shape == (1,)
    assert FLT_EPSILON <= params.scale[0] <= 1 / FLT_EPSILON
    # Never more than the range with zero, which is where the search begins.
    span = max(float(x.max()), 0.0) - min(float(x.min()), 0.0)
    assert params.scale[0] == 1.0 or params.scale[0] <= span / 127 * (1 + 1e-6)
