"""MSE: the grid of least squared error, searched over its scale and its zero point.

A grid of step s and n + 1 integers represents the numbers -z*s, ..., (n - z)*s, zero among them. Moving along the axis
away from zero, the nearest of them changes at the boundaries b_k = (k + 1/2)*s, and behind b_k the squared error is
less than without that step by 2*s*(x - b_k). Summed over the elements,

    error(s, z) = sum(x^2) - 2*s * (sum over k < n - z of E(b_k) + sum over k < z of E'(b_k)),

where E(b) = sum of (x - b) over x > b is the excess over b, and E' that of -x. So one table of the excess gives the
error of every grid: one number a boundary, and one running sum for all zero points of a scale at once. Within a bin of
the histogram the elements are taken as evenly spread, hence a bin may also be wider than a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amct_onnx.numerics.activations.minmax import params_of_range, solve_minmax
from amct_onnx.numerics.arrays import Doubles, Indices
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

# The first pass goes down from the min-max scale in these steps; the others look between neighbours of the best.
# 32 scales are what stays in the allocator's hands: twice as many take three times as long.
_AT_ONCE = 32
_RATIO = 2.0 ** (1 / 3)
_COARSE = _RATIO ** -np.arange(-1.0, _AT_ONCE - 2)
_PASSES = 2
# Gains whose ratio is nearer to one are equal, for sums in float64 lose as much. The first one, min-max, is taken.
_EQUAL = 1e-12
# A grid of more bits has too many boundaries to look at one by one: an element in range costs s^2 / 12 there.
_MOST_BITS = 10


def solve_mse(stat: DyadicHistogram, spec: QSpec) -> QParams:
    """QParams (per tensor) of the grid with the least sum of squared errors over the elements of `stat`.

    Raises ValueError when the extremes have no legal scale.
    """
    widest = solve_minmax(stat, spec)
    if max(stat.maximum, -stat.minimum) < spec.least_scale * (1 << spec.bits):  # zeros, or no finer scale is legal
        return widest
    above, below = _excess(stat, negate=False), _excess(stat, negate=True)
    least, most = spec.least_scale / stat.width, spec.most_scale / stat.width  # legal scales
    if spec.bits > _MOST_BITS:
        low, high = _best_range(above, below, stat.total, least, spec)
        return params_of_range(-low * stat.width, high * stat.width, spec)
    best, gain, zero = float(widest.scale[0]) / stat.width, 0.0, 0
    scales, ratio = best * np.concatenate(([1.0], _COARSE)), _RATIO
    for _ in range(1 + _PASSES):
        found = _best_grid(np.clip(scales, least, most), above, below, spec)
        if found[1] > gain * (1 + _EQUAL):
            best, gain, zero = found
        scales, ratio = best * _between(ratio), ratio ** (2.0 / (_AT_ONCE - 1))
    return QParams(scale=np.float32(best * stat.width), zero_point=np.int32(zero), spec=spec)


def _between(ratio: float) -> Doubles:
    """Factors from 1 / ratio to ratio."""
    return ratio ** np.linspace(-1.0, 1.0, _AT_ONCE)


@dataclass(frozen=True, kw_only=True)
class _Excess:
    """E(b) for b >= 0, in bins: total[j] - above[j] * d + half[j] * d^2 with b = first + j + d, d <= 1.

    Bin `first` is empty, and stands for all b below it too.
    """

    first: int
    largest: float
    total: Doubles
    above: Doubles
    half: Doubles

    def __call__(self, b: Doubles) -> Doubles:
        i, d = self._position(b)
        value = self.half.take(i)
        value *= d
        value -= self.above.take(i)
        value *= d
        value += self.total.take(i)
        return value

    def squares_beyond(self, b: Doubles) -> Doubles:
        """Sum of (x - b)^2 over x > b: twice the integral of E from b on."""
        width = np.ones(self.total.size)
        width[-1] = self.largest - (self.first + width.size - 1)
        everywhere = np.arange(width.size)
        beyond = np.cumsum(self._integral(everywhere, width)[::-1])[::-1]
        i, d = self._position(b)
        return 2.0 * (beyond.take(i) - self._integral(i, d))

    def _position(self, b: Doubles) -> tuple[Indices, Doubles]:
        d = np.minimum(b, self.largest)
        i = np.maximum(d.astype(np.intp), self.first)
        d -= i
        i -= self.first
        return i, d

    def _integral(self, i: Indices, d: Doubles) -> Doubles:
        return d * (self.total[i] - d * (0.5 * self.above[i] - d * self.half[i] / 3))


def _excess(stat: DyadicHistogram, *, negate: bool) -> _Excess | None:
    """The excess of the elements above zero (below zero when `negate`); None without such elements.

    The bin at zero counts as zeros: that is what most of its elements are behind a ReLU, and a step of two bins or
    more rounds them all to zero.
    """
    low, counts, largest = stat.low, stat.counts, stat.maximum
    if negate:
        low, counts, largest = 1 - low - counts.size, counts[::-1], -stat.minimum
    if largest <= 0:
        return None
    largest /= stat.width
    first = max(low - 1, 0)
    mass = np.concatenate(([0], counts[first + 1 - low :])).astype(np.float64)
    width = np.ones(mass.size)
    width[-1] = largest - (first + mass.size - 1)
    half = np.divide(0.5 * mass, width, out=np.zeros(mass.size), where=width > 0)
    # From the far end: how many elements lie above the lower edge of each bin, and by how much in sum.
    above = np.cumsum(mass[::-1])[::-1]
    steps = 0.5 * mass * width
    steps[:-1] += above[1:]
    return _Excess(first=first, largest=largest, total=np.cumsum(steps[::-1])[::-1], above=above, half=half)


def _best_grid(scales: Doubles, above: _Excess | None, below: _Excess | None, spec: QSpec) -> tuple[float, float, int]:
    """(scale, gain, zero point) of the best of `scales` (in bins), each with its best zero point.

    Of the n steps, z lie below zero. E falls with k, so exchanging the outermost step of one side for the next one
    of the other pays up to a single z: step k goes above zero if E(b_k) is more than E'(b_(n-1-k)).
    """
    steps = spec.qmax - spec.qmin
    most_above, most_below = (spec.qmax, -spec.qmin) if spec.symmetric else (steps, steps)
    k = np.arange(steps) + 0.5
    up = above(scales[:, None] * k[:most_above]) if above else None
    down = below(scales[:, None] * k[most_below - 1 :: -1]) if below else None
    if up is not None and down is not None and not spec.symmetric:
        zeros = np.count_nonzero(down >= up, axis=1)
        gains = np.maximum(up, down).sum(axis=1)
    else:
        zeros = np.full(scales.size, most_below if below else 0)
        gains = np.zeros(scales.size)
        for side in (up, down):
            if side is not None:
                gains += side.sum(axis=1)
    gains *= 2 * scales
    first = int(np.argmax(gains >= gains.max() * (1 - _EQUAL)))
    return float(scales[first]), float(gains[first]), 0 if spec.symmetric else int(zeros[first]) + spec.qmin


def _best_range(
    above: _Excess | None, below: _Excess | None, total: int, least: float, spec: QSpec
) -> tuple[float, float]:
    """(-low, high) in bins, of least squared error on a grid whose steps are finer than what the histogram shows."""
    low, high = below.largest if below else 0.0, above.largest if above else 0.0
    if spec.symmetric:
        low = high = max(low, high)
    factors, ratio = _COARSE[1:], _RATIO
    for _ in range(1 + _PASSES):
        lows, highs = np.broadcast_arrays(low * (factors if spec.symmetric else factors[:, None]), high * factors)
        scales = (lows + highs) / (spec.qmax - spec.qmin)
        losses = total * scales**2 / 12
        for excess, bounds in ((below, lows), (above, highs)):
            if excess is not None:
                losses += excess.squares_beyond(bounds)
        best = int(np.argmin(np.where(scales >= least, losses, np.inf)))
        low, high = float(lows.flat[best]), float(highs.flat[best])
        factors, ratio = _between(ratio), ratio ** (2.0 / (_AT_ONCE - 1))
    return low, high
