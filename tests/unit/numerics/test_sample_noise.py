"""Noise over signal of some samples, and what it says of others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from amct_onnx.numerics.sample_noise import decibel, is_wild, least_decibels, medians, one_sided, pooled, typical


def drawn(count: int, seed: int, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Noise and signal [count, 2] of samples around 30 and 20 dB."""
    rng = np.random.default_rng(seed)
    signal = rng.uniform(0.5, 2, size=(count, 2))
    return signal * np.array([1e-3, 1e-2]) * np.exp(rng.normal(0, spread, size=(count, 2))), signal


def test_each_output_counts_by_its_own_power() -> None:
    noise, signal = np.array([[1.0, 100.0], [3.0, 300.0]]), np.array([[100.0, 1e6], [100.0, 1e6]])
    assert pooled(noise, signal) == pytest.approx([0.02, 2e-4])
    assert typical(noise, signal, wild=False) == pytest.approx(0.0101)
    assert medians(noise, signal) == pytest.approx([0.02, 2e-4])


def test_an_output_of_zeros_counts_as_one() -> None:
    assert pooled(np.array([[0.5]]), np.array([[0.0]])) == [0.5]
    assert decibel(0.0) == math.inf


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 2.353), (7, 1.895), (15, 1.753), (30, 1.697), (10**6, 1.645)])
def test_quantiles_of_student(freedom: int, quantile: float) -> None:
    assert one_sided(freedom) == pytest.approx(quantile, abs=0.02)


@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize("count", [8, 16, 48])
def test_as_many_other_samples_reach_the_bound_in_19_of_20_cases(count: int, wild: bool) -> None:
    reached = 0
    for seed in range(400):
        bound = least_decibels(*drawn(count, seed), wild=wild)
        reached += decibel(typical(*drawn(count, seed + 10**6), wild=wild)) >= bound
    assert reached >= 0.92 * 400
    assert bound > 10  # and is no empty promise


def test_one_sample_says_nothing_of_others() -> None:
    assert least_decibels(*drawn(1, 0), wild=False) == -math.inf
    assert least_decibels(np.zeros((4, 1)), np.ones((4, 1)), wild=False) == math.inf


def test_wild_samples_are_those_that_own_the_noise_or_the_signal() -> None:
    noise, signal = drawn(20, 3)
    assert not is_wild(noise, signal)
    loud = noise.copy()
    loud[7, 1] *= 100
    assert is_wild(loud, signal)
    assert is_wild(noise, np.where(np.arange(20)[:, None] == 7, 1e4, signal))
    assert not is_wild(loud[:10], signal[:10])  # of ten samples, one may make half of it by chance
    assert decibel(typical(loud, signal, wild=True)) == pytest.approx(
        decibel(typical(noise, signal, wild=True)), abs=0.5
    )
