"""What `make accuracy` measures: figures over test items, and paired bootstrap intervals of their differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
_COVERED = (2.5, 97.5)

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """`of(*items)`, where each array of `items` has one element (or row) for each test item, in the order of the test.

    `resampled`: whether intervals are wanted; some figures are too slow for a thousand of them.
    """

    of: Callable[..., float]
    items: tuple[Array, ...]
    resampled: bool = True

    @property
    def value(self) -> float:
        return self.of(*self.items)

    def at(self, index: NDArray[np.intp]) -> float:
        """The figure over these test items."""
        return self.of(*(array[index] for array in self.items))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A difference of two figures, and the interval that holds 95 % of its resamples."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds zero, so that nothing may be claimed."""
        return self.low <= 0 <= self.high


def paired_difference(first: Figure, second: Figure, *, resamples: int = RESAMPLES) -> Interval:
    """`first - second` with a paired bootstrap interval: both are resampled with the same test items.

    Percentile method (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13) with a fixed seed.
    """
    count = len(first.items[0])
    if len(second.items[0]) != count:
        raise ValueError(f"pairs of {count} and {len(second.items[0])} test items")
    random = np.random.default_rng(SEED)
    found = np.empty(resamples)
    for turn in range(resamples):
        index = random.integers(0, count, count)
        found[turn] = first.at(index) - second.at(index)
    low, high = np.percentile(found, _COVERED)
    return Interval(value=first.value - second.value, low=float(low), high=float(high))


def percentage(hits: Array) -> float:
    """Share of true elements in percent."""
    return 100 * float(np.mean(hits))


def average(values: Array) -> float:
    """The mean."""
    return float(np.mean(values))


def decibel(signal: Array, noise: Array) -> float:
    """Signal to noise ratio of powers that are summed up first; inf without any noise."""
    total = float(np.sum(noise))
    return float("inf") if total == 0 else 10 * float(np.log10(float(np.sum(signal)) / total))


def powers(reference: Array, got: Array) -> tuple[float, float]:
    """Of one item: the power of the reference, and that of the difference."""
    exact = np.asarray(reference, np.float64)
    return float(np.sum(np.square(exact))), float(np.sum(np.square(exact - got)))


def ranks(values: Array) -> NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse.reshape(-1)], np.float64)


def spearman(first: Array, second: Array) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    a, b = (side - side.mean() for side in (ranks(first), ranks(second)))
    scale = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / scale if scale > 0 else 0.0


def psnr(exact: Array, got: Array) -> float:
    """Peak signal to noise ratio in dB of images in [0, 1]."""
    error = float(np.mean(np.square(np.asarray(exact, np.float64) - got)))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
