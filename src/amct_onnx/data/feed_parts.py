"""The feeds of data by number: whoever sees the same files makes some of them, without those in front of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.data.arrays import BadSamples, SampleArray
from amct_onnx.data.batches import BatchRule, Chunk, Note, quiet, rebatch
from amct_onnx.data.chunk_files import ChunkFiles
from amct_onnx.data.fit_to_model import fit_chunks, fit_shapes
from amct_onnx.data.images import ImageArray
from amct_onnx.data.read_ahead import read_ahead
from amct_onnx.data.skipped_samples import SkippedTally
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed, Int64s
from amct_onnx.values.skipped_data import NOTHING_SKIPPED, SkippedData, Unreadable

Chunks = Callable[[int], Chunk | DataError]
_AHEAD = 2  # batches of images that are decoded before somebody asks for them


@dataclass(frozen=True, kw_only=True)
class NumberedFeed:
    """A feed and its number; None where all that is in it is left out, as `skipped` says."""

    number: int
    feed: Feed | None
    skipped: SkippedData = NOTHING_SKIPPED


@dataclass(frozen=True, kw_only=True)
class FeedParts(ABC):
    """The feeds of a `DataSource` by number, from 0 to `total` - 1, equal to the last bit to those of iterating it.

    Such a value can be pickled: it holds names of files, shapes, and what was decided of the data when they were
    opened. declared: what the shapes of the model say of the batch. rule: what was found after a trial.

    skips: samples that cannot be read are left out, and the others of a feed stay what they are. So the numbers of
    feeds and the places of samples are those of all data, whoever reads which part. lost: what was left out when the
    data were opened; it belongs to no feed.
    """

    total: int
    inputs: tuple[ModelInput, ...]
    declared: BatchRule
    rule: BatchRule
    skips: bool
    lost: SkippedData = NOTHING_SKIPPED

    def read(
        self, first: int, last: int, note: Note = quiet, skipped: Callable[[SkippedData], None] | None = None
    ) -> Iterator[Feed]:
        """The feeds `first` to `last` - 1. `note` is told what is changed in them, and `skipped` what is left out of
        each, when it would have come.

        Raises DataError, with the file or the number of the sample, for data that cannot be read or do not fit.
        """
        for made in self.numbered(first, last, note):
            if skipped is not None and made.skipped:
                skipped(made.skipped)
            if made.feed is not None:
                yield made.feed

    @abstractmethod
    def numbered(self, first: int, last: int, note: Note = quiet) -> Iterator[NumberedFeed]:
        """The same feeds with their numbers, and those of which nothing is left."""

    @abstractmethod
    def place(self, feed: int) -> int:
        """How many samples are in front of a feed, as `BatchRule.count` counts them, with those that are left out."""

    def behind(self, feeds: int) -> tuple[int, SkippedData]:
        """The number of the feed behind the first `feeds` that `read` gives, and what is left out in front of it, with
        what was `lost`."""
        skipped, number = self.lost, 0
        if not self.skips or not feeds:
            return feeds, skipped
        for made in self.numbered(0, self.total):
            skipped, number = skipped.merge(made.skipped), made.number + 1
            feeds -= made.feed is not None
            if not feeds:
                break
        return number, skipped


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayFeeds(FeedParts):
    """Feeds that are cut out of arrays, `size` of their `rows` at a time. `whole`: what is in each of them as it is."""

    cut: Mapping[str, SampleArray]
    whole: Feed
    size: int
    rows: int
    where: str
    """The name of the samples in errors."""

    def numbered(self, first: int, last: int, note: Note = quiet) -> Iterator[NumberedFeed]:
        feeds = self._made(first, last, note)
        return read_ahead(feeds, _AHEAD) if any(isinstance(a, ImageArray) for a in self.cut.values()) else feeds

    def _made(self, first: int, last: int, note: Note) -> Generator[NumberedFeed, None, None]:
        start, end = first * self.size, min(last * self.size, self.rows)
        bad: BadSamples | None = {} if self.skips else None
        chunks = cut_chunks(self.cut, self.whole, self.size, end, self.where, start, bad)
        for number, chunk in enumerate(chunks, first):
            place = number * self.size
            lost = [_said(sample, reason) for sample, reason in (bad or {}).items()]
            left = without(chunk, self.cut, bad or {}, place) if lost else chunk
            if left is None or (lost and self.rule.fixed is not None):
                beside = min(self.size, end - place) - len(lost)
                yield _numbered(number, None, replace(SkippedData.of_samples(lost), beside=beside))
                continue
            (fitted,) = fit_chunks([left], self.inputs, self.declared, note, place)
            for feed in [fitted.arrays] if self.rule.whole else rebatch([fitted], self.rule, self.size, note):
                yield _numbered(number, feed, SkippedData.of_samples(lost))

    def place(self, feed: int) -> int:
        return feed if self.rule.whole or self.rule.fixed is not None else min(feed * self.size, self.rows)

    @property
    def in_files(self) -> bool:
        """Whether another process can read the feeds too, and knows how many samples are in front of each."""
        clear = bool(self.rule.whole) or self.rule.fixed is not None or not self.whole.keys() & self.rule.batched
        return clear and all(array.in_files for array in self.cut.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class FileFeeds(FeedParts):
    """Feeds of files that hold samples: a file is a feed; or, with `size`, their samples are joined to feeds.

    used: the numbers of the chunks of `files` that have samples. ends: how many samples have come when each of them
    has been read, of which the last may be cut off by a limit.
    """

    files: ChunkFiles
    size: int | None
    used: Int64s
    ends: Int64s

    def numbered(self, first: int, last: int, note: Note = quiet) -> Generator[NumberedFeed, None, None]:
        chunks = in_order(self.files, note)
        if self.size is None:
            for number in range(first, last):
                parts, found = self._samples(chunks, number, self._end(number), self._end(number + 1), note)
                yield _numbered(number, parts[0] if parts else None, found)
            return
        for number in range(first, last):
            start, end = number * self.size, min((number + 1) * self.size, self._end(len(self.ends)))
            parts, found = self._samples(chunks, bisect_right(self.ends, start), start, end, note)
            if found and self.rule.fixed is not None:
                yield _numbered(number, None, replace(found, beside=sum(map(self.rule.rows, parts))))
                continue
            yield _numbered(number, self.rule.join(parts) if parts else None, found)

    def place(self, feed: int) -> int:
        if self.rule.fixed is not None:
            return feed
        return self._end(feed) if self.size is None else min(feed * self.size, self._end(len(self.ends)))

    def _end(self, count: int) -> int:
        """How many samples the first `count` chunks have."""
        return int(self.ends[count - 1]) if count else 0

    def _samples(self, chunks: Chunks, chunk: int, start: int, end: int, note: Note) -> tuple[list[Feed], SkippedData]:
        """The samples `start` to `end` - 1, the first of which is in a chunk of this number."""
        parts: list[Feed] = []
        found = NOTHING_SKIPPED
        while start < end:
            before, until = self._end(chunk), min(end, self._end(chunk + 1))
            read = chunks(int(self.used[chunk]))
            if isinstance(read, DataError):
                if not self.skips:
                    raise read
                found = found.merge(SkippedData(samples=until - start, first=(_said(start, read),)))
            else:
                (fitted,) = fit_chunks([read], self.inputs, self.declared, note, before)
                parts.append(self.rule.cut(fitted.arrays, start - before, until - before))
            chunk, start = chunk + 1, until
        return parts, found


def file_feeds(
    files: ChunkFiles,
    inputs: tuple[ModelInput, ...],
    declared: BatchRule,
    rule: BatchRule,
    size: int | None,
    limit: int | None,
    *,
    skips: bool,
    lost: SkippedData = NOTHING_SKIPPED,
) -> FileFeeds | None:
    """The feeds of files, after a look at the header of each; None where headers do not tell what is in each feed.

    Raises DataError for a header that cannot be read, unless such files are skipped.
    """
    used: list[int] = []
    ends: list[int] = []
    front: Feed | None = None
    for number in range(len(files)):
        outline = files.outline(number)
        if isinstance(outline, DataError):
            if not skips:
                raise outline
            lost = lost.merge(SkippedData(files=1, first=(_said(ends[-1] if ends else 0, outline),)))
            continue
        shapes = fit_shapes(outline, inputs, declared, quiet)
        if len(set(rule.lengths(shapes).values())) > 1:
            return None  # the network says whether it takes this
        count = rule.rows(shapes)
        if not count:
            continue
        front = front or shapes
        if size is not None and not (rule.names(shapes) == front.keys() and rule.joinable(front, shapes)):
            return None
        used.append(number)
        ends.append((ends[-1] if ends else 0) + count)
        if limit is not None and ends[-1] >= limit:
            ends[-1] = limit
            break
    if not ends:
        return None
    total = len(ends) if size is None else ends[-1] // size if rule.fixed is not None else -(-ends[-1] // size)
    return FileFeeds(
        total=total,
        inputs=inputs,
        declared=declared,
        rule=rule,
        skips=skips,
        lost=lost,
        files=files,
        size=size,
        used=np.array(used),
        ends=np.array(ends),
    )


def without(chunk: Chunk, cut: Collection[str], bad: BadSamples, start: int) -> Chunk | None:
    """A chunk, whose samples begin at `start`, without those that are `bad`, which is emptied; None if all are.

    cut: the inputs in which the samples lie.
    """
    count = len(chunk.arrays[next(iter(cut))])
    rows = [row for row in range(count) if start + row not in bad]
    bad.clear()
    return replace(chunk, arrays={n: a[rows] if n in cut else a for n, a in chunk.arrays.items()}) if rows else None


def readable(chunks: Iterable[Chunk | DataError], tally: SkippedTally | None) -> Iterator[Chunk]:
    """`chunks` that could be read. What could not is raised, or told the tally where there is one."""
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, DataError):
            yield chunk
        elif tally is None:
            raise chunk
        else:
            tally.add(SkippedData(files=1, first=(_said(number, chunk),)))


def in_order(files: ChunkFiles, note: Note) -> Chunks:
    """Gives chunks by numbers that only rise. Those one behind the other are read in one go."""
    stream: Iterator[Chunk | DataError] = iter(())
    following = -1
    last: Chunk | DataError = DataError("")

    def chunk(number: int) -> Chunk | DataError:
        nonlocal stream, following, last
        if number != following - 1:
            stream = stream if number == following else files.read(number, len(files), note)
            last, following = next(stream), number + 1
        return last

    return chunk


def _numbered(number: int, feed: Feed | None, skipped: SkippedData) -> NumberedFeed:
    """Feed and number; it counts as left out where nothing is left of it."""
    return NumberedFeed(number=number, feed=feed, skipped=replace(skipped, feeds=int(feed is None)))


def _said(number: int, reason: DataError) -> Unreadable:
    return Unreadable(number=number, why=str(reason).removesuffix("; repair or remove it"))


def cut_chunks(
    arrays: Mapping[str, SampleArray],
    whole: Feed,
    size: int,
    rows: int,
    where: str,
    start: int = 0,
    bad: BadSamples | None = None,
) -> Iterator[Chunk]:
    """The samples `start` to `rows` - 1 of arrays, `size` at a time; `bad` gets those that cannot be read, if given."""
    blocks = {name: array.blocks(size, rows, start, bad) for name, array in arrays.items()}
    for first in range(start, rows, size):
        last = min(first + size, rows)
        places = {name: array.label(first, last) for name, array in arrays.items()}
        parts = {name: next(block) for name, block in blocks.items()}
        yield Chunk(where=where, arrays={**parts, **whole}, places=places)
