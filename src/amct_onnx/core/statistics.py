"""The statistics of one calibration: a histogram of each observed tensor, and the ranges of channels of some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from amct_onnx.core.stats.channels import ChannelRange
from amct_onnx.core.stats.histogram import DyadicHistogram
from amct_onnx.errors import StatisticsError


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`tensors` by name, from `samples` samples that ran through the model with this digest.

    `channels`: the ranges of the channels of those tensors that matrix products with a weight read.
    """

    tensors: Mapping[str, DyadicHistogram]
    samples: int
    digest: str
    channels: Mapping[str, ChannelRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "channels", MappingProxyType(dict(self.channels)))

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both samples together: exact, in whatever order and grouping parts are merged.

        Raises StatisticsError for statistics of another model, or of other tensors of it.
        """
        if other.digest != self.digest:
            raise StatisticsError("Statistics of two different models cannot be merged: calibrate the same model file.")
        if other.tensors.keys() != self.tensors.keys() or other.channels.keys() != self.channels.keys():
            raise StatisticsError("Statistics of different tensors cannot be merged: use one version of amct_onnx.")
        tensors = {name: own.merge(other.tensors[name]) for name, own in self.tensors.items()}
        channels = {name: own.merge(other.channels[name]) for name, own in self.channels.items()}
        return Statistics(tensors=tensors, samples=self.samples + other.samples, digest=self.digest, channels=channels)

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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and (
            (self.samples, self.digest) == (other.samples, other.digest)
            and dict(self.tensors) == dict(other.tensors)
            and dict(self.channels) == dict(other.channels)
        )

    __hash__ = None  # type: ignore[assignment]
