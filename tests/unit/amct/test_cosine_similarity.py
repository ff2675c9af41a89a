"""Cosine similarity, as AMCT defines it (amct_formats.md: Cosine similarity)."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity

# float64 sums of float32 values, in blocks and at once
RELATIVE = 1e-12
compare = CosineSimilaritySensitivity().compare


@pytest.mark.parametrize("shape", [(7,), (2, 3, 40, 41), (1 << 14,), ((1 << 14) + 1,), (3, 1 << 14)])
def test_it_is_the_cosine_of_the_flattened_arrays(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(shape))
    a, b = (rng.normal(1, 1, shape).astype(np.float32) for _ in range(2))
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    expected = 0.5 + 0.5 * x.dot(y) / np.linalg.norm(x) / np.linalg.norm(y)
    assert compare(a, b) == pytest.approx(expected, rel=RELATIVE)


def test_the_ends_of_the_scale() -> None:
    a = np.float32([1, -2, 3])
    assert compare(a, a) == pytest.approx(1.0, rel=RELATIVE)
    assert compare(a, -a) == pytest.approx(0.0, abs=RELATIVE)
    assert compare(a, 3 * a) == pytest.approx(1.0, rel=RELATIVE)


def test_zeros() -> None:
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert compare(zeros, zeros) == 1.0
    assert compare(zeros, ones) == 1.0  # AMCT: nothing was there to be lost
    assert compare(ones, zeros) == 0.0


def test_large_values_do_not_overflow() -> None:
    large = np.full(10, 3e38, np.float32)
    assert compare(large, large) == pytest.approx(1.0, rel=RELATIVE)
