"""The rounding rule of arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import dequantize, fake_quantize, is_on_grid, quantize
from amct_onnx.numerics.weights.arq import solve_arq

# Rounding of (q - zero_point) * scale to float32, for the largest integer of 16 bits.
FLOAT32_STEP = 2.0**-23


@st.composite
def _per_tensor(draw: st.DrawFn) -> QParams:
    symmetric = draw(st.booleans())
    spec = QSpec(bits=draw(st.integers(2, 16)), symmetric=symmetric)
    zero_point = 0 if symmetric else draw(st.integers(spec.qmin, spec.qmax))
    scale = draw(st.floats(2.0**-23, 2.0**23, width=32))
    return QParams(scale=np.float32(scale), zero_point=np.int32(zero_point), spec=spec)


@given(_per_tensor(), hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)))
def test_within_the_range_the_error_is_half_a_step(params: QParams, position: np.ndarray) -> None:
    scale, zero = float(params.scale[0]), int(params.zero_point[0])
    low, high = (params.spec.qmin - zero) * scale, (params.spec.qmax - zero) * scale
    x = low + (high - low) * position
    tolerance = 0.5 * scale + FLOAT32_STEP * max(abs(low), abs(high))
    assert (np.abs(fake_quantize(x, params) - x) <= tolerance).all()


@given(_per_tensor())
def test_quantize_inverts_dequantize(params: QParams) -> None:
    q = np.unique(np.linspace(params.spec.qmin, params.spec.qmax, 300).astype(np.int32))
    np.testing.assert_array_equal(quantize(dequantize(q, params), params), q)


@given(_per_tensor(), hnp.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False)))
def test_integers_are_on_the_grid_and_idempotent(params: QParams, x: np.ndarray) -> None:
    q = quantize(x, params)
    assert q.dtype == np.int32
    assert (q >= params.spec.qmin).all()
    assert (q <= params.spec.qmax).all()
    once = fake_quantize(x, params)
    assert once.dtype == np.float32
    np.testing.assert_array_equal(fake_quantize(once, params), once)


@given(_per_tensor(), hnp.arrays(np.float32, 10, elements=st.floats(-1e6, 1e6, width=32)))
def test_quantize_is_monotone(params: QParams, x: np.ndarray) -> None:
    assert (np.diff(quantize(np.sort(x), params)) >= 0).all()


def test_halves_go_to_the_even_integer_before_the_zero_point_is_added() -> None:
    params = QParams(scale=np.float32(2.0), zero_point=np.int32(1), spec=QSpec(symmetric=False))
    assert quantize([-5.0, -3.0, -1.0, 1.0, 3.0, 5.0], params).tolist() == [-1, -1, 1, 1, 3, 3]


def test_values_outside_saturate() -> None:
    params = QParams(scale=np.float32(0.5), zero_point=np.int32(-28), spec=QSpec(symmetric=False))
    assert quantize([-np.inf, -1e30, 1e30, np.inf], params).tolist() == [-128, -128, 127, 127]
    assert fake_quantize([-1e30, 1e30], params).tolist() == [-50.0, 77.5]


def test_nan_has_no_integer() -> None:
    params = QParams(scale=np.float32(1.0), zero_point=np.int32(0), spec=QSpec())
    with pytest.raises(ValueError, match="NaN"):
        quantize([0.0, np.nan], params)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_per_channel_scales_run_along_their_axis(axis: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (3, 3, 3)).astype(np.float32)
    scale, zero = np.array([0.1, 0.25, 2.0], np.float32), np.array([3, 0, -100], np.int32)
    params = QParams(scale=scale, zero_point=zero, spec=QSpec(symmetric=False, channel_axis=axis))
    q, y = quantize(x, params), fake_quantize(x, params)
    for channel in range(3):
        one = QParams(scale=scale[channel], zero_point=zero[channel], spec=QSpec(symmetric=False))
        np.testing.assert_array_equal(np.take(q, channel, axis), quantize(np.take(x, channel, axis), one))
        np.testing.assert_array_equal(np.take(y, channel, axis), fake_quantize(np.take(x, channel, axis), one))


def test_one_scale_serves_all_channels() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    params = QParams(scale=np.float32(0.5), zero_point=np.int32(0), spec=QSpec(channel_axis=0))
    np.testing.assert_array_equal(quantize(x, params), (2 * x).astype(np.int32))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1, 2, 3)])
def test_shapes_stay(shape: tuple[int, ...]) -> None:
    params = QParams(scale=np.float32(0.5), zero_point=np.int32(0), spec=QSpec())
    assert quantize(np.ones(shape), params).shape == shape
    assert dequantize(np.ones(shape, np.int8), params).shape == shape


def test_int8_arrays_do_not_wrap() -> None:
    params = QParams(scale=np.float32(1.0), zero_point=np.int32(127), spec=QSpec(symmetric=False))
    assert dequantize(np.array([-128, 127], np.int8), params).tolist() == [-255.0, 0.0]


def test_arguments_stay_untouched() -> None:
    x = np.array([0.3, 0.7], np.float32)
    x.setflags(write=False)
    params = QParams(scale=np.float32(0.5), zero_point=np.int32(0), spec=QSpec())
    assert fake_quantize(x, params).tolist() == [0.5, 0.5]
    assert x.tolist() == [np.float32(0.3), np.float32(0.7)]


_HALVES = st.floats(allow_nan=False, allow_infinity=False, width=16)


@given(hnp.arrays(np.float16, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=_HALVES))
def test_a_float16_weight_on_its_grid_gives_the_same_integers(weight: np.ndarray) -> None:
    """Rounding the grid to float16 moves no weight across the middle of two steps."""
    params = solve_arq(weight, QSpec(bits=8, channel_axis=0))
    rounded = fake_quantize(weight, params).astype(np.float16)
    np.testing.assert_array_equal(quantize(rounded, params), quantize(weight, params))
    assert is_on_grid(rounded, params)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("factor", [0.9, 1.01, 1.5])
def test_another_scale_is_another_grid(dtype: type[np.floating], factor: float) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 40)).astype(dtype)
    params = solve_arq(weight, QSpec(bits=8, channel_axis=0))
    rounded = fake_quantize(weight, params).astype(dtype)
    assert is_on_grid(rounded, params)
    assert not is_on_grid(rounded, replace(params, scale=(params.scale * factor).astype(np.float32)))
    assert not is_on_grid(weight, params)
