"""Weights of 8 bits with which no kernel overflows: two neighbours are never both large.

x86 CPUs without VNNI multiply uint8 by int8 with vpmaddubsw, which adds two neighbouring products in 16 bits and
saturates. With activations up to 255 that cannot happen if two neighbouring weights of the same sign add up to at most
128: 255 * 128 < 2^15 <= 255 * 129. Weights of 7 bits are safe as well, but lose a bit everywhere for the sake of few
pairs; here a row gets the scale at which rounding and moving the pairs that are too large together cost least.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Floats, Int8s
from amct_onnx.numerics.blocks import row_parts
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.weights.arq import solve_arq

LARGEST_PAIR = 128
# Weights at a time, so that temporary arrays stay in the cache.
_ELEMENTS = 1 << 16
# Scales to try, relative to the one that the extremes of a row ask for.
_RATIOS = (1.0, 0.8, 0.9, 1.1, 1.2, 1.35, 1.5, 1.75, 2.02)


def solve_pairs(rows: Floats, spec: QSpec, least: Floats) -> tuple[QParams, Int8s]:
    """Scale of each row of a weight [C, n], and its integers int8[C, n], of which no neighbours (2k, 2k + 1) overflow.

    `rows` are in the order in which the kernel reads them; no scale is below `least`, float32[C]. Raises ValueError
    like `solve_arq`.
    """
    widest = solve_arq(rows, spec)
    scale, integers = np.empty_like(widest.scale), np.empty(rows.shape, np.int8)
    for part in row_parts(len(rows), rows.shape[1], _ELEMENTS):
        scale[part], integers[part] = _solve(rows[part].astype(np.float32), widest.scale[part], least[part], spec)
    return QParams(scale=scale, zero_point=widest.zero_point, spec=spec), integers


def overflows(rows: Int8s) -> bool:
    """Whether two neighbours of a row of integers add up to more than is safe."""
    pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2).sum(axis=2, dtype=np.int16)
    return bool(pairs.max(initial=0) > LARGEST_PAIR or pairs.min(initial=0) < -LARGEST_PAIR)


def _solve(rows: Floats, widest: Floats, lower: Floats, spec: QSpec) -> tuple[Floats, Int8s]:
    least = np.full(len(rows), np.inf)
    unit = np.exp2(np.frexp(widest)[1]).astype(np.float32)  # exact factors, so that no square leaves float32
    rows, widest, lower = rows / unit[:, None], widest / unit, lower / unit
    scale, integers = widest.copy(), np.zeros(rows.shape, np.int8)
    for ratio in _RATIOS:
        tried = np.maximum(widest * np.float32(ratio), lower)
        found = np.clip(np.rint(rows / tried[:, None]), spec.qmin, spec.qmax)
        _part_pairs(found)
        error = found * tried[:, None]
        error -= rows
        error *= error
        loss = error.sum(axis=1, dtype=np.float64)
        better = loss < least
        least[better], scale[better] = loss[better], tried[better]
        integers[better] = found[better].astype(np.int8)
    return scale * unit, integers


def _part_pairs(integers: Floats) -> None:
    """Bring both of a pair nearer to zero, in place, until they add up to what is allowed."""
    pairs = integers[:, : integers.shape[1] // 2 * 2].reshape(len(integers), -1, 2)
    excess = pairs.sum(axis=2)
    excess -= np.clip(excess, -LARGEST_PAIR, LARGEST_PAIR)
    first = np.trunc(excess / 2)
    pairs[:, :, 0] -= first
    pairs[:, :, 1] -= excess - first
