"""Rounding by second order in groups and blocks: each is rounded as if it were alone, whichever the method."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.block_grid import solve_block_grid
from amct_onnx.numerics.weights.second_order import covariances, round_block_rows, round_rows

QUICK = AdaRound(num_iteration=400)
INT4 = QSpec(bits=4)
methods = pytest.mark.parametrize("learning", [None, QUICK], ids=["gptq", "adaround"])


def ignore(share: float) -> None:
    """Nobody wants to know."""


def moments_of(columns: np.ndarray) -> SecondMoments:
    """Of columns [U, B, n]."""
    gram = columns @ columns.transpose(0, 2, 1) / columns.shape[2]
    return SecondMoments(columns=columns.shape[2], mean=columns.mean(axis=2), gram=gram)


def part_of(moments: SecondMoments, part: slice) -> SecondMoments:
    return SecondMoments(columns=moments.columns, mean=moments.mean[part], gram=moments.gram[part])


def columns_of(seed: int, units: int, width: int, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.eye(width) + 0.7 * np.eye(width, k=1) + 0.2 * rng.normal(size=(units, width, width))
    return np.asarray(mixing @ rng.normal(size=(units, width, 4 * width)) + mean)


def weight_of(groups: int, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    weight = np.random.default_rng(3).normal(size=(groups, rows, length)).astype(np.float32)
    return weight, np.abs(weight).max(axis=2) / np.float32(7)


@methods
def test_groups_are_rounded_by_their_own_moments(learning: AdaRound | None) -> None:
    weight, scale = weight_of(3, 5, 8)
    moments = moments_of(columns_of(1, 3, 8))
    found = round_rows(weight, scale, INT4, moments, learning, ignore)
    assert found.dtype == np.int8
    for k in range(3):
        part = slice(k, k + 1)
        alone = round_rows(weight[part], scale[part], INT4, part_of(moments, part), learning, ignore)
        assert found[part].tolist() == alone.tolist()


def error_of(integers: np.ndarray, weight: np.ndarray, scale: np.ndarray, moments: SecondMoments) -> float:
    """Squared error of all outputs, of rows [G, R, n] in blocks of columns."""
    groups, rows, length = weight.shape
    units, width = moments.mean.shape
    filled = np.zeros((groups, rows, units // groups * width))
    filled[..., :length] = integers * scale[..., None].astype(np.float64) - weight
    cut = filled.reshape(groups, rows, -1, width).swapaxes(1, 2).reshape(units, rows, width)
    return float(((cut @ moments.gram) * cut).sum())


def long_rows() -> tuple[np.ndarray, np.ndarray, SecondMoments]:
    """Two groups of rows of 10, whose moments are known in blocks of 4; nothing is behind the rows."""
    columns = columns_of(2, 6, 4)
    columns[2::3, 2:] = 0
    return *weight_of(2, 5, 10), moments_of(columns - columns.mean(axis=2, keepdims=True))


@methods
def test_rows_longer_than_their_moments_are_rounded_for_all_blocks(learning: AdaRound | None) -> None:
    weight, scale, moments = long_rows()
    found = round_rows(weight, scale, INT4, moments, learning, ignore)
    nearest = np.clip(np.rint(weight / scale[..., None]), -8, 7)
    assert found.shape == weight.shape
    assert error_of(found, weight, scale, moments) < 0.9 * error_of(nearest, weight, scale, moments)


def test_gptq_rounds_a_block_as_if_it_were_alone() -> None:
    weight, scale, moments = long_rows()
    found = round_rows(weight, scale, INT4, moments, None, ignore)
    for block in range(2):
        part = slice(4 * block, 4 * block + 4)
        own = SecondMoments(columns=16, mean=moments.mean[block::3], gram=moments.gram[block::3])
        alone = round_rows(weight[..., part], scale, INT4, own, None, ignore)
        assert found[..., part].tolist() == alone.tolist()


@methods
@pytest.mark.parametrize(("width", "block"), [(40, 16), (20, 16), (10, 32)])
def test_blocks_of_scales_and_blocks_of_moments_may_differ(learning: AdaRound | None, width: int, block: int) -> None:
    rows = np.random.default_rng(5).normal(0.2, 1, (6, 40)).astype(np.float32)
    grid = solve_block_grid(rows, block=block, bits=4)
    columns = columns_of(4, 40 // width, width)
    moments = moments_of(columns - columns.mean(axis=2, keepdims=True))
    found = round_block_rows(rows, grid, moments, learning, ignore)
    assert found.dtype == np.uint8
    assert found.max() <= 15
    one = np.ones((1, 6), np.float32)
    errors = [error_of(grid.dequantize(q)[None], rows[None], one, moments) for q in (found, grid.quantize(rows))]
    assert errors[0] < 0.8 * errors[1]


def test_covariances_are_what_is_left_of_moments_without_means() -> None:
    columns = columns_of(6, 3, 5, mean=2.0)
    found, expected = covariances(moments_of(columns)), [np.cov(unit, bias=True) for unit in columns]
    np.testing.assert_allclose(found.gram, expected, atol=1e-7)
    assert not found.mean.any()


def test_columns_that_never_vary_leave_a_matrix_that_can_be_factorized() -> None:
    steady = np.broadcast_to(np.float64([0.3, 0.7, 0.1])[None, :, None], (1, 3, 12))
    assert np.linalg.eigvalsh(covariances(moments_of(steady)).gram[0]).min() > 0
