"""NUQ: int8 weights that take at most 16 or 32 values, so that they compress (amct_formats.md: NUQ).

A layer is quantized uniformly first (ARQ). Its integers are then clustered in one dimension: `num_steps` levels, one
set for the whole layer, of small squared distance to the integers. AMCT's own clustering is not published. Here the
first levels follow the density to the power of 1/3, which is the best density of the levels of a fine quantizer (P. F.
Panter, W. Dite, "Quantization distortion in pulse-count modulation with nonuniform spacing of levels", Proc. IRE 39,
1951); each iteration is one of Lloyd's (S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28,
1982), with the means rounded to integers, and never makes the distance larger.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Floats, Int64s
from amct_onnx.numerics.blocks import blocks
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import dequantize, quantize
from amct_onnx.numerics.settings import Nuq

_LOWEST = -128


def cluster_levels(weight: Floats, params: QParams, settings: Nuq) -> tuple[int, ...]:
    """The `num_steps` levels of a weight that `params` quantize uniformly, in ascending order.

    A weight with fewer integers than levels keeps them all; the largest one then fills up the levels.
    """
    integers = quantize(weight, params)
    counts = sum(np.bincount(integers[part].reshape(-1) - _LOWEST, minlength=256) for part in blocks(integers.shape))
    levels = solve_levels(np.asarray(counts), settings)
    return (*levels.tolist(), *[int(levels[-1])] * (settings.num_steps - levels.size))


def round_to_levels(weight: Floats, params: QParams, levels: tuple[int, ...]) -> Floats:
    """`weight` rounded to the grid of `params`, and there to the nearest of `levels` (in ascending order)."""
    few = np.unique(levels)
    nearest = few[_assign(np.arange(256) + _LOWEST, few)].astype(np.int32)
    return dequantize(nearest[quantize(weight, params) - _LOWEST], params)


def solve_levels(counts: Int64s, settings: Nuq) -> Int64s:
    """At most `num_steps` different levels in ascending order, for counts[256] of the integers -128 to 127."""
    values = np.flatnonzero(counts)
    if values.size <= settings.num_steps:
        return values + _LOWEST
    weights = counts[values].astype(np.int64)
    values = values + _LOWEST
    levels = values[_first_levels(values, weights, settings.num_steps)]
    for _ in range(settings.num_of_iteration):
        levels = _refine(values, weights, levels)
    return levels


def _first_levels(values: Int64s, weights: Int64s, steps: int) -> Int64s:
    """Indices of `steps` different values: the medians of `steps` parts with equal integrals of density^(1/3).

    A value stands for the gap between the middles to its neighbours: density weight / gap, over a length of gap.
    """
    gaps = np.gradient(values.astype(np.float64))
    reached = np.cumsum(np.cbrt(weights * gaps**2))
    chosen: Int64s = np.searchsorted(reached, (np.arange(steps) + 0.5) / steps * reached[-1])
    for index in range(1, steps):  # a heavy value holds several parts
        chosen[index] = max(chosen[index], chosen[index - 1] + 1)
    return np.minimum(chosen, np.arange(weights.size - steps, weights.size))


def _refine(values: Int64s, weights: Int64s, levels: Int64s) -> Int64s:
    """One iteration: each level moves to the mean of the integers that are nearest to it, rounded."""
    nearest = _assign(values, levels)
    total = np.bincount(nearest, weights, minlength=levels.size)
    mean = np.bincount(nearest, weights * values, minlength=levels.size) / np.maximum(total, 1)
    return np.where(total > 0, np.rint(mean).astype(np.int64), levels)  # a level that nothing is nearest to stays


def _assign(values: Int64s, levels: Int64s) -> Int64s:
    """Index of the level nearest to each of `values`, the lower one of two."""
    return np.searchsorted(levels[:-1] + levels[1:], 2 * values, side="left")
