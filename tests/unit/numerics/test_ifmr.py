"""IFMR on the histogram against IFMR on the raw samples (amct_formats.md: IFMR)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.activations.ifmr import candidate_ratios, solve_ifmr
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.grid import FLT_EPSILON, QParams, QSpec
from amct_onnx.numerics.settings import ActivationSettings, Ifmr
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

Array = np.ndarray[Any, np.dtype[np.float64]]

# The histogram knows each element only up to its bin; what that costs of the error of the chosen scale.
LOSS_TOLERANCE = 0.005
ASYMMETRIC, SYMMETRIC = QSpec(symmetric=False), QSpec(symmetric=True)
SPECS = pytest.mark.parametrize("spec", [ASYMMETRIC, SYMMETRIC], ids=["asymmetric", "symmetric"])


# The specification, on all samples and in float64


def _extremes(x: Array, settings_: Ifmr) -> tuple[float, float]:
    ordered = np.sort(x)
    ranks = []
    for percentile in (settings_.max_percentile, settings_.min_percentile):
        exact = abs(percentile - 1) < FLT_EPSILON
        ranks.append(1 if exact else max(1, x.size - math.floor(percentile * x.size)))
    return min(0.0, float(ordered[ranks[1] - 1])), max(0.0, float(ordered[-ranks[0]]))


def _process_scale(scale: float) -> float:
    return 1.0 if scale < FLT_EPSILON else scale


def _loss(x: Array, low: float, high: float, scale: float) -> float:
    y = np.rint(np.clip(x, low, high) / scale) * scale
    return float(np.mean((y - x) ** 2))


def _candidates(x: Array, spec: QSpec, settings_: Ifmr) -> list[tuple[float, float]]:
    """(scale, loss) of every candidate."""
    low, high = _extremes(x, settings_)
    found = []
    for i in range(round((settings_.search_end - settings_.search_start) / settings_.search_step) + 1):
        ratio = settings_.search_start + i * settings_.search_step
        if spec.symmetric:
            a = high if abs(high) > abs(low) else low
            bound = ratio * abs(a)
            scale = _process_scale(bound / (2 ** (spec.bits - 1) - 1 if a > 0 else 2 ** (spec.bits - 1)))
            found.append((scale, _loss(x, -bound, bound, scale)))
        else:
            bound = ratio * high
            scale = _process_scale((bound - low) / (2**spec.bits - 1))
            found.append((scale, _loss(x, low, bound, scale)))
    return found


def _solve(x: Array, spec: QSpec, settings_: Ifmr | None = None) -> QParams:
    return solve_ifmr(DyadicHistogram.of(x.astype(np.float32)), spec, settings_ or Ifmr())


def _samples(name: str, n: int = 20_000) -> Array:
    rng = np.random.default_rng(list(name.encode()))
    x = {
        "normal": lambda: rng.normal(0, 1, n),
        "shifted": lambda: rng.normal(3, 1, n),
        "uniform": lambda: rng.uniform(-2, 5, n),
        "relu": lambda: np.maximum(rng.normal(0, 1, n), 0),
        "laplace": lambda: rng.laplace(0, 2, n),
        "heavy_tail": lambda: rng.standard_t(3, n),
        "all_positive": lambda: rng.uniform(1, 4, n),
        "all_negative": lambda: -rng.gamma(2, 1, n),
        "positive_dominant": lambda: np.concatenate([rng.uniform(-1, 0, n), rng.uniform(0, 7, n)]),
        "negative_dominant": lambda: np.concatenate([rng.uniform(-7, 0, n), rng.uniform(0, 1, n)]),
        "outlier": lambda: np.concatenate([rng.normal(0, 1, n), [40.0]]),
        "negative_outlier": lambda: np.concatenate([rng.normal(0, 1, n), [-40.0]]),
        "small": lambda: rng.normal(0, 1e-4, n),
        "large": lambda: rng.normal(0, 1e6, n),
        "few": lambda: rng.normal(0, 1, 7),
        "sigmoid": lambda: 1 / (1 + np.exp(-rng.normal(0, 3, n))),
    }[name]()
    return x.astype(np.float32).astype(np.float64)


NAMES = (
    "normal", "shifted", "uniform", "relu", "laplace", "heavy_tail", "all_positive", "all_negative",
    "positive_dominant", "negative_dominant", "outlier", "negative_outlier", "small", "large", "few", "sigmoid",
)  # fmt: skip


@SPECS
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings_",
    [Ifmr(), Ifmr(search_start=0.3, search_end=1.7, search_step=0.05)],
    ids=["default", "wide"],
)
def test_the_chosen_scale_is_as_good_as_the_best_candidate(name: str, spec: QSpec, settings_: Ifmr) -> None:
    x = _samples(name)
    candidates = _candidates(x, spec, settings_)
    params = _solve(x, spec, settings_)
    chosen = min(candidates, key=lambda c: abs(c[0] - params.scale[0]))
    assert chosen[0] == pytest.approx(params.scale[0], rel=1e-6)  # it is one of the candidates
    assert chosen[1] <= (1 + LOSS_TOLERANCE) * min(loss for _, loss in candidates)


@SPECS
@pytest.mark.parametrize("bits", [4, 6, 8, 16])
def test_every_width_of_the_grid(spec: QSpec, bits: int) -> None:
    x = _samples("laplace")
    spec = QSpec(bits=bits, symmetric=spec.symmetric)
    candidates = _candidates(x, spec, Ifmr())
    chosen = min(candidates, key=lambda c: abs(c[0] - _solve(x, spec).scale[0]))
    assert chosen[1] <= (1 + LOSS_TOLERANCE) * min(loss for _, loss in candidates)


@SPECS
@pytest.mark.parametrize("name", ["normal", "shifted", "heavy_tail", "negative_dominant", "relu"])
@pytest.mark.parametrize("percentile", [0.9, 0.99, 0.999])
def test_percentiles_cut_the_range(name: str, percentile: float, spec: QSpec) -> None:
    """One candidate of ratio 1 leaves nothing but the range to choose: the k-th largest and smallest elements."""
    x = _samples(name)
    settings_ = Ifmr(
        max_percentile=percentile, min_percentile=1 - (1 - percentile) / 2, search_start=1.0, search_end=1.0
    )
    histogram = DyadicHistogram.of(x.astype(np.float32))
    params = solve_ifmr(histogram, spec, settings_)
    low, high = _extremes(x, settings_)
    if spec.symmetric:
        span, steps = max(high, -low), 127 if high >= -low else 128
    else:
        span, steps = high - low, 255
    # Each end is known up to the width of its bin; the bin at zero is twice as wide.
    assert params.scale[0] * steps == pytest.approx(span, abs=4 * histogram.width)


@SPECS
def test_percentiles_and_search_together(spec: QSpec) -> None:
    x = _samples("heavy_tail", 200_000)
    settings_ = Ifmr(max_percentile=0.999, min_percentile=0.999)
    low, high = _extremes(x, settings_)
    scale = float(_solve(x, spec, settings_).scale[0])
    steps = 127 if high >= -low else 128
    bounds = (-scale * steps, scale * steps) if spec.symmetric else (low, low + 255 * scale)
    best = min(loss for _, loss in _candidates(x, spec, settings_))
    assert _loss(x, *bounds, scale) <= (1 + LOSS_TOLERANCE) * best


def test_below_a_million_elements_the_default_percentile_takes_the_extremes() -> None:
    x = _samples("heavy_tail")
    assert x.size < 1_000_000
    exact = _solve(x, ASYMMETRIC, Ifmr(max_percentile=1.0, min_percentile=1.0))
    assert exact.scale == _solve(x, ASYMMETRIC).scale


@pytest.mark.parametrize(
    ("settings_", "count"),
    [
        (Ifmr(), 61),  # both ends; the specification's float32 loses the last one
        (Ifmr(search_start=0.8, search_end=1.2, search_step=0.02), 21),
        (Ifmr(search_start=1.0, search_end=1.0, search_step=0.1), 1),
    ],
)
def test_number_of_candidates(settings_: Ifmr, count: int) -> None:
    ratios = candidate_ratios(settings_)
    assert len(ratios) == count
    np.testing.assert_allclose(ratios, settings_.search_start + settings_.search_step * np.arange(count), rtol=1e-12)


@pytest.mark.parametrize(("spec", "zero_point"), [(ASYMMETRIC, -128), (SYMMETRIC, 0)])
def test_all_zero_gets_scale_one(spec: QSpec, zero_point: int) -> None:
    params = _solve(np.zeros(100), spec)
    assert params.scale.tolist() == [1.0]
    assert params.zero_point.tolist() == [zero_point]


@pytest.mark.parametrize("constant", [5.0, 0.1, 1000.0])
def test_a_positive_constant_is_represented_without_error(constant: float) -> None:
    """The zero of the range is added to it, and the top of the grid is the constant or a fraction that divides it."""
    for spec in (ASYMMETRIC, SYMMETRIC):
        x = np.full(50, constant, np.float32).astype(np.float64)
        params = _solve(x, spec)
        candidates = _candidates(x, spec, Ifmr())
        assert min(abs(c[0] - params.scale[0]) for c in candidates) <= 1e-6 * params.scale[0]
        assert params.scale[0] * params.spec.qmax * 2 >= 0.7 * constant
        integer = round(constant / params.scale[0])
        assert integer * params.scale[0] == pytest.approx(constant, rel=1e-5)


@pytest.mark.parametrize("constant", [-5.0, -0.1])
def test_a_negative_constant_has_one_asymmetric_candidate(constant: float) -> None:
    """Only the upper bound is searched, and it is zero: the scale is |x| / 255 and the zero point the highest one."""
    params = _solve(np.full(50, constant), ASYMMETRIC)
    assert params.scale[0] == pytest.approx(-constant / 255, rel=1e-6)
    assert params.zero_point.tolist() == [127]


def test_all_negative_keeps_its_lower_bound() -> None:
    x = _samples("all_negative")
    params = _solve(x, ASYMMETRIC)
    assert params.scale[0] == pytest.approx(-x.min() / 255, rel=1e-6)
    assert params.zero_point.tolist() == [127]


def test_all_positive_has_the_lowest_zero_point() -> None:
    assert _solve(_samples("all_positive"), ASYMMETRIC).zero_point.tolist() == [-128]


@pytest.mark.parametrize(("sign", "steps"), [(1, 127), (-1, 128)])
def test_the_dominant_sign_decides_the_symmetric_steps(sign: int, steps: int) -> None:
    only = Ifmr(search_start=1.0, search_end=1.0)
    params = _solve(sign * np.array([-2.0, 3.0, 4.0]), SYMMETRIC, only)
    assert params.scale[0] == pytest.approx(4 / steps, rel=1e-6)


def test_of_two_equal_magnitudes_the_positive_one_decides() -> None:
    """The specification takes the negative one; then +1 would not fit the grid."""
    params = _solve(np.array([-1.0, 0.3, 1.0]), SYMMETRIC, Ifmr(search_start=1.0, search_end=1.0))
    assert params.scale[0] == pytest.approx(1 / 127, rel=1e-6)


@given(st.floats(-100, 0, width=32), st.floats(0, 100, width=32))
def test_the_asymmetric_offset_is_that_of_the_lower_bound(low: float, high: float) -> None:
    """offset = -round(min / scale) - 128, where round takes halves away from zero."""
    params = _solve(np.array([low, high]), ASYMMETRIC)
    q = low / float(params.scale[0])
    rounded = math.copysign(math.floor(abs(q) + 0.5), q)
    assert int(params.zero_point[0]) == np.clip(-rounded - 128, -128, 127)


def test_a_huge_outlier_pulls_the_range_to_the_lowest_ratio() -> None:
    """Finer steps for all others outweigh what one far element loses: the search goes as low as it may."""
    x = np.concatenate([np.random.default_rng(3).normal(0, 1, 500_000), [20.0]])
    params = _solve(x, ASYMMETRIC)
    low = float(np.float32(x.min()))
    assert params.scale[0] == pytest.approx((0.7 * 20 - low) / 255, rel=1e-6)


def test_an_outlier_that_no_scale_can_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        _solve(np.array([0.0, 3e38]), ASYMMETRIC)


def test_candidates_without_a_legal_scale_are_left_out() -> None:
    """The largest range with a legal scale is 255 * 2^23: above it only the lower ratios remain."""
    params = _solve(np.array([0.0, 1.2 * 255 * 2**23]), ASYMMETRIC)
    assert params.scale[0] <= 2**23
    assert params.scale[0] > 0.75 * 2**23


@settings(max_examples=examples(200))
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**30), 2.0**30, width=32)),
    st.booleans(),
    st.integers(2, 16),
)
def test_parameters_hold_their_invariants(x: np.ndarray, asymmetric: bool, bits: int) -> None:
    settings_ = ActivationSettings(num_bits=bits, asymmetric=asymmetric)
    histogram = DyadicHistogram.of(x)
    span = float(max(x.max(), 0)) - float(min(x.min(), 0))
    if span / 2 ** (bits - 1) > 2**22:  # no certain legal scale: a refusal is right
        return
    if 0 < float(np.abs(x).max()) < FLT_EPSILON * 2**bits:  # refused when everything would round to zero
        return
    params = solve_activation(histogram, settings_)
    assert params.spec == QSpec(bits=bits, symmetric=not asymmetric)
    assert params.scale.shape == params.zero_point.shape == (1,)
    assert FLT_EPSILON <= params.scale[0] <= 1 / FLT_EPSILON
    assert params.spec.qmin <= params.zero_point[0] <= params.spec.qmax
    assert asymmetric or params.zero_point[0] == 0
