"""Which of the first samples are the calmest, where a few others would cost all of them.

Some networks have samples whose tensors reach ten times as far as those of others. A grid that holds them is too coarse
for the rest, and what is fitted on it fits nothing else. So the samples are looked at in groups, and the two whose
tensors reach least far may calibrate a first quantization in place of those that came first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np

from amct_onnx.numerics.arrays import Doubles
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

CALM = 2  # groups, for a first quantization
_FURTHER = 0.25  # octaves, the mean over tensors: what is less comes about by chance

Histograms = Mapping[str, DyadicHistogram]


class SampleGroups:
    """What tensors hold in groups of as many samples each.

    all: in all groups, and in what `add_others` was given. first: in those groups that came first, as many as asked
    for.
    """

    def __init__(self, first: int) -> None:
        self.all: Histograms = {}
        self.first: Histograms = {}
        self._count, self._reaches = first, list[Doubles]()  # of each tensor, in octaves of that in the first group
        self._beside: Doubles | None = None
        self._calm: dict[int, Histograms] = {}  # of the calmest groups so far: others would fill the memory

    def add(self, tensors: Histograms, *, whole: bool = True) -> None:
        """The next group; the last one may be less than a whole one, and is none of the calmest then."""
        number = len(self._reaches)
        self.add_others(tensors)
        if number < self._count:
            self.first = merged(self.first, tensors)
        if not whole and number:
            return
        reach = np.array([_reach(histogram) for histogram in tensors.values()])
        self._beside = reach if self._beside is None else self._beside
        self._reaches.append(_octaves(reach, self._beside))
        calm = self._by_reach()[:CALM]
        self._calm = {group: held for group, held in {**self._calm, number: tensors}.items() if group in calm}

    def add_others(self, tensors: Histograms) -> None:
        """Samples that belong to no group."""
        self.all = merged(self.all, tensors)

    def calmest(self) -> tuple[tuple[int, ...], Histograms]:
        """The groups by their numbers, the calmest first, and what tensors hold in the first two of them; nothing where
        the groups that came first reach hardly further."""
        order = self._by_reach()
        calm = np.max([self._reaches[group] for group in order[:CALM]], axis=0)
        further = np.max(self._reaches[: self._count], axis=0) - calm
        if further.mean() <= _FURTHER:
            return (), {}
        return tuple(order), reduce(merged, (self._calm[group] for group in order[:CALM]))

    def _by_reach(self) -> list[int]:
        return sorted(range(len(self._reaches)), key=lambda number: float(self._reaches[number].mean()))


def merged(one: Histograms, other: Histograms) -> Histograms:
    """What the same tensors hold in both; the other where `one` has none."""
    return {name: histogram.merge(other[name]) for name, histogram in one.items()} if one else other


def _octaves(reach: Doubles, other: Doubles) -> Doubles:
    """By how many octaves each tensor reaches further than elsewhere, float64[tensors]; 0 where either is 0."""
    ratio = np.divide(reach, other, out=np.ones_like(reach), where=(reach > 0) & (other > 0))
    return np.log2(ratio)


def _reach(histogram: DyadicHistogram) -> float:
    """The largest magnitude; 0 of a tensor that holds nothing but zeros, or NaN or Inf."""
    return max(-histogram.minimum, histogram.maximum) if histogram.is_finite and histogram.counts.size else 0.0
