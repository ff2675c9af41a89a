"""Gram matrices in float32 products: numpy's in float64 are the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.numerics.statistics.gram_sum import GramSum

# Sums of 1024 products in float32, of what is left behind the mean.
TOLERANCE = 1e-5


def summed(columns: np.ndarray, cuts: list[int]) -> GramSum:
    total = GramSum(*columns.shape[:2])
    for part in np.split(columns, cuts, axis=2):
        total.add(part)
    return total


@pytest.mark.parametrize("mean", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("cuts", [[], [1, 1, 700], [4096, 5000]])
def test_moments_and_covariances_are_those_of_the_columns(mean: float, cuts: list[int]) -> None:
    random = np.random.default_rng(0)
    mixed = random.standard_normal((2, 9, 9)) @ random.standard_normal((2, 9, 6000))
    columns = (mixed + mean * random.random((2, 9, 1))).astype(np.float32)
    columns[1, 4] = 0
    found, exact = summed(columns, cuts).solve(), columns.astype(np.float64)
    assert found.columns == 6000
    np.testing.assert_allclose(found.mean, exact.mean(axis=2), rtol=1e-6, atol=1e-6)
    gram = exact @ exact.transpose(0, 2, 1) / 6000
    np.testing.assert_allclose(found.gram, gram, rtol=TOLERANCE, atol=TOLERANCE * 10)
    covariance = found.gram - found.mean[:, :, None] * found.mean[:, None, :]
    centred = exact - exact.mean(axis=2, keepdims=True)
    variances = np.square(centred).mean(axis=2)
    scale = np.sqrt(variances[:, :, None] * variances[:, None, :])
    np.testing.assert_allclose(covariance, centred @ centred.transpose(0, 2, 1) / 6000, rtol=0, atol=1e-4 * scale.max())
    assert not found.gram[1, 4].any()
    assert not found.gram[1, :, 4].any()


def test_columns_that_are_empty_or_not_finite() -> None:
    total = GramSum(1, 2)
    total.add(np.zeros((1, 2, 0), np.float32))
    assert total.is_empty
    with pytest.raises(ValueError, match="no column was seen"):
        total.solve()
    with pytest.raises(ValueError, match="NaN or Inf"):
        total.add(np.full((1, 2, 1), np.inf, np.float32))
