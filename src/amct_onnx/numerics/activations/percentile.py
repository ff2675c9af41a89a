"""Percentile: the grid over all but the outermost elements."""

from __future__ import annotations

import math

import numpy as np

from amct_onnx.numerics.activations.minmax import params_of_range, solve_minmax
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import Percentile
from amct_onnx.numerics.statistics.histogram import DyadicHistogram


def solve_percentile(stat: DyadicHistogram, spec: QSpec, settings: Percentile) -> QParams:
    """QParams (per tensor) over the range that holds the fraction `settings.percentile` of the elements on each side.

    The range is min-max's where the other elements are zeros, or too small for a scale. Raises ValueError when the
    scale is too large.
    """
    low = min(0.0, -largest_at(stat, settings.percentile, negate=True))
    high = max(0.0, largest_at(stat, settings.percentile, negate=False))
    if max(high, -low) < max(spec.least_scale * (1 << spec.bits), stat.width):  # within the bin at zero
        return solve_minmax(stat, spec)
    return params_of_range(low, high, spec)


def largest_at(stat: DyadicHistogram, percentile: float, *, negate: bool) -> float:
    """k-th largest element (of -x when `negate`), k = n - floor(percentile * n); exact for k = 1."""
    n = stat.total
    rank = 1 if abs(percentile - 1) < np.finfo(np.float32).eps else max(1, n - math.floor(percentile * n))
    if rank == 1:
        return -stat.minimum if negate else stat.maximum
    lower, upper = stat.edges()
    if negate:
        lower, upper, counts = -upper, -lower, stat.counts
    else:
        lower, upper, counts = lower[::-1], upper[::-1], stat.counts[::-1]
    reached = np.cumsum(counts)
    bin_ = int(np.searchsorted(reached, rank))
    inside = rank - (int(reached[bin_]) - int(counts[bin_])) - 0.5
    return float(upper[bin_] - (upper[bin_] - lower[bin_]) * inside / counts[bin_])
