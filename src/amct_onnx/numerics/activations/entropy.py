"""Entropy: the grid that loses the least information, by the Kullback-Leibler divergence KL(P || Q).

P is the histogram with everything beyond the grid moved to the outermost bins of the grid. Q is what the integers tell
about the histogram inside: each cell, all bins that round to one integer, has its mass spread evenly over those of its
bins that are not empty. Q does not know what was clipped, so clipping costs, and so do wide cells. Half an element is
added to each cell of Q (Krichevsky and Trofimov), lest clipped mass meets a probability of zero. The bin at zero is
left out of both: every grid represents zero exactly, and behind a ReLU it would outweigh everything else.

With counts c, cells of mass M and n occupied bins, m after clipping, T inside and N in all, N * KL is

    sum over bins of c log c - sum over cells of m log((M + 1/2) / n) + N log((T + cells / 2) / N),

so prefix sums over bins give each cell, and prefix sums over cells all zero points of a scale.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.activations.minmax import solve_minmax
from amct_onnx.numerics.arrays import Array, Doubles, Indices
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import Entropy
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

_SCALES = 96
_AT_ONCE = 16


def solve_entropy(stat: DyadicHistogram, spec: QSpec, settings: Entropy) -> QParams:
    """QParams (per tensor) of the candidate with the least divergence; of equal ones that of the widest range.

    Steps are no finer than a bin, for finer ones lose nothing that the histogram could show: a grid of 16 bits is that
    of min-max. Raises ValueError when the extremes have no legal scale.
    """
    widest = solve_minmax(stat, spec)
    coarse = stat.coarsened(settings.num_of_bins)
    scales = candidate_scales(float(widest.scale[0]) / coarse.width, spec.least_scale / coarse.width)
    occupied = np.count_nonzero(coarse.counts) > (coarse.low <= 0 < coarse.low + coarse.counts.size)
    if not scales.size or not occupied or max(stat.maximum, -stat.minimum) < spec.least_scale * (1 << spec.bits):
        return widest
    found = [divergences(coarse, part, spec) for part in np.split(scales, range(_AT_ONCE, scales.size, _AT_ONCE))]
    losses = np.concatenate(found)
    row, column = divmod(int(np.argmin(losses)), losses.shape[1])
    zero_point = int(zero_points(coarse, spec)[column])
    return QParams(scale=np.float32(scales[row] * coarse.width), zero_point=np.int32(zero_point), spec=spec)


def candidate_scales(widest: float, legal: float) -> Doubles:
    """Scales in bins, from that of min-max down to one bin or the least legal one; none if min-max is finer itself."""
    least = max(1.0, legal)
    if widest < least:
        return np.zeros(0)
    return widest * (least / widest) ** np.linspace(0.0, 1.0, _SCALES)


def zero_points(stat: DyadicHistogram, spec: QSpec) -> Indices:
    """The zero points to choose from, int[n]: elements of one sign leave one."""
    if spec.symmetric:
        return np.zeros(1, np.intp)
    if stat.minimum >= 0 or stat.maximum <= 0:
        return np.array([spec.qmin if stat.minimum >= 0 else spec.qmax])
    return np.arange(spec.qmin, spec.qmax + 1)


def divergences(stat: DyadicHistogram, scales: Doubles, spec: QSpec) -> Doubles:
    """N * KL(P || Q), up to a constant, of each scale (in bins) and each of `zero_points()`; Inf without mass inside.

    float64[scales, zero points].
    """
    steps = spec.qmax - spec.qmin
    counts = stat.counts.astype(np.float64)
    if stat.low <= 0 < stat.low + counts.size:
        counts[-stat.low] = 0.0
    total, occupied, logs = (_prefix(a) for a in (counts, counts > 0, _x_log_x(counts)))
    k = np.arange(-steps - 1, steps + 1) + 0.5
    ends = _first_bin_above(scales[:, None] * k, stat)  # of the cells -steps, ..., steps
    mass, bins = np.diff(total[ends], axis=1), np.diff(occupied[ends], axis=1)
    each = np.diff(logs[ends], axis=1) - mass * _log_share(mass, bins)
    inside = np.concatenate((np.zeros((scales.size, 1)), np.cumsum(each, axis=1)), axis=1)
    # A grid with z steps below zero has the cells -z, ..., steps - z: columns steps - z, ..., 2 * steps - z.
    z = zero_points(stat, spec) - spec.qmin
    lowest, highest = steps - z, 2 * steps - z
    first, last = ends[:, lowest], ends[:, highest + 1]
    kept = total[last] - total[first]
    loss = inside[:, highest + 1] - inside[:, lowest] + total[-1] * np.log(kept + 0.5 * (steps + 1))
    padded = np.concatenate((counts, [0.0]))
    for cell, clipped, end in ((lowest, total[first], first), (highest, total[-1] - total[last], last - 1)):
        m, n, c = mass[:, cell], bins[:, cell], padded[end]
        with_end = n + ((c == 0) & (clipped > 0))
        loss += _x_log_x(c + clipped) - _x_log_x(c) - (m + clipped) * _log_share(m, with_end) + m * _log_share(m, n)
    return np.where(kept > 0, loss, np.inf)


def _prefix(values: Array) -> Doubles:
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


def _x_log_x(x: Doubles) -> Doubles:
    return x * np.log(np.maximum(x, 1.0))


def _log_share(mass: Doubles, bins: Doubles) -> Doubles:
    """Logarithm of what Q gives to an occupied bin of a cell, not normalized."""
    return np.log((mass + 0.5) / np.maximum(bins, 1.0))


def _first_bin_above(boundary: Doubles, stat: DyadicHistogram) -> Indices:
    """Position of the first bin above the edge that is nearest to `boundary`. The bin at zero reaches from -1 to 1."""
    edge = np.maximum(np.floor(np.abs(boundary) + 0.5), 1.0)  # halves go up: no two boundaries meet at one edge
    index = np.where(boundary > 0, edge, 1.0 - edge)
    return np.asarray(np.clip(index - stat.low, 0, stat.counts.size), np.intp)
