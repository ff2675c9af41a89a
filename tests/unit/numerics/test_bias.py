"""Bias correction keeps the mean of a layer's output on the data that gave the means."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.bias import bias_correction


def test_the_mean_output_is_kept() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16, 50)).astype(np.float32)
    columns = np.maximum(rng.normal(size=(50, 400)) + 1, 0)
    rounded = fake_quantize(rows, solve_arq(rows, QSpec(bits=4, channel_axis=0)))
    correction = bias_correction(rows, rounded, columns.mean(axis=1))
    shift = (rounded @ columns - rows @ columns).mean(axis=1)
    assert np.abs(shift).max() > 0.1
    assert np.abs(shift + correction).max() < 1e-9 * np.abs(shift).max()  # float64 sums


def test_a_weight_that_is_kept_needs_no_correction() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert bias_correction(rows, rows, np.array([1.0, -2.0, 3.0])).tolist() == [0, 0, 0]


def test_shapes_that_do_not_fit_and_means_that_are_not_finite_are_errors() -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        bias_correction(rows, rows, np.ones(2))
    with pytest.raises(ValueError, match="NaN or Inf"):
        bias_correction(rows, rows, np.array([1, np.inf, 0]))
