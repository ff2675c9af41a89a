"""The calibration of all data in shards, each counted by whoever is free: the same histograms, whoever counts what.

Histograms merge exactly, so it does not matter how the data are cut and in which order parts are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import onnx_ir as ir

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.data.fingerprint import feed_fingerprint
from amct_onnx.data.skipped_samples import SkippedTally
from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.files.state_folder import StateFolder
from amct_onnx.numerics.arrays import Feed
from amct_onnx.observe.histograms import TensorCounter, counting, side_by_side
from amct_onnx.values.counts import Counts, merged_counts
from amct_onnx.values.skipped_data import NOTHING_SKIPPED


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some feeds one after the other: number `first` to `last` - 1 of all data. Without `feeds` they are those of the
    parts of the data, which whoever counts them opens. last: 0 where nobody knows how many `feeds` has."""

    first: int
    last: int = 0
    feeds: Iterable[Feed] | None = None


@dataclass(frozen=True, kw_only=True)
class CountShards(HoldsGraphs):
    """The work of counting what `tensors` of a float model hold, for one shard after the other.

    parts: of the data, for shards that name feeds by their numbers. workers: so many feeds run at a time, if that is
    known. state: where each feed that is done is kept, so that it is not run again; `digest` tells the model there.
    """

    model: ir.Model
    tensors: tuple[str, ...]
    rule: BatchRule
    parts: FeedParts | None = None
    workers: int | None = None
    state: StateFolder | None = None
    digest: str = ""

    @contextmanager
    def open(self) -> Iterator[Callable[[Shard], Counts]]:
        workers = 1 if self.state is not None else self.workers or side_by_side()
        with counting(self.model, self.tensors, workers) as counter:
            count = self._count if self.state is None else partial(self._count_resumably, self.state)
            yield partial(count, counter)

    def _count(self, counter: TensorCounter, shard: Shard) -> Counts:
        feeds = samples = 0
        tally = SkippedTally()

        def numbered() -> Iterator[tuple[int, Feed]]:
            nonlocal feeds, samples
            for feed in self._feeds(shard, tally):
                feeds, samples = feeds + 1, samples + self.rule.rows(feed)
                yield shard.first + feeds, feed

        for _ in counter.run(numbered()):
            pass
        return Counts(tensors=counter.take(), feeds=feeds, samples=samples, skipped=tally.value)

    def _count_resumably(self, state: StateFolder, counter: TensorCounter, shard: Shard) -> Counts:
        """The same, feed by feed: what is counted of the shard is kept after each."""
        key = f"counts of {self.digest}, feeds {shard.first} to {shard.last}{' in part' if shard.feeds else ''}"
        if shard.feeds is not None:  # by their files they are known already
            feeds = tuple(shard.feeds)
            shard = Shard(first=shard.first, last=shard.last, feeds=feeds)
            digest = " ".join(map(feed_fingerprint, feeds))
            state.confirm(f"the feeds {shard.first} to {shard.last} of the data", digest)
        kept = state.load_counts(key)
        tally, skipped = SkippedTally(), NOTHING_SKIPPED
        done = 0 if kept is None else kept.feeds + kept.skipped.feeds
        count = samples = 0

        def counted() -> Counts:
            """With those of an earlier call. They stay in the counter, which has less to do than who merges."""
            now = Counts(tensors=counter.histograms(), feeds=count, samples=samples, skipped=skipped)
            return now if kept is None else merged_counts(kept, now)

        for number, feed in enumerate(self._feeds(shard, tally, done), shard.first + done + 1):
            for _ in counter.run([(number, feed)]):
                pass
            count, samples = count + 1, samples + self.rule.rows(feed)
            skipped = skipped.merge(tally.taken())
            state.save_counts(key, counted())
        skipped = skipped.merge(tally.taken())  # behind the last feed
        found = counted()
        counter.take()
        return found

    def _feeds(self, shard: Shard, tally: SkippedTally, done: int = 0) -> Iterable[Feed]:
        if shard.feeds is not None:
            return islice(shard.feeds, done, None)
        assert self.parts is not None
        return self.parts.read(shard.first + done, shard.last, skipped=tally.add)
