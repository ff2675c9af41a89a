"""IFMR: scan scaled upper bounds for the least mean squared rounding error (amct_formats.md: IFMR).

The error of each candidate is summed over the bins of the histogram instead of all elements; a bin is at least 32
times finer than a step of an 8-bit grid over the whole range. Only a percentile that cuts off outliers thousands of
times larger than the rest leaves coarse bins. Where a step is finer than a bin, as on a 16-bit grid, an element in
range costs what it costs on average: a twelfth of the squared step.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from amct_onnx.numerics.activations.percentile import largest_at
from amct_onnx.numerics.arrays import Doubles, Floats
from amct_onnx.numerics.grid import QParams, QSpec, asymmetric_from_range, symmetric_from_range
from amct_onnx.numerics.settings import Ifmr
from amct_onnx.numerics.statistics.histogram import DyadicHistogram


def solve_ifmr(stat: DyadicHistogram, spec: QSpec, settings: Ifmr) -> QParams:
    """QParams (per tensor) of the candidate with the least error; the first one among equals.

    Raises ValueError when no candidate gives a legal scale.
    """
    low = min(0.0, -largest_at(stat, settings.min_percentile, negate=True))
    high = max(0.0, largest_at(stat, settings.max_percentile, negate=False))
    bounds = candidate_ratios(settings) * (max(high, -low) if spec.symmetric else high)
    if spec.symmetric:
        floors, scales = -bounds, bounds / (spec.qmax if high >= -low else -spec.qmin)
    else:
        floors, scales = np.full_like(bounds, low), (bounds - low) / (spec.qmax - spec.qmin)
    scales = np.where(scales < spec.least_scale, 1.0, scales)
    allowed = scales <= spec.most_scale
    if not allowed.any():
        raise ValueError("no candidate of the search range gives a legal scale")
    lower, upper = stat.edges()
    used = stat.counts > 0
    x, weight = (0.5 * (lower + upper))[used].astype(np.float32), stat.counts[used].astype(np.float32)
    candidates = zip(floors, bounds, scales, strict=True)
    width = float((upper - lower).max())
    losses = np.asarray([_loss(x, weight, width, *candidate) for candidate in candidates])
    bound = float(bounds[np.argmin(np.where(allowed, losses, np.inf))])
    if not spec.symmetric:
        return asymmetric_from_range(low, bound, spec)
    return symmetric_from_range(0.0, bound, spec) if high >= -low else symmetric_from_range(-bound, 0.0, spec)


def candidate_ratios(settings: Ifmr) -> Doubles:
    """Ratios start, start+step, ... up to and including the end, counted in decimals: 61 for 0.7, 1.3, 0.01.

    AMCT's front ends differ by the last one (in float32 a step may end just before it). The golden cases have ratios of
    1.3, and one candidate more never makes the loss worse.
    """
    start, step = (Decimal(str(value)) for value in (settings.search_start, settings.search_step))
    return np.asarray([float(start + i * step) for i in range(settings.candidates)])


def _loss(x: Floats, weight: Floats, width: float, floor: float, bound: float, scale: float) -> float:
    y = np.clip(x, np.float32(floor), np.float32(bound))
    if scale < width:
        inside = y == x
        y -= x
        y *= y
        y[inside] = np.float32(scale) ** 2 / np.float32(12)
    else:
        y /= np.float32(scale)
        np.rint(y, out=y)
        y *= np.float32(scale)
        y -= x
        y *= y
    y *= weight
    return float(y.sum(dtype=np.float64))  # not a BLAS product, whose threads would add in an order of their own
