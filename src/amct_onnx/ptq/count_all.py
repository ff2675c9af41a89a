"""Counts what tensors hold over all data: in this process, feed by feed, or by the workers of an engine, in shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, islice

from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.engine.engine import Engine
from amct_onnx.errors import DataError
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe.histograms import side_by_side
from amct_onnx.progress import Progress
from amct_onnx.ptq.later_samples import LaterSamples, kept_places, most_kept
from amct_onnx.ptq.recipe.first_samples import FirstSamples
from amct_onnx.ptq.shards import CountShards, Shard
from amct_onnx.values.counts import Counts, merged_counts
from amct_onnx.values.skipped_data import NOTHING_SKIPPED

_SHARDS = 8  # for each worker: with fewer some are idle in the end, with more there is more to merge
_LONGEST = 256  # feeds of a shard: so many are counted again where a worker is lost
_SENT = 1 << 24  # bytes of feeds that are sent together
_LOOKED = 64  # samples that are looked at here, for what is wrong with data


@dataclass(frozen=True, kw_only=True)
class AllSeen:
    """What all data have shown. first: the first sample. later: some of those behind the first ones, at equal
    distances."""

    seen: Counts
    first: Feed
    later: list[Feed]


def count_all(
    work: CountShards,
    samples: FirstSamples,
    total: int | None,
    *,
    counted: Mapping[str, DyadicHistogram] | None,
    memory: int,
    engine: Engine,
    progress: Progress,
) -> AllSeen:
    """Count all data, of which `samples` are the first. total: how many feeds there are, if that is known.

    counted: what the first samples have shown of the same tensors; they are not counted again then. memory: bytes of
    later samples to keep, none for 0.

    Raises DataError without any data, and as `collect_statistics` does.
    """
    front = None
    if counted is not None:
        front = Counts(tensors=dict(counted), feeds=samples.whole, samples=samples.count())
    before = 0 if front is None else samples.whole
    as_it_comes, lost = work.state is None and engine.alone, NOTHING_SKIPPED
    stream = _Stream(samples, work, total, memory, progress, before=before, behind=front is not None)
    if work.parts is not None and not as_it_comes:
        stream.look_at_first()
        size = _shard_size(work.parts.total, engine.workers)
        if work.state is not None:  # the workers of an earlier call had their shards
            size = work.state.recalled("feeds of a shard", lambda: size)
        start, lost = work.parts.behind(samples.read if front is not None else 0)
        left = samples.left if front is not None else []
        shards = _numbered(Shard(first=samples.whole, last=start, feeds=tuple(left)), work.parts, size, progress)
        found = engine.merge(work, shards, merged_counts)
        later = _later(work, work.parts, samples, stream, memory)
    else:
        found = _counted_here(work, stream, engine) if as_it_comes else _counted_of_sent(work, stream, engine)
        later = stream.later.kept if work.parts is None else _later(work, work.parts, samples, stream, memory)
    seen = [part for part in (front, found) if part is not None]
    if not seen or stream.first is None:
        raise DataError("There are no calibration data: give at least one batch.")
    if total is None or not as_it_comes:
        progress("calibration", 1.0)
    merged = reduce(merged_counts, seen)
    merged = replace(merged, skipped=merged.skipped.merge(lost))
    return AllSeen(seen=merged, first=stream.first, later=later)


class _Stream:
    """The data as this process reads them: what is counted of them, the first sample, and some of the later ones.

    before: so many feeds are counted already; behind: and so are the first samples.
    """

    def __init__(
        self,
        samples: FirstSamples,
        work: CountShards,
        total: int | None,
        memory: int,
        progress: Progress,
        *,
        before: int,
        behind: bool,
    ) -> None:
        self._samples, self._rule, self._total = samples, work.rule, total
        self._memory, self._progress, self._behind = memory, progress, behind
        self.before = before
        self.first: Feed | None = samples.samples[0] if samples.samples else None
        self.later = LaterSamples(work.rule, 0)

    def feeds(self) -> Iterator[Feed]:
        """All that has to be counted."""
        place, done = 0 if self._behind else -len(self._samples.samples), self.before
        for feed in self._samples.others() if self._behind else self._samples.all():
            if self.first is None:
                self.first = self._rule.sample(feed, 0)
            if self._memory and not self.later.most:
                self.later = LaterSamples(self._rule, most_kept(self.first, self._memory))
            self.later.look(feed, place)
            yield feed
            place, done = place + self._rule.count(feed), done + 1
            self._progress("calibration", done / self._total if self._total else 0.0)

    def look_at_first(self) -> None:
        """Read some of the data here, which then are said to be poor if they are; no more are read after that."""
        looked = len(self._samples.samples)
        for feed in self._samples.all() if not looked else ():
            if self.first is None:
                self.first = self._rule.sample(feed, 0)
            looked += self._rule.count(feed)
            if looked >= _LOOKED:
                break
        self._samples.close()


def _counted_here(work: CountShards, stream: _Stream, engine: Engine) -> Counts | None:
    """All as one shard, as many feeds at a time as there are."""
    feeds = stream.feeds()
    if not (first := list(islice(feeds, side_by_side()))):
        return None
    everything = Shard(first=stream.before, feeds=chain(first, feeds))
    return engine.merge(replace(work, workers=len(first)), [everything], merged_counts)


def _counted_of_sent(work: CountShards, stream: _Stream, engine: Engine) -> Counts | None:
    return engine.merge(replace(work, parts=None), _grouped(stream.feeds(), stream.before), merged_counts)


def _grouped(feeds: Iterable[Feed], before: int) -> Iterator[Shard]:
    """Feeds that only this process can read, so many together that sending them costs little."""
    group: list[Feed] = []
    size = 0
    for feed in feeds:
        group.append(feed)
        size += sum(array.nbytes for array in feed.values())
        if size >= _SENT or len(group) >= _LONGEST:
            yield Shard(first=before, last=before + len(group), feeds=tuple(group))
            before, group, size = before + len(group), [], 0
    if group:
        yield Shard(first=before, last=before + len(group), feeds=tuple(group))


def _shard_size(total: int, workers: int) -> int:
    return max(1, min(_LONGEST, -(-total // (_SHARDS * workers))))


def _numbered(begun: Shard, parts: FeedParts, size: int, progress: Progress) -> Iterator[Shard]:
    """The feeds by their numbers, `size` of them together, for whoever opens them. begun: what is left of a feed that
    is counted in part, and where the others begin."""
    if begun.feeds:
        yield begun
    for first in range(begun.last, parts.total, size):
        progress("calibration", first / parts.total)
        yield Shard(first=first, last=min(first + size, parts.total))


def _later(work: CountShards, parts: FeedParts, samples: FirstSamples, stream: _Stream, memory: int) -> list[Feed]:
    """The samples that `LaterSamples` would have kept."""
    if not memory or stream.first is None:
        return []
    front = len(samples.samples)
    found = []
    for place in kept_places(parts.place(parts.total) - front, most_kept(stream.first, memory)):
        number = bisect_right(range(parts.total), front + place, key=parts.place) - 1
        index = front + place - parts.place(number)
        feeds = parts.read(number, number + 1)
        found += [work.rule.sample(feed, index) for feed in feeds if index < work.rule.count(feed)]
    return found
