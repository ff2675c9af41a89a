"""DMQ factors: the formula, what zeros do, and the claim of the method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.core.balance import dmq_factors, has_outliers, smooth_factors
from amct_onnx.core.qparams import FLT_EPSILON

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
