"""Learned rounding against brute force on tiny layers, its options, and what it never does."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import Moments, SecondMoments
from amct_onnx.numerics.weights.adaround import LearnedRounding, learn_rounding, solve_scale
from amct_onnx.numerics.weights.arq import solve_arq

INT8 = QSpec(bits=8)
QUICK = AdaRound(num_iteration=1000)
# A weight that is a multiple of its scale up to float32 rounding counts as one: 1e-5 of a step where the others' errors
# are some tenths. The Gram matrix is used to 40 bits.
ERROR_TOLERANCE = 1e-4


def correlated(rng: np.random.Generator, groups: int, length: int, count: int = 200) -> np.ndarray:
    """Columns float64[groups, length, count] as a layer sees them: neighbours alike, none of mean 0."""
    mixing = np.eye(length) + 0.7 * np.eye(length, k=1) + 0.3 * rng.normal(size=(length, length))
    return np.abs(mixing @ rng.normal(size=(groups, length, count))) + 0.2


def moments_of(columns: np.ndarray, blocks: int = 1) -> SecondMoments:
    """Exact moments of columns [G, K, n], in blocks of K / blocks."""
    groups, length, count = columns.shape
    cut = columns.reshape(groups * blocks, length // blocks, count)
    return SecondMoments(columns=count, mean=cut.mean(axis=2), gram=cut @ cut.transpose(0, 2, 1) / count)


def layer(seed: int, groups: int = 1, rows: int = 8, length: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weight [G, R, K], scale [G, R] and columns [G, K, n]."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(groups, rows, length)).astype(np.float32)
    scale = (np.abs(weight).max(axis=2) / rng.integers(3, 100, (groups, rows))).astype(np.float32)
    return weight, scale, correlated(rng, groups, length)


def errors(integers: np.ndarray, weight: np.ndarray, scale: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean squared error of each row's output over the columns, float64[G, R]."""
    difference = integers * scale[..., None].astype(np.float64) - weight
    return np.asarray(np.square(difference @ columns).mean(axis=2))


def nearest_of(weight: np.ndarray, scale: np.ndarray, spec: QSpec = INT8) -> np.ndarray:
    ratio = weight.astype(np.float64) / scale[..., None]
    return np.clip(np.rint(ratio), spec.qmin, spec.qmax)


def best_errors(weight: np.ndarray, scale: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The least error that any choice of rounding down or up has, row by row."""
    floor = np.floor(weight.astype(np.float64) / scale[..., None])
    choices = itertools.product((0, 1), repeat=weight.shape[2])
    return np.min([errors(np.clip(floor + c, -128, 127), weight, scale, columns) for c in choices], axis=0)


@pytest.mark.parametrize("groups", [1, 3], ids=["one", "grouped"])
@pytest.mark.parametrize("seed", range(6))
def test_brute_force_on_tiny_layers(seed: int, groups: int) -> None:
    weight, scale, columns = layer(seed, groups)
    learned = learn_rounding(weight, scale, INT8, moments_of(columns), QUICK)
    nearest = errors(nearest_of(weight, scale), weight, scale, columns)
    found = errors(learned.integers, weight, scale, columns)
    np.testing.assert_allclose(learned.nearest, nearest, rtol=ERROR_TOLERANCE)
    np.testing.assert_allclose(learned.learned, found, rtol=ERROR_TOLERANCE)
    assert (learned.learned <= learned.nearest).all()
    best = best_errors(weight, scale, columns)
    assert (found >= best * (1 - ERROR_TOLERANCE)).all()


@pytest.mark.parametrize("seed", [30, 31])
def test_it_finds_the_best_choice_of_most_rows(seed: int) -> None:
    weight, _, columns = layer(seed, groups=2, rows=100, length=8)
    scale = (np.abs(weight).max(axis=2) / 100).astype(np.float32)
    found = errors(
        learn_rounding(weight, scale, INT8, moments_of(columns), AdaRound()).integers, weight, scale, columns
    )
    best = best_errors(weight, scale, columns)
    nearest = errors(nearest_of(weight, scale), weight, scale, columns)
    # The search is no exhaustive one. Measured: 84 and 90 % of the rows, and 98 and 99 % of what could be gained.
    assert (found <= best * (1 + ERROR_TOLERANCE)).mean() > 0.75
    assert nearest.sum() - found.sum() > 0.95 * (nearest.sum() - best.sum())


@given(st.integers(0, 1 << 30), st.sampled_from([(1, 1), (1, 2), (2, 3)]), st.sampled_from([4, 6, 8]))
def test_never_worse_than_nearest_and_never_off_the_two_neighbours(
    seed: int, shape: tuple[int, int], bits: int
) -> None:
    groups, blocks = shape
    weight, scale, columns = layer(seed, groups, rows=3, length=6)
    spec = QSpec(bits=bits)
    settings = AdaRound(num_iteration=200)
    learned = learn_rounding(weight, scale, spec, moments_of(columns, blocks), settings)
    ratio = weight.astype(np.float64) / scale[..., None]
    low, high = (np.clip(edge(ratio), spec.qmin, spec.qmax) for edge in (np.floor, np.ceil))
    assert (learned.learned <= learned.nearest).all()
    assert ((learned.integers == low) | (learned.integers == high)).all()


def test_no_single_change_is_better() -> None:
    weight, scale, columns = layer(11, rows=5, length=12)
    learned = learn_rounding(weight, scale, INT8, moments_of(columns), QUICK)
    found = errors(learned.integers, weight, scale, columns)
    floor = np.floor(weight.astype(np.float64) / scale[..., None])
    for k in range(12):
        flipped = learned.integers.astype(np.float64)
        flipped[..., k] = 2 * floor[..., k] + 1 - flipped[..., k]
        assert (errors(flipped, weight, scale, columns) >= found * (1 - ERROR_TOLERANCE)).all()


def test_whole_and_clipped_weights_stay() -> None:
    weight, scale, columns = layer(12, rows=1, length=8)
    scale[:] = 0.25
    weight[0, 0, :4] = np.array([0.5, -0.75, 40.0, -33.1], np.float32)  # 2 and -3 steps; 160 and -132.4, out of range
    weight[0, 0, 0] = np.nextafter(np.float32(0.5), np.float32(1))  # float32 rounding of the same
    learned = learn_rounding(weight, scale, INT8, moments_of(columns), QUICK)
    assert learned.integers[0, 0, :4].tolist() == [2, -3, 127, -128]


def test_a_weight_on_its_grid_makes_no_error() -> None:
    integers = np.random.default_rng(3).integers(-128, 128, (1, 4, 9))
    scale = np.array([[0.1, 0.3, 1e-6, 7.7]], np.float32)
    weight = integers.astype(np.float32) * scale[..., None]
    columns = correlated(np.random.default_rng(4), 1, 9)
    learned = learn_rounding(weight, scale, INT8, moments_of(columns), QUICK)
    np.testing.assert_array_equal(learned.integers, integers)
    assert not learned.nearest.any()
    assert not learned.learned.any()


def test_inputs_that_are_zero_leave_rounding_to_nearest() -> None:
    weight, scale, columns = layer(13)
    learned = learn_rounding(weight, scale, INT8, moments_of(np.zeros_like(columns)), QUICK)
    np.testing.assert_array_equal(learned.integers, nearest_of(weight, scale))
    assert not learned.learned.any()


def test_blocks_know_the_means_of_each_other() -> None:
    """With columns that hardly vary, the error is that of the mean: blocks see it as a whole matrix does."""
    weight, scale, columns = layer(14, rows=24, length=16)
    steady = 1 + 0.01 * columns
    whole, cut = (learn_rounding(weight, scale, INT8, moments_of(steady, blocks), QUICK) for blocks in (1, 4))
    apart = replace(moments_of(steady, 4), mean=np.zeros((4, 4)))
    unaware = learn_rounding(weight, scale, INT8, apart, QUICK)
    error = [errors(found.integers, weight, scale, steady).sum() for found in (whole, cut, unaware)]
    assert error[1] < 1.01 * error[0]
    assert error[2] > 1.3 * error[0]


# Options


def larger(settings: AdaRound) -> LearnedRounding:
    """A layer with so much to choose that any other path of learning ends elsewhere."""
    weight, scale, columns = layer(20, rows=16, length=48)
    return learn_rounding(weight, scale, INT8, moments_of(columns), settings)


@pytest.mark.parametrize(
    "other",
    [
        {"num_iteration": 300},
        {"reg_param": 0.3},
        {"beta_range": (20.0, 10.0)},
        {"beta_range": (8.0, 2.0)},
        {"warm_start": 0.7},
    ],
    ids=str,
)
def test_each_option_matters(other: dict[str, object]) -> None:
    usual = larger(AdaRound(num_iteration=2000))
    assert (usual.integers != larger(replace(AdaRound(num_iteration=2000), **other)).integers).any()
    assert (usual.integers == larger(AdaRound(num_iteration=2000)).integers).all()


def test_no_iteration_is_rounding_to_nearest() -> None:
    weight, scale, _ = layer(20, rows=16, length=48)
    learned = larger(AdaRound(num_iteration=0))
    np.testing.assert_array_equal(learned.integers, nearest_of(weight, scale))
    assert (learned.learned == learned.nearest).all()


def test_learning_is_better_than_descent_alone_and_more_of_it_better_than_less() -> None:
    few, many = (larger(AdaRound(num_iteration=n)).learned.sum() for n in (20, 10000))
    assert many < 0.95 * few < 0.5 * larger(QUICK).nearest.sum()


# Scales


def test_the_scale_is_never_worse_than_that_of_the_extremes() -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_t(3, (12, 60)).astype(np.float32)
    spec = QSpec(bits=4, channel_axis=0)
    learned, extremes = solve_scale(rows, spec), solve_arq(rows, spec)
    error, usual = (np.square(fake_quantize(rows, p) - rows).sum(axis=1) for p in (learned, extremes))
    assert (error <= usual).all()
    assert (error < 0.9 * usual).any()
    assert (learned.scale <= extremes.scale).all()


def test_a_weight_of_zeros_and_one_that_is_not_finite() -> None:
    spec = QSpec(bits=8, channel_axis=0)
    assert solve_scale(np.zeros((2, 3), np.float32), spec).scale.tolist() == [1, 1]
    with pytest.raises(ValueError, match="NaN or Inf"):
        solve_scale(np.array([[np.nan, 1]], np.float32), spec)


def test_moments_of_calibration_give_what_exact_ones_give() -> None:
    """The cut of the columns to 10 to 20 bits costs next to nothing."""
    weight, scale, columns = layer(21, rows=16, length=48)
    exact = learn_rounding(weight, scale, INT8, moments_of(columns), QUICK)
    cut = learn_rounding(weight, scale, INT8, Moments.of(columns.astype(np.float32)).solve(), QUICK)
    one, other = (errors(found.integers, weight, scale, columns).sum() for found in (exact, cut))
    assert other < 1.1 * one


def test_progress_adds_up_to_one_and_stops_the_work() -> None:
    weight, scale, columns = layer(22, groups=2, rows=4, length=20)
    shares: list[float] = []
    learn_rounding(weight, scale, INT8, moments_of(columns), QUICK, shares.append)
    assert sum(shares) == pytest.approx(1)
    assert len(shares) >= QUICK.num_iteration / 20

    def interrupt(share: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        learn_rounding(weight, scale, INT8, moments_of(columns), QUICK, interrupt)


def test_one_scale_for_all_columns_is_that_of_the_row() -> None:
    weight, scale, columns = layer(21, groups=2)
    spread = np.broadcast_to(scale[..., None], weight.shape)
    moments = moments_of(columns, blocks=2)
    by_row = learn_rounding(weight, scale, INT8, moments, QUICK)
    by_column = learn_rounding(weight, spread, INT8, moments, QUICK)
    assert np.array_equal(by_column.integers, by_row.integers)
    np.testing.assert_allclose(by_column.learned, by_row.learned, rtol=ERROR_TOLERANCE)


@pytest.mark.parametrize("blocks", [1, 2])
def test_columns_with_scales_and_zero_points_of_their_own(blocks: int) -> None:
    weight, _, columns = layer(22, rows=12)
    rng = np.random.default_rng(22)
    scale = (np.abs(weight).max() / rng.uniform(3, 12, weight.shape)).astype(np.float32)
    shift = rng.integers(-3, 4, weight.shape).astype(np.float64)
    spec = QSpec(bits=5)
    found = learn_rounding(weight, scale, spec, moments_of(columns, blocks), QUICK, shift=shift)
    ratio = weight.astype(np.float64) / scale + shift
    nearest = np.clip(np.rint(ratio), spec.qmin, spec.qmax)
    assert (np.abs(found.integers - ratio) < 1).all()
    got, plain = (np.square(((q - shift) * scale - weight) @ columns).mean(axis=2) for q in (found.integers, nearest))
    if blocks == 1:  # with several, only the means between them are known
        np.testing.assert_allclose(found.learned, got, rtol=ERROR_TOLERANCE)
        np.testing.assert_allclose(found.nearest, plain, rtol=ERROR_TOLERANCE)
    assert got.sum() < 0.7 * plain.sum()
