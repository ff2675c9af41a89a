"""Second-order rounding: the paper's claims, its algorithm by the letter, and what never happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import quantize
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.block_grid import BlockGrid, solve_block_grid
from amct_onnx.numerics.weights.gptq import solve_gptq_blocks, solve_gptq_groups


def layer(seed: int, rows: int = 24, length: int = 40, bits: int = 4) -> tuple[np.ndarray, np.ndarray, QParams]:
    """rows [C, n] with their scales, and the Gram matrix of correlated columns behind a ReLU."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, length)).astype(np.float32)
    mixing = np.eye(length) + 0.7 * np.eye(length, k=1) + 0.2 * rng.normal(size=(length, length))
    columns = np.maximum(mixing @ rng.normal(size=(length, 4 * length)) + 0.3, 0)
    gram = columns @ columns.T / columns.shape[1]
    return weight, gram, solve_arq(weight, QSpec(bits=bits, channel_axis=0))


def by_rows(rows: np.ndarray, gram: np.ndarray, params: QParams, **options: Any) -> np.ndarray:
    """The integers of one group, with a scale for each row, column after column."""
    return solve_gptq_groups(rows[None], gram[None], params.scale[None], params.spec, **options)[0]


def by_diagonal(rows: np.ndarray, gram: np.ndarray, params: QParams, **options: Any) -> np.ndarray:
    """The same with the columns of larger mean square first: the grid has the one scale of a row for all its blocks."""
    scale = np.repeat(params.scale[:, None], -(-rows.shape[1] // 16), axis=1)
    middle = -params.spec.qmin
    grid = BlockGrid(scale=scale, zero_point=np.full(scale.shape, middle, np.uint8), block=16, bits=params.spec.bits)
    return solve_gptq_blocks(rows, gram, grid, **options).astype(np.int32) - middle


Solve = Callable[..., np.ndarray]
both = pytest.mark.parametrize("solve", [by_rows, by_diagonal])
either = st.sampled_from([by_rows, by_diagonal])


def output_errors(integers: np.ndarray, rows: np.ndarray, gram: np.ndarray, params: QParams) -> np.ndarray:
    """Mean squared error of each row's output."""
    u = integers * params.scale.astype(np.float64)[:, None] - rows
    return np.asarray(((u @ gram) * u).sum(axis=1))


def by_the_paper(rows: np.ndarray, gram: np.ndarray, params: QParams, damping: float) -> np.ndarray:
    """OPTQ, algorithm 1, with the inverse."""
    size = gram.shape[0]
    damped = gram + damping * np.diagonal(gram).mean() * np.eye(size)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest = rows.astype(np.float64) / params.scale[:, None]
    integers = np.empty_like(rest)
    for k in range(size):
        integers[:, k] = np.clip(np.rint(rest[:, k]), params.spec.qmin, params.spec.qmax)
        rest[:, k:] -= ((rest[:, k] - integers[:, k]) / upper[k, k])[:, None] * upper[k, k:]
    return integers


@pytest.mark.parametrize("bits", [4, 8])
@both
def test_it_is_worse_than_nearest_on_weights_and_better_on_outputs(bits: int, solve: Solve) -> None:
    rows, gram, params = layer(1, bits=bits)
    nearest, found = quantize(rows, params), solve(rows, gram, params)
    on_weights = [np.square(q * params.scale[:, None] - rows).sum() for q in (nearest, found)]
    on_outputs = [output_errors(q, rows, gram, params).sum() for q in (nearest, found)]
    assert on_weights[1] > 1.1 * on_weights[0]
    assert on_outputs[1] < 0.6 * on_outputs[0]


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_it_is_the_algorithm_of_the_paper_without_the_inverse(damping: float, block: int) -> None:
    rows, gram, params = layer(2)
    found, expected = (
        by_rows(rows, gram, params, damping=damping, block=block),
        by_the_paper(rows, gram, params, damping),
    )
    nearest = quantize(rows, params)
    kept = output_errors(expected, rows, gram, params) >= output_errors(nearest, rows, gram, params)
    assert kept.sum() < 4
    assert found.tolist() == np.where(kept[:, None], nearest, expected).tolist()


@given(st.integers(0, 1000), st.integers(2, 8), either)
def test_no_row_is_worse_than_nearest_and_all_stay_on_the_grid(seed: int, bits: int, solve: Solve) -> None:
    rows, gram, extremes = layer(seed, rows=6, length=9, bits=bits)
    params = QParams(scale=0.6 * extremes.scale, zero_point=extremes.zero_point, spec=extremes.spec)  # clips
    found = solve(rows, gram, params)
    nearest = output_errors(quantize(rows, params), rows, gram, params)
    assert (output_errors(found, rows, gram, params) <= nearest * (1 + 1e-9)).all()
    assert found.min() >= params.spec.qmin
    assert found.max() <= params.spec.qmax


@given(st.integers(0, 1000), either, st.floats(0, 1))
def test_without_correlation_it_rounds_to_nearest(seed: int, solve: Solve, damping: float) -> None:
    rows, gram, params = layer(seed, rows=5, length=9)
    found = solve(rows, np.diag(np.diagonal(gram)), params, damping=damping)
    assert found.tolist() == quantize(rows, params).tolist()


@pytest.mark.parametrize(("groups", "rows", "length"), [(50, 1, 9), (3, 8, 150), (2, 5, 1)])
def test_groups_are_rounded_as_if_each_were_alone(groups: int, rows: int, length: int) -> None:
    cases = [layer(seed, rows=rows, length=length) for seed in range(groups)]
    cases[1] = (cases[1][0], np.zeros_like(cases[1][1]), cases[1][2])  # one of them never sees anything
    weights, grams, scales = (
        np.stack([rows for rows, _, _ in cases]),
        np.stack([gram * 10.0 ** (i % 7) for i, (_, gram, _) in enumerate(cases)]),
        np.stack([params.scale for _, _, params in cases]),
    )
    found = solve_gptq_groups(weights, grams, scales, cases[0][2].spec)
    for i, (weight, _, params) in enumerate(cases):
        assert found[i].tolist() == by_rows(weight, grams[i], params).tolist()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_near_to_the_best_of_all_roundings(bits: int) -> None:
    """All 2^8 ways to round a row down or up are tried: most of what nearest costs beyond the best is gone."""
    totals = np.zeros(3)
    for seed in range(30):
        rows, gram, params = layer(seed, rows=4, length=8, bits=bits)
        steps = rows.astype(np.float64) / params.scale[:, None]
        choices = np.stack(np.meshgrid(*[[0, 1]] * 8, indexing="ij"), axis=-1).reshape(-1, 8)
        every = np.clip(np.floor(steps)[:, None] + choices, params.spec.qmin, params.spec.qmax)
        u = (every - steps[:, None]) * params.scale[:, None, None]
        totals[0] += ((u @ gram) * u).sum(axis=2).min(axis=1).sum()
        totals[1] += output_errors(by_rows(rows, gram, params), rows, gram, params).sum()
        totals[2] += output_errors(quantize(rows, params), rows, gram, params).sum()
    best, found, nearest = totals
    assert found - best < 0.3 * (nearest - best)


def test_the_order_of_columns_is_that_of_the_diagonal() -> None:
    """Columns that are in descending order already are taken as they come; any other order gives the same integers."""
    rows, gram, params = layer(3)
    order = np.argsort(-np.diagonal(gram), kind="stable")
    rows, gram = rows[:, order], gram[np.ix_(order, order)]
    expected = by_rows(rows, gram, params)
    shuffled = np.random.default_rng(0).permutation(order.size)
    found = by_diagonal(rows[:, shuffled], gram[np.ix_(shuffled, shuffled)], params)
    assert found.tolist() == expected[:, shuffled].tolist()


def test_columns_that_are_always_zero_are_rounded_to_nearest_and_change_nothing() -> None:
    rows, gram, params = layer(4)
    dead = [0, 7, 39]
    gram[dead] = 0
    gram[:, dead] = 0
    alive = np.setdiff1d(np.arange(40), dead)
    for damping in (0.0, 0.01):
        found = by_rows(rows, gram, params, damping=damping)
        assert found[:, dead].tolist() == quantize(rows, params)[:, dead].tolist()
    few = by_rows(rows[:, alive], gram[np.ix_(alive, alive)], params, damping=0.0)
    assert few.tolist() == by_rows(rows, gram, params, damping=0.0)[:, alive].tolist()
    assert by_rows(rows, np.zeros((40, 40)), params).tolist() == quantize(rows, params).tolist()


def test_what_cannot_be_rounded_is_an_error() -> None:
    rows, gram, params = layer(7)
    with pytest.raises(ValueError, match="do not fit a Gram matrix"):
        by_rows(rows[:, 1:], gram, params)
    with pytest.raises(ValueError, match="scales do not fit"):
        by_rows(rows[1:], gram, params)
    with pytest.raises(ValueError, match="NaN or Inf"):
        by_rows(rows, gram * np.inf, params)
    with pytest.raises(ValueError, match="more damping"):
        by_rows(rows, np.ones((40, 40)), params, damping=0.0)
    with pytest.raises(ValueError, match="at most 8 bits"):
        by_rows(rows, gram, solve_arq(rows, QSpec(bits=9, channel_axis=0)))


def test_blocks_of_one_scale_are_rounded_like_rows_of_one() -> None:
    rows, gram, params = layer(2)
    order = np.argsort(-np.diagonal(gram), kind="stable")
    rows, gram = rows[:, order], gram[np.ix_(order, order)]
    assert np.array_equal(by_diagonal(rows, gram, params), by_rows(rows, gram, params))


def test_with_scales_of_blocks_it_is_better_on_outputs_than_nearest() -> None:
    rows, gram, _ = layer(3)
    grid = solve_block_grid(rows, block=16, bits=4)
    errors = []
    for integers in (grid.quantize(rows), solve_gptq_blocks(rows, gram, grid)):
        u = grid.dequantize(integers).astype(np.float64) - rows
        errors.append(((u @ gram) * u).sum())
    assert errors[1] < 0.6 * errors[0]


def test_a_part_of_the_columns_has_the_scales_of_its_place() -> None:
    rows, gram, _ = layer(4)
    grid = solve_block_grid(rows, block=16, bits=4)
    alone = BlockGrid(scale=grid.scale[:, 1:], zero_point=grid.zero_point[:, 1:], block=16, bits=4)
    part = (rows[:, 16:], gram[16:, 16:])
    assert np.array_equal(solve_gptq_blocks(*part, grid, start=16), solve_gptq_blocks(*part, alone))


def test_blocks_must_fit() -> None:
    rows, gram, _ = layer(5)
    grid = solve_block_grid(rows, block=16, bits=4)
    with pytest.raises(ValueError, match="fit no Gram matrix"):
        solve_gptq_blocks(rows, gram[:-1, :-1], grid)
    with pytest.raises(ValueError, match="no such grid"):
        solve_gptq_blocks(rows[:3], gram, grid)
    with pytest.raises(ValueError, match="NaN"):
        solve_gptq_blocks(rows * np.float32(np.nan), gram, grid)


def test_what_float32_cannot_factorize_is_factorized_in_float64() -> None:
    columns = np.random.default_rng(0).standard_normal((24, 3))
    gram = (columns @ columns.T)[None]  # of rank 3
    gram += 1e-12 * np.eye(24)
    damped = (gram / np.diagonal(gram, axis1=1, axis2=2).mean())[0] + 1e-9 * np.eye(24)
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(damped[::-1, ::-1].astype(np.float32))
    rows = np.random.default_rng(1).standard_normal((1, 5, 24)).astype(np.float32)
    scale = np.full((1, 5), 0.02, np.float32)
    found = solve_gptq_groups(rows, gram, scale, QSpec(channel_axis=0), damping=1e-9)
    error, nearest = (rows / scale[..., None] - integers for integers in (found, np.rint(rows / scale[..., None])))
    loss, other = (np.einsum("gri,gij,grj->r", array, gram, array) for array in (error, nearest))
    assert (loss <= other * 1.001).all()
    assert loss.sum() < 0.5 * other.sum()
