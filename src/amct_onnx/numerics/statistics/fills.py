"""Fill values: numbers such as -65504 or -1e9 that stand for "never the largest", far away from all data."""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.statistics.histogram import DyadicHistogram

_LEAST = 512.0  # beyond what images hold; a fill that means "never" is larger
_GAP = 32  # times the data: at most 8 of the 256 steps of int8 are left for them
_RARE = 4096  # of so many elements fewer than one is an outlier, and no fill, unless nothing at all is left of the rest


def fill_value(stat: DyadicHistogram) -> float | None:
    """The fill value among the elements of `stat`, or None.

    There is one where the elements are either near the extreme of largest magnitude or far below it. To the fill
    something may have been added, as scores are to a mask.
    """
    extreme = stat.maximum if stat.maximum >= -stat.minimum else stat.minimum
    if not stat.counts.size or abs(extreme) < _LEAST:
        return None
    used = np.flatnonzero(stat.counts)
    bins, counts, largest = np.abs(used + stat.low), stat.counts[used], abs(extreme) / stat.width
    data, fills = bins <= largest / _GAP, bins >= largest * (1 - 1 / _GAP) - 1
    if not data.any() or not (data | fills).all():
        return None
    frequent = int(counts[fills].sum()) * _RARE >= stat.total
    return extreme if frequent or not bins[data].any() else None
