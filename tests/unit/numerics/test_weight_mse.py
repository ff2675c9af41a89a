"""Scales of least squared error for weights: against ARQ, against brute force over many scales, and on odd rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.grid import FLT_EPSILON, QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.mse import solve_weight_mse

_ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**-17), 2.0**-17, width=32),
)
# Brute force looks at 1500 scales; the search at some tens of them, on a curve that is smooth for long rows only.
BRUTE_TOLERANCE = 1.05


def per_row(bits: int) -> QSpec:
    return QSpec(bits=bits, channel_axis=0)


def errors(rows: np.ndarray, params: QParams) -> np.ndarray:
    return np.asarray(np.square(fake_quantize(rows, params).astype(np.float64) - rows).sum(axis=1))


def brute_errors(rows: np.ndarray, spec: QSpec) -> np.ndarray:
    extremes = solve_arq(rows, spec)
    scales = [extremes.scale * np.float32(ratio) for ratio in np.geomspace(0.02, 1.1, 1500)]
    tried = [QParams(scale=scale, zero_point=extremes.zero_point, spec=spec) for scale in scales]
    return np.min([errors(rows, params) for params in tried], axis=0)


@given(_ROWS, st.integers(2, 8))
def test_no_row_is_worse_than_with_its_extremes(rows: np.ndarray, bits: int) -> None:
    spec = per_row(bits)
    found, extremes = solve_weight_mse(rows, spec), solve_arq(rows, spec)
    assert (errors(rows, found) <= errors(rows, extremes)).all()
    assert (found.scale >= FLT_EPSILON).all()


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("tail", [3, 100])
def test_long_rows_are_as_good_as_by_brute_force(bits: int, tail: int) -> None:
    rng = np.random.default_rng(bits)
    rows, spec = rng.standard_t(tail, (8, 3000)).astype(np.float32), per_row(bits)
    found = errors(rows, solve_weight_mse(rows, spec))
    assert found.sum() <= BRUTE_TOLERANCE * brute_errors(rows, spec).sum()


def test_short_rows_gain_from_the_luck_of_many_scales() -> None:
    rng = np.random.default_rng(1)
    rows, spec = rng.normal(size=(200, 9)).astype(np.float32), per_row(8)
    found = errors(rows, solve_weight_mse(rows, spec)).sum()
    assert found < 0.7 * errors(rows, solve_arq(rows, spec)).sum()


def test_a_weight_that_would_be_dear_to_clip_decides_the_range() -> None:
    rows = np.array([[0.1, -0.26, 0.33, 100.0]], np.float32)
    assert solve_weight_mse(rows, per_row(4)).scale == pytest.approx(100 / 7, rel=0.1)


def test_a_spec_per_tensor_gets_one_scale_for_all_rows() -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_t(3, (40, 300)).astype(np.float32)
    found, extremes = (solve(rows, QSpec(bits=4)) for solve in (solve_weight_mse, solve_arq))
    assert found.scale.shape == (1,)
    assert errors(rows, found).sum() < 0.5 * errors(rows, extremes).sum()


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_t(2, (700, 300)).astype(np.float32)
    together = solve_weight_mse(rows, per_row(6)).scale
    alone = [solve_weight_mse(rows[i : i + 1], per_row(6)).scale[0] for i in range(0, 700, 70)]
    assert together[::70].tolist() == alone


def test_rows_that_are_represented_exactly_and_rows_of_zeros_keep_their_scale() -> None:
    rows = np.array([[-128, 3, 127], [0, 0, 0], [64, -2, 127]], np.float32)
    assert solve_weight_mse(rows, per_row(8)).scale.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_are_errors(bad: float) -> None:
    rows = np.array([[1.0, 2.0], [1.0, bad]], np.float32)
    with pytest.raises(ValueError, match="NaN or Inf"):
        solve_weight_mse(rows, per_row(8))
