"""Percentile: the k-th largest and smallest elements decide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from amct_onnx.errors import ArgumentError
from amct_onnx.numerics.activations.minmax import solve_minmax
from amct_onnx.numerics.activations.percentile import solve_percentile
from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.settings import Percentile
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

SPECS = pytest.mark.parametrize("spec", [QSpec(symmetric=False), QSpec()], ids=["asymmetric", "symmetric"])


@SPECS
@pytest.mark.parametrize("shift", [0.0, 3.0, -20.0])
@pytest.mark.parametrize("percentile", [0.9, 0.999, 0.9999])
def test_the_range_ends_at_the_kth_elements(percentile: float, shift: float, spec: QSpec) -> None:
    x = (np.random.default_rng(0).standard_t(4, 20_000) + shift).astype(np.float32)
    stat = DyadicHistogram.of(x)
    params = solve_percentile(stat, spec, Percentile(percentile=percentile))
    cut = max(1, x.size - math.floor(percentile * x.size))
    ordered = np.sort(x)
    low, high = min(0.0, float(ordered[cut - 1])), max(0.0, float(ordered[-cut]))
    wanted = (high - low) / 255 if not spec.symmetric else max(high / 127, -low / 128)
    # Both ends are known up to a bin, so of two ends that are as long either may be found the longer one: 127 or 128.
    rel = 1 / 127 if spec.symmetric and abs(high + low) < stat.width else 0
    assert params.scale[0] == pytest.approx(wanted, abs=4 * stat.width / 127, rel=rel)


@SPECS
def test_everything_is_min_max(spec: QSpec) -> None:
    stat = DyadicHistogram.of(np.random.default_rng(1).normal(0, 1, 999).astype(np.float32))
    params, widest = solve_percentile(stat, spec, Percentile(percentile=1.0)), solve_minmax(stat, spec)
    assert (params.scale, params.zero_point) == (widest.scale, widest.zero_point)


@SPECS
def test_a_few_elements_among_zeros_are_not_cut_to_nothing(spec: QSpec) -> None:
    x = np.zeros(100_000, np.float32)
    x[:3] = 7
    stat = DyadicHistogram.of(x)
    params = solve_percentile(stat, spec, Percentile(percentile=0.999))
    assert params.scale == solve_minmax(stat, spec).scale


@pytest.mark.parametrize("percentile", [0.5, 1.1, math.nan])
def test_bounds_of_settings(percentile: float) -> None:
    with pytest.raises(ArgumentError, match=r"percentile must be within \(0.5, 1\], got"):
        Percentile(percentile=percentile)
