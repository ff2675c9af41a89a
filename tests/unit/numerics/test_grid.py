"""Scales and zero points: the invariant of QParams, legal scales, and grids from ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.numerics.grid import (
    FLT_EPSILON,
    LEAST_SCALE,
    MOST_SCALE,
    QParams,
    QSpec,
    asymmetric_from_range,
    legal_scale,
    symmetric_from_range,
)

ASYMMETRIC, SYMMETRIC = QSpec(symmetric=False), QSpec(symmetric=True)
LARGEST = 2.0**23  # 1 / FLT_EPSILON

# One rounding of float32 in the difference and one in the quotient.
FLOAT32_TOLERANCE = 3 * FLT_EPSILON


def _params(scale: object, zero_point: object, spec: QSpec = ASYMMETRIC) -> QParams:
    return QParams(scale=np.asarray(scale), zero_point=np.asarray(zero_point), spec=spec)


def test_numbers_become_arrays_of_one_entry() -> None:
    params = _params(0.5, 3)
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == np.int32
    assert (params.scale.tolist(), params.zero_point.tolist()) == ([0.5], [3])


def test_arrays_are_copies_and_read_only() -> None:
    scale, zero_point = np.array([1.0, 2.0], np.float32), np.zeros(2, np.int32)
    params = QParams(scale=scale, zero_point=zero_point, spec=SYMMETRIC)
    scale[0] = 9
    zero_point[0] = 9
    assert (params.scale.tolist(), params.zero_point.tolist()) == ([1.0, 2.0], [0, 0])
    for array in (params.scale, params.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, [1.0, 0.0], [math.nan, 1.0]])
def test_a_scale_is_finite_and_positive(scale: object) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        _params(scale, np.zeros(np.shape(scale), np.int32))


@pytest.mark.parametrize(("scale", "zero_point"), [([1.0], [0, 0]), ([1.0, 1.0], [0]), ([[1.0]], [[0]])])
def test_scale_and_zero_point_are_vectors_of_one_length(scale: object, zero_point: object) -> None:
    with pytest.raises(ValueError, match="shape"):
        _params(scale, zero_point)


def test_a_symmetric_zero_point_is_zero() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        _params([1.0, 1.0], [0, 1], SYMMETRIC)


@pytest.mark.parametrize(("bits", "zero_point", "fits"), [
    (8, -128, True), (8, 127, True), (8, -129, False), (8, 128, False), (4, -8, True), (4, 8, False),
])  # fmt: skip
def test_a_zero_point_is_on_the_grid(bits: int, zero_point: int, fits: bool) -> None:
    spec = QSpec(bits=bits, symmetric=False)
    if fits:
        assert _params(1.0, zero_point, spec).zero_point.tolist() == [zero_point]
    else:
        with pytest.raises(ValueError, match="outside"):
            _params(1.0, zero_point, spec)


# legal_scale


@pytest.mark.parametrize(
    ("scale", "legal"),
    [
        (0.0, 1.0),
        (-3.0, 1.0),
        (np.nextafter(np.float32(FLT_EPSILON), np.float32(0)), 1.0),
        (FLT_EPSILON, FLT_EPSILON),
        (1.0, 1.0),
        (LARGEST, LARGEST),
    ],
)
def test_a_scale_below_epsilon_becomes_one(scale: float, legal: float) -> None:
    got = legal_scale(scale, QSpec())
    assert got == legal
    assert got.dtype == np.float32


@pytest.mark.parametrize("scale", [LARGEST + 1, 3e38])
def test_a_scale_above_the_inverse_of_epsilon_is_an_error(scale: float) -> None:
    with pytest.raises(ValueError, match="exceeds 8388608"):
        legal_scale([1.0, scale], QSpec())


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_errors(scale: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        legal_scale([1.0, scale], QSpec())


@pytest.mark.parametrize("scale", [LEAST_SCALE, 1e-30, FLT_EPSILON / 2, 1.0, LARGEST + 1, 1e30, MOST_SCALE])
def test_a_grid_may_have_bounds_of_its_own(scale: float) -> None:
    spec = QSpec(least_scale=LEAST_SCALE, most_scale=MOST_SCALE)
    assert legal_scale(scale, spec) == np.float32(scale)
    assert legal_scale(LEAST_SCALE / 2, spec) == 1
    with pytest.raises(ValueError, match=r"exceeds 2\.658456e\+36"):
        legal_scale(np.float32(MOST_SCALE * 1.01), spec)


# From ranges


@given(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32), st.integers(2, 16))
def test_asymmetric_formula(low: float, high: float, bits: int) -> None:
    spec = QSpec(bits=bits, symmetric=False)
    params = asymmetric_from_range(low, high, spec)
    exact = (high - low) / (2**bits - 1)
    if exact < FLT_EPSILON * (1 - FLOAT32_TOLERANCE):
        assert params.scale.tolist() == [1.0]
        assert params.zero_point.tolist() == [spec.qmin]
        return
    if exact > FLT_EPSILON * (1 + FLOAT32_TOLERANCE):
        assert params.scale[0] == pytest.approx(exact, rel=FLOAT32_TOLERANCE)
    # C's round takes halves away from zero: offset = -round(low / scale) - 2^(bits - 1).
    quotient = low / float(params.scale[0])
    rounded = math.copysign(math.floor(abs(quotient) + 0.5), quotient)
    assert params.zero_point[0] == min(max(-rounded + spec.qmin, spec.qmin), spec.qmax)


@given(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
def test_both_ends_of_an_asymmetric_range_fit_within_a_step(low: float, high: float) -> None:
    params = asymmetric_from_range(low, high, ASYMMETRIC)
    scale, zero = float(params.scale[0]), int(params.zero_point[0])
    assert (-128 - zero) * scale <= low + 0.5001 * scale
    assert high - 0.5001 * scale <= (127 - zero) * scale


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 0.0, 1.0, -128),
        (0.0, 255.0, 1.0, -128),
        (-255.0, 0.0, 1.0, 127),
        (-128.0, 127.0, 1.0, 0),
        (-0.5, 254.5, 1.0, -127),  # halves away from zero
        (-1.5, 253.5, 1.0, -126),
    ],
)
def test_asymmetric_examples(low: float, high: float, scale: float, zero_point: int) -> None:
    params = asymmetric_from_range(low, high, ASYMMETRIC)
    assert (params.scale.tolist(), params.zero_point.tolist()) == ([scale], [zero_point])


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [
        (0.0, 0.0, 1.0),
        (-1.0, 127.0, 1.0),
        (-128.0, 1.0, 1.0),
        (-127.0, 127.0, 1.0),  # of equal magnitudes the positive one
        (127.0, 127.0, 1.0),
        (-128.0, -128.0, 1.0),  # a constant is as negative as its bounds
        (-128.0, -3.0, 1.0),
        (3.0, 127.0, 1.0),
    ],
)
def test_symmetric_examples(low: float, high: float, scale: float) -> None:
    params = symmetric_from_range(low, high, SYMMETRIC)
    assert (params.scale.tolist(), params.zero_point.tolist()) == ([scale], [0])


@given(
    st.lists(
        st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)).map(sorted), min_size=1, max_size=5
    ),
    st.integers(2, 16),
)
def test_symmetric_formula_per_channel(ranges: list[list[float]], bits: int) -> None:
    spec = QSpec(bits=bits)
    params = symmetric_from_range([low for low, _ in ranges], [high for _, high in ranges], spec)
    assert not params.zero_point.any()
    for (low, high), scale in zip(ranges, params.scale.tolist(), strict=True):
        exact = high / spec.qmax if abs(high) >= abs(low) and high > 0 else low / spec.qmin
        if exact < FLT_EPSILON * (1 - FLOAT32_TOLERANCE):
            assert scale == 1.0
        elif exact > FLT_EPSILON * (1 + FLOAT32_TOLERANCE):
            assert scale == pytest.approx(exact, rel=FLOAT32_TOLERANCE)
            # The bound that decides fits; a positive one just below a negative one loses a step at the most.
            assert spec.qmin - 0.01 <= low / scale
            assert high / scale <= (spec.qmax if high >= -low else spec.qmax + 1) + 0.01


@pytest.mark.parametrize("make", [asymmetric_from_range, symmetric_from_range])
def test_a_range_without_a_legal_scale_is_an_error(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="exceeds"):
        make(-1.0, 3e38, ASYMMETRIC)
    with pytest.raises(ValueError, match="NaN or Inf"):
        make(math.nan, math.nan, ASYMMETRIC)
