"""Entropy: the divergence against its definition, written out for one grid at a time; and which grid is taken."""

from __future__ import annotations

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ArgumentError
from amct_onnx.numerics.activations.entropy import divergences, solve_entropy, zero_points
from amct_onnx.numerics.activations.minmax import solve_minmax
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import Entropy
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

SPECS = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def divergence(stat: DyadicHistogram, scale: float, zero_point: int, spec: QSpec) -> float:
    """N * KL(P || Q) + N log N of one grid: P and Q bin by bin."""
    integers, counts = [], []
    edges = [_edge((k + 0.5) * scale) for k in range(-200, 200)]
    for index, count in enumerate(stat.counts.tolist(), stat.low):
        # A bin belongs to the cell in which it lies, cells being cut at the nearest edge of a bin.
        value = 0.0 if index == 0 else index + (0.5 if index > 0 else -0.5)
        integers.append(int(np.searchsorted(edges, value)) - 200 + zero_point)
        counts.append(0 if index == 0 else count)
    inside = [i for i, q in enumerate(integers) if spec.qmin <= q <= spec.qmax]
    p = np.array(counts, float)[inside]
    q_counts, cells = p.copy(), np.array(integers)[inside]
    if not p.sum():
        return np.inf
    p[0] += sum(c for c, q in zip(counts, integers, strict=True) if q < spec.qmin)
    p[-1] += sum(c for c, q in zip(counts, integers, strict=True) if q > spec.qmax)
    q = np.zeros(p.size)
    for cell in set(cells):
        occupied = (cells == cell) & (p > 0)
        if occupied.any():
            q[occupied] = (q_counts[cells == cell].sum() + 0.5) / occupied.sum()
    q /= q_counts.sum() + 2**spec.bits / 2
    some = p > 0
    return float((p[some] * np.log(p[some] / q[some])).sum())


def _edge(boundary: float) -> float:
    return float(np.copysign(max(np.floor(abs(boundary) + 0.5), 1), boundary))


@settings(max_examples=examples(60))
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-3, 3),
    st.booleans(),
    st.integers(2, 4),
    st.floats(1, 20),
    st.sampled_from([8, 40, 100]),
)
def test_divergences_are_those_of_the_definition(
    seed: int, shift: float, symmetric: bool, bits: int, scale: float, bins: int
) -> None:
    rng = np.random.default_rng(seed)
    stat = DyadicHistogram.of((rng.standard_t(3, 300) + shift).astype(np.float32)).coarsened(bins)
    spec = QSpec(bits=bits, symmetric=symmetric)
    found = divergences(stat, np.array([scale]), spec)[0]
    wanted = [divergence(stat, scale, int(z), spec) for z in zero_points(stat, spec)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-6)


def solve(x: np.ndarray, symmetric: bool, bits: int = 8, bins: int = 4096) -> tuple[QParams, QParams]:
    """What entropy takes, and what min-max would take."""
    stat, spec = DyadicHistogram.of(x.astype(np.float32)), QSpec(bits=bits, symmetric=symmetric)
    return solve_entropy(stat, spec, Entropy(num_of_bins=bins)), solve_minmax(stat, spec)


@SPECS
def test_outliers_are_cut_off(symmetric: bool) -> None:
    x = np.concatenate([np.random.default_rng(0).normal(0, 1, 20_000), [60.0]])
    params, widest = solve(x, symmetric)
    assert params.scale[0] < 0.2 * widest.scale[0]
    assert params.scale[0] * 255 > 4  # and the bulk of +-2 sigma is not


@SPECS
def test_full_ranges_are_kept(symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    for x in (rng.uniform(-1, 1, 20_000), np.clip(rng.normal(1, 4, 20_000), 0, 6)):
        params, widest = solve(x, symmetric)
        assert params.scale == widest.scale
        assert abs(params.zero_point - widest.zero_point) <= 1


@pytest.mark.parametrize(("sign", "zero_point"), [(1, -128), (-1, 127)])
def test_no_integers_for_a_sign_that_never_occurs(sign: int, zero_point: int) -> None:
    params, _ = solve(sign * np.maximum(np.random.default_rng(2).normal(0, 1, 9000), 0), symmetric=False)
    assert params.zero_point.tolist() == [zero_point]


@SPECS
@pytest.mark.parametrize("x", [np.zeros(9), np.full(9, 5.03), np.full(9, -0.1), np.array([0.0, 1e-6])])
def test_what_leaves_no_choice_is_min_max(x: np.ndarray, symmetric: bool) -> None:
    params, widest = solve(x, symmetric)
    assert (params.scale, params.zero_point) == (widest.scale, widest.zero_point)


@SPECS
def test_a_grid_finer_than_the_bins_is_min_max(symmetric: bool) -> None:
    params, widest = solve(np.random.default_rng(3).normal(0, 1, 5000), symmetric, bits=16)
    assert (params.scale, params.zero_point) == (widest.scale, widest.zero_point)


@pytest.mark.parametrize("bins", [511, 16385])
def test_bounds_of_settings(bins: int) -> None:
    with pytest.raises(ArgumentError, match=r"num_of_bins must be within \[512, 16384\], got"):
        Entropy(num_of_bins=bins)


@given(st.integers(0, 2**32 - 1), st.integers(2, 200))
def test_coarser_bins_are_those_of_a_coarser_grid(seed: int, bins: int) -> None:
    x = np.random.default_rng(seed).normal(0, 1, 500).astype(np.float32)
    stat = DyadicHistogram.of(x)
    coarse = stat.coarsened(bins)
    assert coarse.counts.size <= bins
    assert 2 * coarse.counts.size >= bins - 2  # and no coarser than needed
    expected = np.bincount(np.trunc(x.astype(np.float64) / coarse.width).astype(int) - coarse.low)
    np.testing.assert_array_equal(coarse.counts, expected)
