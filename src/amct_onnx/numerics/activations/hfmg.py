"""HFMG: narrow a histogram from its sparser end and keep the range of least rounding error (amct_formats.md: HFMG)."""

from __future__ import annotations

import math

import numpy as np

from amct_onnx.numerics.activations.minmax import params_of_range
from amct_onnx.numerics.arrays import Doubles
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import Hfmg
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

_RANGES_AT_ONCE = 64
_FINE = 8  # destinations in a bin from which on they are not looked at one by one


def solve_hfmg(stat: DyadicHistogram, spec: QSpec, settings: Hfmg) -> QParams:
    """QParams (per tensor) of the range with the least error; the first one among equals."""
    if stat.maximum == stat.minimum:
        return params_of_range(stat.minimum, stat.maximum, spec)
    counts = uniform_counts(stat, settings.num_of_bins)
    width = (stat.maximum - stat.minimum) / settings.num_of_bins
    ranges = np.asarray(candidate_ranges(counts), np.float64)
    blocks = np.array_split(ranges, math.ceil(len(ranges) / _RANGES_AT_ONCE))
    losses = np.concatenate([range_losses(counts, block, 1 << spec.bits) for block in blocks])
    left, right = ranges[np.argmin(losses)]
    return params_of_range(stat.minimum + left * width, stat.minimum + (right + 1) * width, spec)


def uniform_counts(stat: DyadicHistogram, bins: int) -> Doubles:
    """Counts float64[bins] on equal bins over [minimum, maximum]; a dyadic bin is spread over those it covers."""
    lower, upper = stat.edges()
    cumulative = np.concatenate(([0.0], np.cumsum(stat.counts, dtype=np.float64)))
    knots = np.concatenate((lower[:1], upper))
    targets = np.linspace(stat.minimum, stat.maximum, bins + 1)
    reached = np.interp(targets, knots, cumulative)
    reached[0] = 0.0  # a minimum on the grid is a bin without width, and interp gives what lies after it
    return np.diff(reached)


def candidate_ranges(counts: Doubles) -> list[tuple[int, int]]:
    """The ranges of bins that are tried, both ends included: the whole one, then ever narrower ones."""
    bins = counts.size
    step = max(1.0, math.ceil(round(counts.sum()) / 100000))  # spreading made the counts, not their sum, fractions
    minimum = math.ceil(bins / 4)
    cumulative = np.concatenate(([0.0], np.cumsum(counts)))
    left, right, found = 0, bins - 1, [(0, bins - 1)]
    while right - left > minimum:
        # First positions at which at least `step` counts have been passed from either end.
        to_left = int(np.searchsorted(cumulative, cumulative[left] + step - 1e-6))
        to_right = int(np.searchsorted(cumulative, cumulative[right + 1] - step + 1e-6, side="right")) - 2
        to_left, to_right = max(to_left, left + 1), min(to_right, right - 1)
        if right - to_right >= to_left - left:
            right = to_right
        else:
            left = to_left
        if right <= left:
            break
        found.append((left, right))
    return found


def range_losses(counts: Doubles, ranges: Doubles, destinations: int) -> Doubles:
    """Squared distance to the nearest destination centre, integrated; density uniform in each source bin.

    `ranges` is float64[n, 2] of inclusive bin numbers; the result float64[n], in units of a bin width. With F_k(t) the
    integral of density * x^k up to t, a destination [a, b) with centre c costs d(F_2) - 2c*d(F_1) + c^2*d(F_0).
    """
    left, size = ranges[:, :1], ranges[:, 1:] - ranges[:, :1] + 1
    width = size / destinations
    fine = destinations >= _FINE * counts.size
    if fine:
        # As on a 16-bit grid: what is in range costs width^2 / 12 each, but for destinations that a bin's edge cuts.
        # Left and right of the range values go to the outermost centres.
        inner = np.concatenate((left, left + size), axis=1)
        centre = np.concatenate((left + width / 2, left + size / 2, left + size - width / 2), axis=1)
    else:
        inner = left + width * np.arange(1, destinations)
        centre = left + width * (np.arange(destinations) + 0.5)
    ends = np.broadcast_to(np.asarray([0.0, counts.size]), (len(ranges), 2))
    t = np.concatenate((ends[:, :1], inner, ends[:, 1:]), axis=1)  # values outside go to the outermost destinations
    i = np.minimum(t.astype(np.intp), counts.size - 1)
    index = np.arange(counts.size, dtype=np.float64)
    density = counts[i]
    moments = []
    for power in (1, 2, 3):
        whole = counts * ((index + 1) ** power - index**power) / power
        before = np.concatenate(([0.0], np.cumsum(whole)))
        moments.append(np.diff(before[i] + density * (t**power - i.astype(np.float64) ** power) / power, axis=1))
    each = moments[2] - 2 * centre * moments[1] + centre**2 * moments[0]
    if fine:
        each[:, 1] = moments[0][:, 1] * width[:, 0] ** 2 / 12
    return np.asarray(each.sum(axis=1))
