"""Min-max: the grid over all that was seen, zero included."""

from __future__ import annotations

from amct_onnx.numerics.grid import QParams, QSpec, asymmetric_from_range, symmetric_from_range
from amct_onnx.numerics.statistics.histogram import DyadicHistogram


def solve_minmax(stat: DyadicHistogram, spec: QSpec) -> QParams:
    """QParams (per tensor) over the extremes of `stat`. Raises ValueError when their scale is too large."""
    return params_of_range(stat.minimum, stat.maximum, spec)


def params_of_range(low: float, high: float, spec: QSpec) -> QParams:
    """QParams (per tensor) over [low, high] and zero. Raises ValueError when the scale is too large."""
    if spec.symmetric:
        return symmetric_from_range(low, high, spec)
    return asymmetric_from_range(min(low, 0.0), max(high, 0.0), spec)
