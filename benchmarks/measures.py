"""What `make accuracy` measures: figures over test items, and paired bootstrap intervals of their differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 0
_COVERED = (2.5, 97.5)

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """`of(counts, *items)`: the figure over the test items, each taken as often as `counts` says.

    counts: float64 [r, n]; each array of `items` has n elements, in the order of the test; the result is float64 [r].
    `resampled`: whether intervals are wanted; some figures are too slow for a thousand of them.
    """

    of: Callable[..., Array]
    items: tuple[Array, ...]
    resampled: bool = True

    @property
    def value(self) -> float:
        return float(self.of(np.ones((1, len(self.items[0]))), *self.items)[0])


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
    low, high = np.percentile(_resampled(first, resamples) - _resampled(second, resamples), _COVERED)
    return Interval(value=first.value - second.value, low=float(low), high=float(high))


@lru_cache(maxsize=256)  # the same figures are compared with several others
def _resampled(figure: Figure, resamples: int) -> Array:
    return figure.of(resampled_counts(len(figure.items[0]), resamples), *figure.items)


@lru_cache(maxsize=1)
def resampled_counts(count: int, resamples: int) -> Array:
    """How often each of `count` items is in each resample: float64 [resamples, count], whose rows add up to `count`."""
    random = np.random.default_rng(SEED)
    drawn = np.empty((resamples, count))
    for row in drawn:
        row[:] = np.bincount(random.integers(0, count, count), minlength=count)
    drawn.setflags(write=False)
    return drawn


def average(counts: Array, values: Array) -> Array:
    """The mean."""
    return np.asarray(counts @ values.astype(np.float64) / counts.sum(axis=1))


def percentage(counts: Array, hits: Array) -> Array:
    """Share of true elements in percent."""
    return 100 * average(counts, hits)


def decibel(counts: Array, signal: Array, noise: Array) -> Array:
    """Signal to noise ratio of powers that are summed up first; inf without any noise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10(counts @ signal / (counts @ noise)))


def powers(reference: Array, got: Array) -> tuple[float, float]:
    """Of one item: the power of the reference, and that of the difference."""
    exact = np.asarray(reference, np.float64)
    return float(np.sum(np.square(exact))), float(np.sum(np.square(exact - got)))


def ranks(counts: Array, values: Array) -> Array:
    """Ranks of the values from 0, in each resample [r, n]; equal ones, and copies of one, share the mean of theirs."""
    _, groups = np.unique(values, return_inverse=True)
    groups = groups.reshape(-1)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    return np.asarray((np.cumsum(sizes, axis=1) - (sizes + 1) / 2)[:, groups])


def spearman(counts: Array, first: Array, second: Array) -> Array:
    """Spearman's rank correlation; 0 where one side is constant."""
    total = counts.sum(axis=1, keepdims=True)
    a, b = (
        rank - (counts * rank).sum(axis=1, keepdims=True) / total
        for rank in map(partial(ranks, counts), (first, second))
    )
    scale = np.sqrt((counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1))
    return np.asarray((counts * a * b).sum(axis=1) / np.where(scale > 0, scale, 1))


def psnr(exact: Array, got: Array) -> float:
    """Peak signal to noise ratio in dB of images in [0, 1]."""
    error = float(np.mean(np.square(np.asarray(exact, np.float64) - got)))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
