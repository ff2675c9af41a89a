"""Laws of the dyadic histogram: a commutative monoid, exact whatever the order and the sharding of the data."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.errors import CalibrationError
from amct_onnx.numerics.statistics.accumulator import new_accumulator
from amct_onnx.numerics.statistics.histogram import MAX_BINS, DyadicHistogram

Floats = np.ndarray[Any, np.dtype[np.float32]]

_ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
_AWKWARD = st.sampled_from(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, -1.1754944e-38, 3.4028235e38, -3.4028235e38, 1e38, 1.0, -1.0, 2.0**-120]
).map(lambda value: float(np.float32(value)))


def _arrays(elements: st.SearchStrategy[float], size: int = 40) -> st.SearchStrategy[Floats]:
    return hnp.arrays(np.float32, st.integers(1, size), elements=elements)


@st.composite
def _around_an_offset(draw: st.DrawFn) -> Floats:
    """Neighbouring floats far away from zero: the range is tiny and its position large."""
    start = np.float32(draw(st.sampled_from([1.0, -1.0, 3e-38, 1e6, -16777216.0, 1e38])))
    steps = draw(hnp.arrays(np.int32, st.integers(1, 40), elements=st.integers(0, 40)))
    return (start.view(np.int32) + steps).astype(np.int32).view(np.float32)


@st.composite
def _gaussian(draw: st.DrawFn) -> Floats:
    """Enough values to fill many bins, skewed and with outliers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(draw(st.floats(-5, 5)), 10.0 ** draw(st.integers(-6, 6)), draw(st.integers(1, 3000)))
    if draw(st.booleans()):
        x[0] *= 1000
    return x.astype(np.float32)


_CONSTANT = st.tuples(_ANY, st.integers(1, 20)).map(lambda pair: np.full(pair[1], pair[0], np.float32))
_HALVES = hnp.arrays(
    np.float16, st.integers(1, 40), elements=st.floats(width=16, allow_nan=False, allow_infinity=False)
).map(lambda x: x.astype(np.float32))
SAMPLES = st.one_of(
    _arrays(_ANY), _arrays(_AWKWARD), _arrays(st.floats(-1, 1, width=32)), _around_an_offset(), _gaussian(), _CONSTANT
) | _HALVES  # fmt: skip
HISTOGRAMS = st.just(DyadicHistogram.empty()) | SAMPLES.map(DyadicHistogram.of)


def _same(a: DyadicHistogram, b: DyadicHistogram) -> bool:
    """Equal to the last bit: compared field by field, and so apart from `__eq__`."""
    left, right = (
        (h.exponent, h.low, h.counts.dtype, h.counts.tobytes(), np.array([h.minimum, h.maximum]).tobytes())
        for h in (a, b)
    )
    return left == right


@given(HISTOGRAMS, HISTOGRAMS, HISTOGRAMS)
def test_merge_is_associative(a: DyadicHistogram, b: DyadicHistogram, c: DyadicHistogram) -> None:
    assert _same(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(HISTOGRAMS, HISTOGRAMS)
def test_merge_is_commutative(a: DyadicHistogram, b: DyadicHistogram) -> None:
    assert _same(a.merge(b), b.merge(a))


@given(HISTOGRAMS, st.integers(1, 2**40))
def test_a_pickle_holds_the_same_in_few_bytes(a: DyadicHistogram, times: int) -> None:
    many = replace(a, counts=a.counts * times)
    assert _same(pickle.loads(pickle.dumps(many)), many)
    assert len(pickle.dumps(a)) < a.counts.size * 2 + 600  # these are counts of at most 3,000 values


@given(HISTOGRAMS)
def test_empty_is_neutral(a: DyadicHistogram) -> None:
    assert _same(a.merge(DyadicHistogram.empty()), a)
    assert _same(DyadicHistogram.empty().merge(a), a)


@settings(max_examples=examples(200))
@given(st.lists(SAMPLES, min_size=1, max_size=5), st.randoms(use_true_random=False))
@example([np.array([1e-45], np.float32), np.array([1.0], np.float32), np.array([3.4028235e38], np.float32)], None)
@example([np.array([-0.0], np.float32), np.array([0.0], np.float32)], None)
def test_any_sharding_in_any_order_gives_the_histogram_of_all(parts: list[Floats], random: Any) -> None:
    whole = DyadicHistogram.of(np.concatenate(parts))
    shards = [DyadicHistogram.of(part) for part in parts]
    if random is not None:
        random.shuffle(shards)
    while len(shards) > 1:  # a random tree of merges
        at = random.randrange(len(shards) - 1) if random is not None else 0
        shards[at : at + 2] = [shards[at].merge(shards[at + 1])]
    assert _same(shards[0], whole)


def _accumulated(parts: list[Floats]) -> DyadicHistogram:
    accumulator = new_accumulator(2)
    for part in parts:
        accumulator.add(part)
    assert accumulator.wrong == ""
    return accumulator.histogram()


@settings(max_examples=examples(200))
@given(SAMPLES, SAMPLES)
def test_accumulating_is_merging(a: Floats, x: Floats) -> None:
    assert _same(_accumulated([a, x]), DyadicHistogram.of(a).merge(DyadicHistogram.of(x)))


@given(SAMPLES, SAMPLES)
def test_accumulating_within_the_extremes(a: Floats, x: Floats) -> None:
    inside = np.clip(x, a.min(), a.max())
    assert _same(_accumulated([a, inside]), DyadicHistogram.of(np.concatenate([a, inside])))


@given(HISTOGRAMS, HISTOGRAMS)
def test_equality_is_that_of_the_arrays(a: DyadicHistogram, b: DyadicHistogram) -> None:
    assert (a == b) == _same(a, b)


@settings(max_examples=examples(200))
@given(SAMPLES)
def test_bins_count_what_their_edges_say(x: Floats) -> None:
    """Brute force: every element belongs to exactly one bin, found by comparing it with exact bounds."""
    histogram = DyadicHistogram.of(x)
    assert histogram.total == x.size
    assert 1 <= histogram.counts.size <= MAX_BINS
    assert (histogram.minimum, histogram.maximum) == (x.min(), x.max())
    index = np.arange(histogram.low, histogram.low + histogram.counts.size)
    inner = np.abs(index) * math.ldexp(1.0, histogram.exponent)  # exact: at most 2^23 times a power of two
    outer = (np.abs(index) + 1) * math.ldexp(1.0, histogram.exponent)
    counts = np.zeros_like(histogram.counts)
    for value in x.astype(np.float64):
        magnitude = abs(value)
        here = (inner <= magnitude) & (magnitude < outer) & ((index == 0) | (np.sign(index) == np.sign(value)))
        assert here.sum() == 1
        counts += here
    np.testing.assert_array_equal(histogram.counts, counts)
    lower, upper = histogram.edges()
    assert (lower[0], upper[-1]) == (histogram.minimum, histogram.maximum)
    assert (lower <= upper).all()
    np.testing.assert_array_equal(upper[:-1], lower[1:])
    # The bins at both ends hold the extremes, so none is wasted.
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0
    # Bins on the wrong side of a bound would let values out of their edges.
    below, above = np.repeat(lower, histogram.counts), np.repeat(upper, histogram.counts)
    ordered = np.sort(x).astype(np.float64)
    assert (below <= ordered).all()
    assert (ordered <= above).all()


@given(SAMPLES)
def test_bins_are_as_fine_as_the_budget_allows(x: Floats) -> None:
    histogram = DyadicHistogram.of(x)
    finer = histogram.exponent - 1
    low, high = (math.trunc(math.ldexp(v, -finer)) for v in (histogram.minimum, histogram.maximum))
    # float32 represents every bin index only up to 2^23, and its largest power of two is 2^127.
    too_far = max(abs(low), abs(high)) >= 1 << 23
    assert high - low >= MAX_BINS or too_far or finer < -120


@given(hnp.arrays(np.float16, st.integers(1, 30), elements=st.floats(width=16, allow_nan=False, allow_infinity=False)))
def test_float16_counts_as_the_same_numbers_in_float32(x: np.ndarray) -> None:
    assert _same(DyadicHistogram.of(x), DyadicHistogram.of(x.astype(np.float32)))


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=5), elements=_ANY))
def test_shape_and_strides_do_not_matter(x: np.ndarray) -> None:
    flat = DyadicHistogram.of(x.reshape(-1))
    assert _same(DyadicHistogram.of(x), flat)
    assert _same(DyadicHistogram.of(x.T), flat)
    assert _same(DyadicHistogram.of(x[..., ::-1]), flat)


def test_large_tensors_and_many_batches_agree() -> None:
    """Batches of a growing range coarsen the grid; numpy counts large tensors in chunks of 2^16."""
    rng = np.random.default_rng(5)
    x = (rng.standard_cauchy(700_001) * np.linspace(1e-3, 1e3, 700_001)).astype(np.float32)
    parts, whole = np.array_split(x, 13), DyadicHistogram.of(x)
    merged = DyadicHistogram.empty()
    for part in parts:
        merged = merged.merge(DyadicHistogram.of(part))
    assert _same(_accumulated(parts), whole)
    assert _same(merged, whole)
    assert whole.total == x.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("position", [0, 3, -1])
def test_nan_and_inf_are_refused(bad: float, dtype: type, position: int) -> None:
    x = np.linspace(-1, 1, 9).astype(dtype)
    x[position] = bad
    with pytest.raises(CalibrationError, match="NaN or Inf"):
        DyadicHistogram.of(x)


def test_a_tensor_without_elements_has_the_empty_histogram_which_has_counted_nothing() -> None:
    assert DyadicHistogram.of(np.zeros((0, 3), np.float32)) == DyadicHistogram.empty()
    assert DyadicHistogram.empty().total == 0
    assert DyadicHistogram.empty().counts.size == 0


@given(SAMPLES)
def test_a_sample_with_nan_or_inf_spoils_what_it_is_merged_with(x: Floats) -> None:
    spoilt, histogram = DyadicHistogram.not_finite(), DyadicHistogram.of(x)
    assert not spoilt.is_finite
    assert histogram.is_finite
    assert DyadicHistogram.empty().is_finite
    for other in (histogram, DyadicHistogram.empty(), spoilt):
        assert spoilt.merge(other) == other.merge(spoilt) == spoilt
    assert spoilt.is_consistent()
    assert spoilt != DyadicHistogram.empty()
