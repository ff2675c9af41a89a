"""MSE on the histogram against a dense search over all grids on the elements themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.activations.minmax import solve_minmax
from amct_onnx.numerics.activations.mse import solve_mse
from amct_onnx.numerics.grid import FLT_EPSILON, QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

Floats = np.ndarray[Any, np.dtype[np.float32]]

# The histogram knows elements up to their bin, and the search has a grid of its own: of the error of the best grid.
LOSS_TOLERANCE = 0.01
# Two values that most elements have can both lie on a grid by chance, and the search does not look at every scale. In
# squared steps of the min-max grid for each element, whose rounding costs 1/12 on average.
CHANCE_TOLERANCE = 0.01
SPECS = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def loss(x: Floats, params: QParams) -> float:
    return float(np.square(fake_quantize(x, params).astype(np.float64) - x).sum())


def best_loss(x: Floats, spec: QSpec, scales: int) -> float:
    """The least error over many scales from 1.1 to 1/60 of the min-max scale, and all zero points."""
    widest = float(solve_minmax(DyadicHistogram.of(x), spec).scale[0])
    tried = widest * np.concatenate(([1.0], 1.1 * np.exp(-np.linspace(0, np.log(66), scales))))
    return min(least_error(x.astype(np.float64), s, spec) for s in tried)


def least_error(x: np.ndarray, scale: float, spec: QSpec) -> float:
    """Over all zero points z: error(z) = sum of x^2 - what the steps above and below zero save."""
    steps = spec.qmax - spec.qmin
    saved = []
    for side in (np.sort(x[x > 0]), np.sort(-x[x < 0])):
        sums = np.concatenate(([0.0], np.cumsum(side)))
        boundaries = (np.arange(steps) + 0.5) * scale
        i = np.searchsorted(side, boundaries)
        each = 2 * scale * (sums[-1] - sums[i] - (side.size - i) * boundaries)
        saved.append(np.concatenate(([0.0], np.cumsum(each))))
    errors = np.square(x).sum() - saved[0][::-1] - saved[1]
    return float(errors[-spec.qmin] if spec.symmetric else errors.min())


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3, 0, 6) / 6


def samples(name: str, n: int = 10_000) -> Floats:
    rng = np.random.default_rng(list(name.encode()))
    return {
        "normal": lambda: rng.normal(0, 1, n),
        "uniform": lambda: rng.uniform(-2, 5, n),
        "laplace": lambda: rng.laplace(0, 2, n),
        "heavy_tail": lambda: rng.standard_t(3, n),
        "relu": lambda: np.maximum(rng.normal(0, 1, n), 0),
        "relu6": lambda: np.clip(rng.normal(1, 4, n), 0, 6),
        "hard_tanh": lambda: np.clip(rng.normal(0, 2, n), -1, 1),
        "hard_swish": lambda: _hard_swish(rng.normal(0, 3, n)),
        "sigmoid": lambda: 1 / (1 + np.exp(-rng.normal(0, 3, n))),
        "all_positive": lambda: rng.uniform(1, 4, n),
        "all_negative": lambda: -rng.gamma(2, 1, n),
        "outlier": lambda: np.concatenate([rng.normal(0, 1, n), [100.0]]),
        "outliers": lambda: np.concatenate([rng.normal(0, 1, n), [-300.0, 20.0]]),
        "two_humps": lambda: np.concatenate([rng.normal(0, 1, n), rng.normal(30, 0.5, n // 50)]),
        "small": lambda: rng.normal(0, 1e-4, n),
        "large": lambda: rng.normal(0, 1e6, n),
        "integers": lambda: rng.integers(0, 300, n),
    }[name]().astype(np.float32)


def chance_tolerance(histogram: DyadicHistogram, spec: QSpec) -> float:
    return CHANCE_TOLERANCE * histogram.total * float(solve_minmax(histogram, spec).scale[0]) ** 2


NAMES = (
    "normal", "uniform", "laplace", "heavy_tail", "relu", "relu6", "hard_tanh", "hard_swish", "sigmoid", "all_positive",
    "all_negative", "outlier", "outliers", "two_humps", "small", "large", "integers",
)  # fmt: skip


@SPECS
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_no_grid_is_noticeably_better(name: str, bits: int, symmetric: bool) -> None:
    x, spec = samples(name), QSpec(bits=bits, symmetric=symmetric)
    histogram = DyadicHistogram.of(x)
    chance = chance_tolerance(histogram, spec) if name == "hard_tanh" else 0.0
    assert loss(x, solve_mse(histogram, spec)) <= (1 + LOSS_TOLERANCE) * best_loss(x, spec, 500) + chance


@settings(max_examples=examples(25))
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-4, 4),
    st.floats(1.5, 50),
    st.sampled_from([0.0, 0.02, 0.5]),
    st.sampled_from([None, (0.0, 6.0), (0.0, np.inf), (-1.0, 1.0)]),
    st.integers(-4, 4),
    st.booleans(),
)
def test_nor_for_any_shape_of_tail_spikes_and_scale(
    seed: int, shift: float, tail: float, zeros: float, clip: tuple[float, float] | None, power: int, symmetric: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(tail, 3000) + shift
    x = x if clip is None else np.clip(x, *clip)
    x = ((rng.random(x.size) >= zeros) * x * 10.0**power).astype(np.float32)
    spec, histogram = QSpec(symmetric=symmetric), DyadicHistogram.of(x)
    chance = chance_tolerance(histogram, spec) if clip else 0.0
    assert loss(x, solve_mse(histogram, spec)) <= (1 + LOSS_TOLERANCE) * best_loss(x, spec, 400) + chance


@SPECS
@pytest.mark.parametrize("bits", [2, 3, 6, 10, 11, 16])
def test_every_width_of_the_grid(bits: int, symmetric: bool) -> None:
    x, spec = samples("outlier"), QSpec(bits=bits, symmetric=symmetric)
    # Of thousands of fine grids the best one owes a little to chance.
    tolerance = LOSS_TOLERANCE if bits <= 10 else 0.05
    assert loss(x, solve_mse(DyadicHistogram.of(x), spec)) <= (1 + tolerance) * best_loss(x, spec, 300)


@settings(max_examples=examples(200))
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**28), 2.0**28, width=32)),
    st.booleans(),
    st.integers(2, 16),
)
def test_never_worse_than_min_max_and_always_legal(x: Floats, symmetric: bool, bits: int) -> None:
    spec, histogram = QSpec(bits=bits, symmetric=symmetric), DyadicHistogram.of(x)
    if float(np.abs(x).max()) / (1 << (bits - 1)) > 2**22:  # no certain legal scale
        return
    params, widest = solve_mse(histogram, spec), solve_minmax(histogram, spec)
    assert FLT_EPSILON <= params.scale[0] <= 1 / FLT_EPSILON
    # Elements of a bin count as evenly spread; a handful of them need not be.
    step = max(float(widest.scale[0]), histogram.width)
    assert loss(x, params) <= loss(x, widest) + (0.05 if bits <= 10 else 0.25) * x.size * step**2


@SPECS
@pytest.mark.parametrize("value", [5.03, -0.1, 1000.0])
def test_a_constant_takes_the_whole_grid(value: float, symmetric: bool) -> None:
    """Many grids hold it exactly; the one of min-max is taken."""
    histogram = DyadicHistogram.of(np.full(50, value, np.float32))
    spec = QSpec(symmetric=symmetric)
    params, widest = solve_mse(histogram, spec), solve_minmax(histogram, spec)
    assert (params.scale, params.zero_point) == (widest.scale, widest.zero_point)


@SPECS
def test_relu6_keeps_six_exact(symmetric: bool) -> None:
    """The bounds of an activation that many elements reach are levels of the grid."""
    x = samples("relu6")
    params = solve_mse(DyadicHistogram.of(x), QSpec(symmetric=symmetric))
    np.testing.assert_allclose(fake_quantize(np.float32([0.0, 6.0]), params), [0.0, 6.0], atol=0.01 * params.scale[0])


@SPECS
def test_a_range_without_a_legal_scale_is_an_error(symmetric: bool) -> None:
    with pytest.raises(ValueError, match="too large"):
        solve_mse(DyadicHistogram.of(np.float32([0.0, 3e38])), QSpec(symmetric=symmetric))


def test_the_largest_legal_scale_is_not_passed() -> None:
    """A step of 1.5 * 2^23 would hold both values exactly."""
    stat = DyadicHistogram.of(np.float32([-1.5 * 2.0**23, 1.5 * 2.0**23]))
    assert solve_mse(stat, QSpec(bits=2, symmetric=False)).scale[0] <= 1 / FLT_EPSILON


@pytest.mark.parametrize(("symmetric", "zero_point"), [(False, -128), (True, 0)])
def test_zeros_get_scale_one(symmetric: bool, zero_point: int) -> None:
    params = solve_mse(DyadicHistogram.of(np.zeros(9, np.float32)), QSpec(symmetric=symmetric))
    assert (params.scale.tolist(), params.zero_point.tolist()) == ([1.0], [zero_point])
