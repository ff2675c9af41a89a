"""Grids of blocks of columns: each block against a search by brute force, and what never happens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amct_onnx.numerics.weights.block_grid import BlockGrid, solve_block_grid

weights = st.tuples(st.integers(1, 4), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1e3, 1e3, width=32))
)
ROUNDING = 1e-5  # of float32, in units of the scale


@given(weights, st.sampled_from([16, 32]), st.sampled_from([4, 8]))
def test_no_weight_is_further_from_its_grid_than_the_widest_range_leaves_it(
    rows: np.ndarray, block: int, bits: int
) -> None:
    grid = solve_block_grid(rows, block=block, bits=bits)
    integers = grid.quantize(rows)
    assert integers.max() <= grid.qmax
    errors = np.square(grid.dequantize(integers).astype(np.float64) - rows)
    for start in range(0, rows.shape[1], block):
        part = slice(start, start + block)
        low, high = np.minimum(rows[:, part].min(axis=1), 0), np.maximum(rows[:, part].max(axis=1), 0)
        widest = (high - low) / grid.qmax + 1e-6
        count = rows[:, part].shape[1]
        # Rounding to the widest range errs by half a step; the zero point is rounded as well.
        assert (errors[:, part].sum(axis=1) <= count * widest.astype(np.float64) ** 2 * (1 + ROUNDING)).all()


def test_a_range_that_clips_is_taken_where_it_is_better() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    grid = solve_block_grid(rows, block=32, bits=4)
    low, high = rows.min(axis=1), rows.max(axis=1)
    scale = (high - low) / 15
    zero_point = np.rint(-low / scale)
    plain = BlockGrid(scale=scale[:, None], zero_point=zero_point[:, None].astype(np.uint8), block=32, bits=4)
    errors = [np.square(g.dequantize(g.quantize(rows)) - rows).sum() for g in (plain, grid)]
    assert errors[1] < 0.97 * errors[0]


def test_zero_points_gain_where_weights_lie_on_one_side() -> None:
    rows = np.abs(np.random.default_rng(0).normal(size=(8, 64))).astype(np.float32)
    extremes = rows.reshape(8, 2, 32).max(axis=2)
    symmetric = BlockGrid(scale=extremes / 7, zero_point=np.full((8, 2), 8, np.uint8), block=32, bits=4)
    assert symmetric.is_symmetric
    found = (solve_block_grid(rows, block=32, bits=4), symmetric)
    errors = [np.square(grid.dequantize(grid.quantize(rows)) - rows).sum() for grid in found]
    assert errors[0] < 0.4 * errors[1]


def test_a_block_of_zeros_stays_zero() -> None:
    rows = np.zeros((1, 20), np.float32)
    rows[0, 17] = 3
    grid = solve_block_grid(rows, block=16, bits=4)
    assert grid.scale[0, 0] == 1
    assert grid.dequantize(grid.quantize(rows))[0, :16].tolist() == [0] * 16


def test_the_last_block_may_be_shorter_and_rows_may_start_inside() -> None:
    grid = BlockGrid(scale=np.float32([[1, 2, 3]]), zero_point=np.uint8([[8, 7, 6]]), block=16, bits=4)
    assert grid.columns(34)[0][0].tolist() == [1.0] * 16 + [2.0] * 16 + [3.0] * 2
    assert grid.columns(3, start=15)[1][0].tolist() == [8.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("scale", "zero_point", "said"),
    [
        ([[0.0]], [[8]], "positive"),
        ([[np.inf]], [[8]], "finite"),
        ([[1.0]], [[16]], "above 15"),
        ([[1.0]], [8], "differ"),
    ],
)
def test_a_grid_is_checked(scale: list[list[float]], zero_point: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BlockGrid(scale=np.float32(scale), zero_point=np.uint8(zero_point), block=16, bits=4)


def test_weights_must_be_numbers() -> None:
    with pytest.raises(ValueError, match="NaN"):
        solve_block_grid(np.float32([[np.nan]]), block=16, bits=4)
