"""DMQ factors: the formula, what zeros do, and the claim of the method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amct_onnx.numerics.channel_factors import (
    dmq_factors,
    equalizing_factors,
    has_outliers,
    rounding_noise,
    smooth_factors,
)
from amct_onnx.numerics.grid import FLT_EPSILON, QSpec, asymmetric_from_range
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.weights.arq import solve_arq

ROUNDING = 1e-6  # float32
magnitudes = st.floats(2**-10, 2**10, width=32)


@given(st.lists(st.tuples(magnitudes, magnitudes), min_size=1, max_size=8), st.floats(0.2, 0.8))
def test_factors_follow_the_formula(pairs: list[tuple[float, float]], strength: float) -> None:
    a, w = np.asarray(pairs).T
    np.testing.assert_allclose(dmq_factors(a, w, strength), a**strength / w ** (1 - strength), rtol=ROUNDING)


@given(st.lists(st.tuples(magnitudes, magnitudes), min_size=1, max_size=8))
def test_with_a_strength_of_one_half_both_sides_become_equal(pairs: list[tuple[float, float]]) -> None:
    a, w = np.asarray(pairs).T
    factors = dmq_factors(a, w, 0.5).astype(np.float64)
    np.testing.assert_allclose(a / factors, w * factors, rtol=ROUNDING)


def test_a_larger_strength_takes_more_from_the_activation() -> None:
    a, w = [8.0, 1.0], [1.0, 1.0]
    small, large = dmq_factors(a, w, 0.2), dmq_factors(a, w, 0.8)
    assert small[0] < large[0]
    np.testing.assert_allclose([small[0], large[0]], [8**0.2, 8**0.8], rtol=ROUNDING)


def test_a_channel_that_is_zero_on_one_side_is_brought_to_the_largest_of_the_other() -> None:
    a, w = np.asarray([4.0, 0.0, 9.0, 0.0]), np.asarray([1.0, 5.0, 0.0, 0.0])
    factors = dmq_factors(a, w, 0.5)
    assert factors[0] == 2.0
    np.testing.assert_allclose(w[1] * factors[1], w[0] * factors[0], rtol=ROUNDING)
    np.testing.assert_allclose(a[2] / factors[2], a[0] / factors[0], rtol=ROUNDING)
    assert factors[3] == 1.0


@pytest.mark.parametrize(("a", "w"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([1.0, 0.0], [0.0, 1.0])])
def test_without_a_channel_that_is_there_on_both_sides_nothing_is_moved(a: list[float], w: list[float]) -> None:
    assert dmq_factors(a, w, 0.5).tolist() == [1.0, 1.0]


def test_an_impossible_factor_is_refused_with_its_channel() -> None:
    with pytest.raises(ValueError, match=r"factor of channel 1 would be .*activation 1e[+]38, weight 1e-06"):
        dmq_factors([1.0, 1e38], [1.0, 1e-6], 0.8)
    assert dmq_factors([1.0], [1.0], 0.8)[0] >= FLT_EPSILON


@given(st.lists(magnitudes, min_size=1, max_size=8), st.floats(0, 1))
def test_smoothing_follows_the_magnitudes_and_keeps_their_geometric_mean(a: list[float], strength: float) -> None:
    factors = smooth_factors(a, strength).astype(np.float64)
    floored = np.maximum(a, max(a) / 1000)
    np.testing.assert_allclose(np.log(factors).mean(), 0, atol=1e-5)
    np.testing.assert_allclose(factors / factors[0], (floored / floored[0]) ** strength, rtol=1e-5)


def test_smoothing_brings_channels_together() -> None:
    a = np.asarray([1.0, 1.5, 2.0, 30.0])
    before, after = a.max() / np.median(a), (a / smooth_factors(a)).max() / np.median(a / smooth_factors(a))
    assert after < before / 4
    assert has_outliers(a)
    assert not has_outliers(a / smooth_factors(a))


@pytest.mark.parametrize("a", [[], [0.0, 0.0]])
def test_silence_is_left_alone(a: list[float]) -> None:
    assert smooth_factors(a).tolist() == [1.0] * len(a)
    assert not has_outliers(a)


@given(arrays(np.float32, (3, 6), elements=st.floats(0, 1e4, width=32)), st.floats(0, 1))
def test_equalizing_factors_lie_between_the_least_and_one(magnitudes: np.ndarray, strength: float) -> None:
    factors = equalizing_factors(list(magnitudes), strength=strength)
    assert factors.dtype == np.float32
    assert factors.max() == 1
    assert factors.min() >= np.float32(1 / 64)


def test_with_full_strength_one_tensor_gets_one_range() -> None:
    magnitude = np.array([8, 4, 2, 1], np.float32)
    np.testing.assert_allclose(magnitude / equalizing_factors([magnitude], strength=1.0), 8)
    np.testing.assert_allclose(magnitude / equalizing_factors([magnitude], strength=0.0), magnitude)


@given(arrays(np.float32, 6, elements=st.floats(0, 6, width=32)), st.floats(0, 1))
def test_behind_a_ceiling_no_channel_loses_what_was_seen(magnitude: np.ndarray, strength: float) -> None:
    factors = equalizing_factors([magnitude], strength=strength, ceiling=6.0)
    assert factors.max() <= 1
    assert (6.0 * factors >= np.minimum(magnitude, 6.0) * (1 - 1e-6)).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 6, 5, 9), (4, 1, 1, 9), (1, 3, 8, 1), (2, 3, 4, 4)]))
def test_noise_is_that_of_the_layer_with_the_factors_put_in(seed: int, shape: tuple[int, int, int, int]) -> None:
    random = np.random.default_rng(seed)
    weight, channels = random.standard_normal(shape), shape[0] * shape[2]
    magnitudes, factors = random.uniform(0.5, 5, channels), random.uniform(0.1, 1, channels)
    multiplied = weight * factors.reshape(shape[0], 1, shape[2], 1)
    expected = rounding_noise(multiplied, magnitudes / factors, np.ones(channels))
    assert rounding_noise(weight, magnitudes, np.ones(channels), factors)[1:] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_noise_is_near_to_what_rounding_makes_of_a_product(strength: float) -> None:
    random = np.random.default_rng(0)
    magnitudes = np.geomspace(1, 8, 64)
    factors = (magnitudes / magnitudes.max()) ** strength
    weight = random.standard_normal((32, 64))
    samples = np.clip(np.abs(random.standard_normal((4000, 64))) / 4.5, 0, 1) * magnitudes  # a mean square of 1/20
    divided, multiplied = (samples / factors).astype(np.float32), (weight * factors).astype(np.float32)
    grid = asymmetric_from_range(0.0, float((magnitudes / factors).max()), QSpec(symmetric=False))
    rounded = fake_quantize(divided, grid).astype(np.float64)
    rows = fake_quantize(multiplied, solve_arq(multiplied, QSpec(channel_axis=0))).astype(np.float64)
    exact = samples @ weight.T
    noise = np.mean(
        ((rounded @ rows.T - exact) ** 2).mean(axis=0) / (weight**2 * (samples**2).mean(axis=0)).sum(axis=1)
    )
    (estimate,) = rounding_noise(weight[None, ..., None], magnitudes, factors)
    assert estimate == pytest.approx(noise, rel=0.25)  # inputs have a mean, which the estimate does not know


def test_noise_of_silence_is_none() -> None:
    assert rounding_noise(np.ones((1, 2, 3, 1)), np.zeros(3), np.ones(3)) == (0.0,)
    alone = rounding_noise(np.ones((1, 1, 3, 1)), np.ones(3), np.ones(3))
    beside = rounding_noise(np.array([[[1.0], [1.0], [1.0]], [[0.0], [0.0], [0.0]]])[None], np.ones(3), np.ones(3))
    assert beside == alone
