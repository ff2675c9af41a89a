"""Weights that do not overflow: the arithmetic of vpmaddubsw as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.pairs import overflows, solve_pairs

SPEC = QSpec(channel_axis=0)
weights = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(-1e3, 1e3, width=32))


def solve(rows: np.ndarray, least: float = 0.0) -> tuple[QParams, np.ndarray]:
    return solve_pairs(rows, SPEC, np.full(len(rows), least, np.float32))


def squared_error(rows: np.ndarray, integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return ((integers * scale[:, None].astype(np.float64) - rows) ** 2).sum(axis=1)


def saturating_sums(integers: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """Row sums as a CPU without VNNI computes them: each pair of products in 16 bits, with saturation."""
    products = integers.astype(np.int64) * activations
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1)))
    pairs = products.reshape(len(products), -1, 2).sum(axis=2)
    return np.clip(pairs, -(1 << 15), (1 << 15) - 1).sum(axis=1)


@given(rows=weights, data=st.data())
def test_no_activation_makes_it_overflow(rows: np.ndarray, data: st.DataObject) -> None:
    _, integers = solve(rows)
    activations = data.draw(arrays(np.uint8, rows.shape[1]))
    assert not overflows(integers)
    for a in (activations.astype(np.int64), np.full(rows.shape[1], 255)):
        np.testing.assert_array_equal(saturating_sums(integers, a), integers.astype(np.int64) @ a)


@given(rows=weights, least=st.floats(2.0**-20, 1e3, width=32))
def test_a_scale_that_is_wanted_wider_does_not_overflow_either(rows: np.ndarray, least: float) -> None:
    params, integers = solve(rows, least)
    assert (params.scale >= np.float32(least)).all()
    assert not overflows(integers)


@given(rows=weights)
def test_it_is_never_worse_than_seven_bits_with_the_same_rounding(rows: np.ndarray) -> None:
    params, integers = solve(rows)
    assert params.scale.shape == (len(rows),)
    widest = solve_arq(rows, SPEC).scale
    halved = np.clip(np.rint(rows / (widest * np.float32(2.02))[:, None]), -64, 63)
    mine = squared_error(rows, integers, params.scale)
    assert (mine <= squared_error(rows, halved, widest * np.float32(2.02)) * (1 + 1e-5) + 1e-12).all()


def test_it_costs_far_less_than_seven_bits() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 576)).astype(np.float32)
    params, integers = solve(rows)
    full = ((fake_quantize(rows, solve_arq(rows, SPEC)) - rows) ** 2).sum()
    seven = ((fake_quantize(rows, solve_arq(rows, QSpec(bits=7, channel_axis=0))) - rows) ** 2).sum()
    mine = squared_error(rows, integers, params.scale).sum()
    assert full < mine < 0.6 * seven


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        solve(np.full((2, 3), wrong, np.float32))


def test_zeros_stay_zeros() -> None:
    params, integers = solve(np.zeros((2, 3), np.float32))
    assert (params.scale == 1).all()
    assert not integers.any()
