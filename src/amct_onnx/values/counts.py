"""What was counted of calibration data, or of a part of them: a value that merges exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.values.skipped_data import NOTHING_SKIPPED, SkippedData


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The histogram of each tensor, over so many feeds and samples (rows), and what was left out of them."""

    tensors: Mapping[str, DyadicHistogram]
    feeds: int
    samples: int
    skipped: SkippedData = NOTHING_SKIPPED


def merged_counts(one: Counts, other: Counts) -> Counts:
    """What both have counted: exact, in whatever order. It can be pickled, as workers need it."""
    return Counts(
        tensors={name: histogram.merge(other.tensors[name]) for name, histogram in one.tensors.items()},
        feeds=one.feeds + other.feeds,
        samples=one.samples + other.samples,
        skipped=one.skipped.merge(other.skipped),
    )
