"""ARQ: the extremes of a weight, or of each of its channels, decide the scale (amct_formats.md: ARQ)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.grid import FLT_EPSILON, QSpec
from amct_onnx.numerics.rounding import fake_quantize, quantize
from amct_onnx.numerics.weights.arq import solve_arq

_WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-1e4, 1e4, width=32)
)


def _expected(values: np.ndarray, bits: int) -> float:
    """One channel by the letter of the specification."""
    highest, lowest = float(values.max()), float(values.min())
    t = highest if abs(highest) >= abs(lowest) else lowest
    scale = np.float32(t) / np.float32(2 ** (bits - 1) - 1 if t > 0 else -(2 ** (bits - 1)))
    return 1.0 if scale < FLT_EPSILON else float(scale)


@given(_WEIGHTS, st.sampled_from([4, 6, 7, 8]))
def test_per_tensor(weight: np.ndarray, bits: int) -> None:
    params = solve_arq(weight, QSpec(bits=bits))
    assert params.scale.tolist() == [_expected(weight, bits)]
    assert params.zero_point.tolist() == [0]


@given(_WEIGHTS, st.sampled_from([4, 8]), st.data())
def test_per_channel(weight: np.ndarray, bits: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    params = solve_arq(weight, QSpec(bits=bits, channel_axis=axis))
    channels = [np.take(weight, i, axis) for i in range(weight.shape[axis])]
    assert params.scale.tolist() == [_expected(channel, bits) for channel in channels]
    assert not params.zero_point.any()


@given(_WEIGHTS)
def test_no_weight_is_clipped_by_more_than_a_step(weight: np.ndarray) -> None:
    """Where the negative extreme decides, a positive one just below it has no integer 128."""
    params = solve_arq(weight, QSpec(channel_axis=0))
    for channel, scale in zip(weight.astype(np.float64), params.scale.tolist(), strict=True):
        assert channel.max() / scale < (127.01 if channel.max() >= -channel.min() else 128.01)
        assert channel.min() / scale > -128.01


@given(_WEIGHTS)
def test_the_extreme_itself_is_represented_to_the_last_bits(weight: np.ndarray) -> None:
    if np.abs(weight).max() < 1e-3:
        return  # scales of epsilon and below are replaced
    error = np.abs(fake_quantize(weight, solve_arq(weight, QSpec())) - weight)
    extreme = np.abs(weight).argmax()
    assert error.reshape(-1)[extreme] <= 4 * FLT_EPSILON * np.abs(weight).max()


@pytest.mark.parametrize(
    ("weight", "scale", "integers"),
    [
        ([127.0, -100.0, 1.0], 1.0, [127, -100, 1]),
        ([-128.0, 100.0, 1.0], 1.0, [-128, 100, 1]),
        ([127.0, -127.0, 0.0], 1.0, [127, -127, 0]),
        ([-128.0, -128.0, -128.0], 1.0, [-128, -128, -128]),
        ([2.5, 3.5, -127.0, 127.0], 1.0, [2, 4, -127, 127]),  # halves to even
    ],
)
def test_examples(weight: list[float], scale: float, integers: list[int]) -> None:
    array = np.array(weight, np.float32)
    params = solve_arq(array, QSpec())
    assert params.scale.tolist() == [scale]
    assert quantize(array, params).tolist() == integers


def test_an_all_zero_channel_gets_scale_one() -> None:
    weight = np.array([[0.0, 0.0], [1.27, -0.5]], np.float32)
    params = solve_arq(weight, QSpec(channel_axis=0))
    assert params.scale[0] == 1.0
    assert params.scale[1] == pytest.approx(0.01, rel=1e-6)
    assert quantize(weight, params)[0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_errors(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        solve_arq(np.array([[1.0, bad]], np.float32), QSpec(channel_axis=0))


def test_an_empty_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        solve_arq(np.zeros((0, 3), np.float32), QSpec())


def test_a_weight_too_large_for_its_scale_is_an_error() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        solve_arq(np.array([3e38], np.float32), QSpec())
