"""The calibration of all data in shards, each counted by whoever is free: the same histograms, whoever counts what.

Histograms merge exactly, so it does not matter how the data are cut and in which order parts are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe.histograms import TensorCounter, counting, side_by_side


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some feeds one after the other. first: how many are in front of them. Without `feeds` they are those up to `last`
    - 1 of the parts of the data, which whoever counts them opens."""

    first: int
    last: int = 0
    feeds: Iterable[Feed] | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What feeds have shown: the histogram of each tensor, and how many there were, with so many samples (rows)."""

    tensors: dict[str, DyadicHistogram]
    feeds: int
    samples: int

    def merge(self, other: Seen) -> Seen:
        """The same of both: exact, in whatever order."""
        tensors = {name: histogram.merge(other.tensors[name]) for name, histogram in self.tensors.items()}
        return Seen(tensors=tensors, feeds=self.feeds + other.feeds, samples=self.samples + other.samples)


def merge_seen(one: Seen, other: Seen) -> Seen:
    """`Seen.merge` as a function that can be pickled."""
    return one.merge(other)


@dataclass(frozen=True, kw_only=True)
class CountShards(HoldsGraphs):
    """The work of counting what `tensors` of a float model hold, for one shard after the other.

    parts: of the data, for shards that name feeds by their numbers. workers: so many feeds run at a time, if that is
    known.
    """

    model: ir.Model
    tensors: tuple[str, ...]
    rule: BatchRule
    parts: FeedParts | None = None
    workers: int | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[Shard], Seen]]:
        with counting(self.model, self.tensors, self.workers or side_by_side()) as counter:
            yield partial(self._count, counter)

    def _count(self, counter: TensorCounter, shard: Shard) -> Seen:
        feeds = samples = 0

        def numbered() -> Iterator[tuple[int, Feed]]:
            nonlocal feeds, samples
            for feed in self._feeds(shard):
                feeds, samples = feeds + 1, samples + self.rule.rows(feed)
                yield shard.first + feeds, feed

        for _ in counter.run(numbered()):
            pass
        return Seen(tensors=counter.take(), feeds=feeds, samples=samples)

    def _feeds(self, shard: Shard) -> Iterable[Feed]:
        if shard.feeds is not None:
            return shard.feeds
        assert self.parts is not None
        return self.parts.read(shard.first, shard.last)
