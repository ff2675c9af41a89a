"""The statistics of one calibration: the histogram of each tensor, and the factors that divided its channels before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from amct_onnx.errors import StatisticsError
from amct_onnx.frozen import FrozenDict
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.statistics.histogram import DyadicHistogram


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`tensors` by name, from `samples` samples that ran through the model with this digest.

    `factors`: float32[C], read-only, by which the channels of some tensors of that model were divided before
    (`graph.passes.equalize`).
    """

    tensors: Mapping[str, DyadicHistogram]
    samples: int
    digest: str
    factors: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", FrozenDict(self.tensors))
        factors = {name: np.array(values, np.float32) for name, values in self.factors.items()}
        for values in factors.values():
            values.setflags(write=False)
        object.__setattr__(self, "factors", FrozenDict(factors))

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both samples together: exact, in whatever order and grouping parts are merged.

        Raises StatisticsError for statistics of another model, or of other tensors of it.
        """
        if other.digest != self.digest:
            raise StatisticsError("Statistics of two different models cannot be merged: calibrate the same model file.")
        if other.tensors.keys() != self.tensors.keys():
            raise StatisticsError("Statistics of different tensors cannot be merged: use one version of amct_onnx.")
        if not self._same_factors(other):
            raise StatisticsError(
                "Statistics of differently equalized models cannot be merged: calibrate all parts with effort='fast', "
                "or with the factors of one of them."
            )
        tensors = {name: own.merge(other.tensors[name]) for name, own in self.tensors.items()}
        return Statistics(
            tensors=tensors, samples=self.samples + other.samples, digest=self.digest, factors=self.factors
        )

    def of(self, names: Iterable[str]) -> DyadicHistogram:
        """The histogram of several tensors together. Raises StatisticsError for one that was not observed."""
        histogram = DyadicHistogram.empty()
        for name in names:
            if name not in self.tensors:
                raise StatisticsError(
                    f'Tensor "{name}" was not observed by this calibration: call quantize with these settings and data.'
                )
            histogram = histogram.merge(self.tensors[name])
        return histogram

    def _same_factors(self, other: Statistics) -> bool:
        same = self.factors.keys() == other.factors.keys()
        return same and all(np.array_equal(values, other.factors[name]) for name, values in self.factors.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and (
            (self.samples, self.digest) == (other.samples, other.digest)
            and dict(self.tensors) == dict(other.tensors)
            and self._same_factors(other)
        )

    __hash__ = None  # type: ignore[assignment]
