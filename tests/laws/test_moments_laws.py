"""Laws of second moments: a commutative monoid, exact whatever the order, the sharding and the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.statistics.moments import Moments

UNITS, WIDTH = 2, 3
# A value keeps 10 bits at least beside the largest one, cut towards zero; a product of two has twice that error.
RELATIVE_ERROR = 2.0**-9

_ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
_AWKWARD = st.sampled_from([0.0, -0.0, 1e-45, -1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0, 1023.9, 1024.0, -0.1])
_ELEMENTS = st.one_of(_ANY, _AWKWARD.map(lambda value: float(np.float32(value))), st.floats(-1, 1, width=32))
COLUMNS = hnp.arrays(np.float32, st.tuples(st.just(UNITS), st.just(WIDTH), st.integers(1, 8)), elements=_ELEMENTS)
MOMENTS = st.just(Moments()) | COLUMNS.map(Moments.of)


def same(a: Moments, b: Moments) -> bool:
    arrays = [(a.sums, b.sums), (a.products, b.products)]
    return (a.count, a.exponent) == (b.count, b.exponent) and all(
        left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
        for left, right in arrays
    )


@given(MOMENTS, MOMENTS, MOMENTS)
def test_merge_is_associative(a: Moments, b: Moments, c: Moments) -> None:
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(MOMENTS, MOMENTS)
def test_merge_is_commutative(a: Moments, b: Moments) -> None:
    assert same(a.merge(b), b.merge(a))


@given(MOMENTS)
def test_empty_is_neutral(a: Moments) -> None:
    assert same(a.merge(Moments()), a)
    assert same(Moments().merge(a), a)


@given(COLUMNS, st.data())
def test_any_sharding_and_order_give_the_same(x: np.ndarray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(x.shape[2])))
    cut = data.draw(st.integers(0, x.shape[2]))
    shuffled = x[..., list(order)]
    parts = [Moments.of(shuffled[..., part]) for part in (slice(None, cut), slice(cut, None))]
    merged = Moments()
    for part in parts:
        merged = merged.merge(part)
    assert same(merged, Moments.of(x))


@given(COLUMNS)
def test_they_are_the_moments_of_the_columns(x: np.ndarray) -> None:
    solved, wide = Moments.of(x).solve(), x.astype(np.float64)
    largest = np.abs(wide).max()
    assert solved.columns == x.shape[2]
    np.testing.assert_allclose(solved.mean, wide.mean(axis=2), rtol=0, atol=largest * RELATIVE_ERROR)
    gram = wide @ wide.transpose(0, 2, 1) / x.shape[2]
    np.testing.assert_allclose(solved.gram, gram, rtol=0, atol=largest**2 * RELATIVE_ERROR)


def test_many_columns_are_exact_too() -> None:
    """More than float64 adds up exactly at once: values at the end of the grid, where every product is the largest."""
    count = 3 * (1 << 13) + 5
    x = np.full((1, 2, count), 1 - 2.0**-20, np.float32)
    moments = Moments.of(x)
    assert moments.products[0].tolist() == [[[count * ((1 << 20) - 1) ** 2] * 2] * 2]
    assert moments.sums[0].tolist() == [[count * ((1 << 20) - 1)] * 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        Moments.of(np.array([[[1.0, bad]]], np.float32))


def test_no_column_and_other_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="tensor is empty"):
        Moments().solve()
    one, other = (Moments.of(np.ones((1, width, 1), np.float32)) for width in (2, 3))
    with pytest.raises(ValueError, match="cannot be merged"):
        one.merge(other)
