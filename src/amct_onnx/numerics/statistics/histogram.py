"""The dyadic histogram: counts on a grid of power-of-two bins anchored at zero, which merges exactly.

A bin index is x / 2^k truncated towards zero. Truncation (and not floor) makes coarsening exact even where x / 2^k
underflows: trunc(trunc(x / 2^k) / 2) == trunc(x / 2^(k+1)) for every float. Bin 0 is therefore (-2^k, 2^k), bin i > 0
is [i*2^k, (i+1)*2^k), bin i < 0 is its mirror image. The exponent k is a function of the extremes alone, so it does
not depend on the order or the sharding in which the data arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from amct_onnx.errors import CalibrationError
from amct_onnx.numerics.arrays import Array, Doubles, Floats, Int64s, Reals

MAX_BINS = 1 << 14
# Indices stay below 2^23, where float32 still represents every integer; exponents below -120 would overflow 2^-k.
_INDEX_BITS = 23
_MIN_EXPONENT = -120
# Elements that are counted at a time, so that their bins stay in the processor's cache.
_CHUNK = 1 << 16
# What is wrong with tensors that cannot be counted.
NOT_FINITE = "the tensor holds NaN or Inf: check the model and the calibration data"


def _exponent(low: float, high: float) -> int:
    """Smallest k at which [low, high] needs at most MAX_BINS bins of width 2^k."""
    largest = max(-low, high)
    if largest == 0:  # all zeros: frexp says 0, and merging must never ask for a finer grid
        return _MIN_EXPONENT
    exponent = max(math.frexp(largest)[1] - _INDEX_BITS, _MIN_EXPONENT)
    span = high - low
    if span > 0:
        exponent = max(exponent, math.frexp(span)[1] - MAX_BINS.bit_length())
    while _index(high, exponent) - _index(low, exponent) >= MAX_BINS:
        exponent += 1
    return exponent


def _index(x: float, exponent: int) -> int:
    return math.trunc(math.ldexp(x, -exponent))


def _count(x: Floats, exponent: int, low: int, size: int) -> Int64s:
    """Counts int64[size] of the values of `x`, float32[n], in the bins from `low` on, which hold all of them."""
    counts = np.zeros(size, np.int64)
    for start in range(0, x.size, _CHUNK):
        index = (x[start : start + _CHUNK] * np.float32(2.0**-exponent)).astype(np.intp)  # truncates towards zero
        counts += np.bincount(index - low, minlength=size)
    return counts


@dataclass(frozen=True, kw_only=True, eq=False)
class DyadicHistogram:
    """Counts int64[size] of the bins low, low+1, ... of width 2^exponent, and the exact extremes.

    The bins span exactly the extremes. An empty histogram has no bins. It is what is known of one tensor over all
    batches, in at most MAX_BINS * 8 bytes.

    Histograms are a commutative monoid: `merge` is associative and commutative, `empty()` is its neutral element, and
    of(concatenation) == merge(of(part), of(part)), bit for bit. So one streams, and merges across machines. The
    histogram of a sample with NaN or Inf has no bins either: `not_finite()` absorbs whatever is merged with it.
    """

    exponent: int
    low: int
    counts: Int64s
    minimum: float
    maximum: float

    @classmethod
    def empty(cls) -> DyadicHistogram:
        return cls(exponent=0, low=0, counts=np.zeros(0, np.int64), minimum=math.inf, maximum=-math.inf)

    @classmethod
    def of(cls, x: Reals) -> DyadicHistogram:
        """Histogram of all elements of `x` (any shape; float32, or float16 converted to it).

        Raises CalibrationError when `x` holds NaN or Inf.
        """
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        if not flat.size:
            return cls.empty()
        minimum, maximum = float(flat.min()) + 0.0, float(flat.max()) + 0.0  # -0.0 and 0.0 are one value
        if not (math.isfinite(minimum) and math.isfinite(maximum)):
            raise CalibrationError(NOT_FINITE)
        exponent = _exponent(minimum, maximum)
        low, high = _index(minimum, exponent), _index(maximum, exponent)
        counts = _count(flat, exponent, low, high - low + 1)
        return cls(exponent=exponent, low=low, counts=counts, minimum=minimum, maximum=maximum)

    @classmethod
    def of_bins(cls, exponent: int, low: int, counts: Int64s, minimum: float, maximum: float) -> DyadicHistogram:
        """Histogram of values with these extremes, counted in bins low, low+1, ... that are not too wide for them."""
        minimum, maximum = minimum + 0.0, maximum + 0.0  # -0.0 and 0.0 are one value
        first, last = _index(minimum, exponent) - low, _index(maximum, exponent) - low
        counts = counts[first : last + 1].copy()
        return cls(exponent=exponent, low=low + first, counts=counts, minimum=minimum, maximum=maximum)

    @classmethod
    def not_finite(cls) -> DyadicHistogram:
        """That of a sample with NaN or Inf: merged with any other it stays what it is."""
        return cls(exponent=0, low=0, counts=np.zeros(0, np.int64), minimum=-math.inf, maximum=math.inf)

    @property
    def is_finite(self) -> bool:
        """Whether it is not `not_finite`."""
        return self.minimum > -math.inf

    @property
    def total(self) -> int:
        """Number of elements counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin, 2^exponent."""
        return math.ldexp(1.0, self.exponent)

    def edges(self) -> tuple[Doubles, Doubles]:
        """Lower and upper edge of each bin, float64[size], cut to the extremes."""
        index = np.arange(self.low, self.low + self.counts.size, dtype=np.float64)
        lower = np.where(index <= 0, index - 1, index) * self.width
        upper = np.where(index >= 0, index + 1, index) * self.width
        return np.maximum(lower, self.minimum), np.minimum(upper, self.maximum)

    def merge(self, other: DyadicHistogram) -> DyadicHistogram:
        """The histogram of both samples together."""
        if not (self.is_finite and other.is_finite):
            return DyadicHistogram.not_finite()
        if not other.counts.size:
            return self
        if not self.counts.size:
            return other
        minimum, maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        exponent = _exponent(minimum, maximum)
        low, high = _index(minimum, exponent), _index(maximum, exponent)
        counts = np.zeros(high - low + 1, np.int64)
        for part in (self, other):
            first, coarse = part._coarsened(exponent)
            counts[first - low : first - low + coarse.size] += coarse
        return DyadicHistogram(exponent=exponent, low=low, counts=counts, minimum=minimum, maximum=maximum)

    def coarsened(self, bins: int) -> DyadicHistogram:
        """The same sample on bins so wide that there are at most `bins` (at least 2) of them."""
        exponent = self.exponent
        if self.counts.size:
            while _index(self.maximum, exponent) - _index(self.minimum, exponent) >= bins:
                exponent += 1
        low, counts = self._coarsened(exponent)
        return replace(self, exponent=exponent, low=low, counts=counts)

    def _coarsened(self, exponent: int) -> tuple[int, Int64s]:
        shift = exponent - self.exponent
        if shift == 0:
            return self.low, self.counts
        shift = min(shift, 62)  # then all is in bin 0
        ends = self.low, self.low + self.counts.size - 1
        first, last = (-(-end >> shift) if end < 0 else end >> shift for end in ends)
        bins = np.arange(first, last + 1)
        starts = np.where(bins > 0, bins << shift, ((bins - 1) << shift) + 1) - self.low
        starts[0] = 0  # the first and the last bin may be cut by the extremes
        return first, np.add.reduceat(self.counts, starts)

    def is_consistent(self) -> bool:
        """Whether exponent, bins and extremes are what `of` would give for some sample: a file may hold anything."""
        if not self.counts.size:
            return self in (DyadicHistogram.empty(), DyadicHistogram.not_finite())
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum <= self.maximum):
            return False
        exponent = _exponent(self.minimum, self.maximum)
        low, high = _index(self.minimum, exponent), _index(self.maximum, exponent)
        ends = (self.exponent, self.low, self.low + self.counts.size - 1) == (exponent, low, high)
        return ends and bool((self.counts >= 0).all()) and bool(self.counts[0] and self.counts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        """Counts are small numbers for the most part: a pickle has them in as few bytes as the largest one takes."""
        small = self.counts.astype(np.min_scalar_type(self.counts.max(initial=0)))
        return _unpickled, (self.exponent, self.low, small, self.minimum, self.maximum)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DyadicHistogram) and (
            (self.exponent, self.low, self.minimum, self.maximum)
            == (other.exponent, other.low, other.minimum, other.maximum)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]


def _unpickled(exponent: int, low: int, counts: Array, minimum: float, maximum: float) -> DyadicHistogram:
    return DyadicHistogram(exponent=exponent, low=low, counts=counts.astype(np.int64), minimum=minimum, maximum=maximum)
