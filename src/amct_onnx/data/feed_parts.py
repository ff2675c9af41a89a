"""The feeds of data by number: whoever sees the same files makes some of them, without those in front of these."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.data.arrays import SampleArray
from amct_onnx.data.batches import BatchRule, Chunk, Note, first_chunks, quiet, rebatch
from amct_onnx.data.chunk_files import ChunkFiles
from amct_onnx.data.fit_to_model import fit_chunks, fit_shapes
from amct_onnx.data.images import ImageArray
from amct_onnx.data.read_ahead import read_ahead
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed

_AHEAD = 2  # batches of images that are decoded before somebody asks for them


@dataclass(frozen=True, kw_only=True)
class FeedParts(ABC):
    """The feeds of a `DataSource` by number, from 0 to `total` - 1, equal to the last bit to those of iterating it.

    Such a value can be pickled: it holds names of files, shapes, and what was decided of the data when they were
    opened. declared: what the shapes of the model say of the batch. rule: what was found after a trial.
    """

    total: int
    inputs: tuple[ModelInput, ...]
    declared: BatchRule
    rule: BatchRule

    @abstractmethod
    def read(self, first: int, last: int, note: Note = quiet) -> Iterator[Feed]:
        """The feeds `first` to `last` - 1. `note` is told what is changed in them.

        Raises DataError, with the file or the number of the sample, for data that cannot be read or do not fit.
        """

    @abstractmethod
    def place(self, feed: int) -> int:
        """How many samples are in front of a feed, as `BatchRule.count` counts them."""


@dataclass(frozen=True, kw_only=True)
class ArrayFeeds(FeedParts):
    """Feeds that are cut out of arrays, `size` of their `rows` at a time. `whole`: what is in each of them as it is."""

    cut: Mapping[str, SampleArray]
    whole: Feed
    size: int
    rows: int
    where: str
    """The name of the samples in errors."""

    def read(self, first: int, last: int, note: Note = quiet) -> Iterator[Feed]:
        start, end = first * self.size, min(last * self.size, self.rows)
        chunks = cut_chunks(self.cut, self.whole, self.size, end, self.where, start)
        fitted = fit_chunks(chunks, self.inputs, self.declared, note, start)
        whole = bool(self.rule.whole)
        feeds = (c.arrays for c in fitted) if whole else rebatch(fitted, self.rule, self.size, note)
        return read_ahead(feeds, _AHEAD) if any(isinstance(a, ImageArray) for a in self.cut.values()) else feeds

    def place(self, feed: int) -> int:
        return feed if self.rule.whole or self.rule.fixed is not None else min(feed * self.size, self.rows)

    @property
    def in_files(self) -> bool:
        """Whether another process can read the feeds too, and knows how many samples are in front of each."""
        clear = bool(self.rule.whole) or self.rule.fixed is not None or not self.whole.keys() & self.rule.batched
        return clear and all(array.in_files for array in self.cut.values())


@dataclass(frozen=True, kw_only=True)
class FileFeeds(FeedParts):
    """Feeds of files that hold samples: a file is a feed; or, with `size`, their samples are joined to feeds.

    used: the numbers of the chunks of `files` that have samples. ends: how many samples have come when each of them
    has been read, of which the last `limit` ends.
    """

    files: ChunkFiles
    size: int | None
    used: Sequence[int]
    ends: Sequence[int]

    def read(self, first: int, last: int, note: Note = quiet) -> Iterator[Feed]:
        if self.size is None:
            chunks = self._chunks(first, last, note)
            return (chunk.arrays for chunk in chunks)
        start, end = first * self.size, min(last * self.size, self.ends[-1])
        begin = int(np.searchsorted(self.ends, start, side="right"))
        stop = int(np.searchsorted(self.ends, end, side="left")) + 1
        skipped = start - (self.ends[begin - 1] if begin else 0)
        chunks = first_chunks(self._chunks(begin, stop, note), self.rule, skipped + end - start)
        return rebatch(_behind(chunks, self.rule, skipped), self.rule, self.size, note)

    def place(self, feed: int) -> int:
        if self.rule.fixed is not None:
            return feed
        if self.size is None:
            return self.ends[feed - 1] if feed else 0
        return min(feed * self.size, self.ends[-1])

    def _chunks(self, first: int, last: int, note: Note) -> Iterator[Chunk]:
        """Of the chunks that have samples, those from `first` to `last` - 1."""
        start = self.ends[first - 1] if first else 0
        runs = itertools.groupby(enumerate(self.used[first:last]), lambda pair: pair[1] - pair[0])
        numbers = [[number for _, number in run] for _, run in runs]
        read = itertools.chain.from_iterable(self.files.read(run[0], run[-1] + 1, note) for run in numbers)
        fitted = fit_chunks(read, self.inputs, self.declared, note, start)
        return first_chunks(fitted, self.rule, self.ends[last - 1] - start) if last > first else iter(())


def _behind(chunks: Iterator[Chunk], rule: BatchRule, rows: int) -> Iterator[Chunk]:
    """`chunks` without the first `rows` samples, which all are of the first one."""
    for chunk in chunks:
        yield replace(chunk, arrays=rule.cut(chunk.arrays, rows, rule.rows(chunk.arrays))) if rows else chunk
        rows = 0


def file_feeds(
    files: ChunkFiles,
    inputs: tuple[ModelInput, ...],
    declared: BatchRule,
    rule: BatchRule,
    size: int | None,
    limit: int | None,
) -> FileFeeds | None:
    """The feeds of files, after a look at the header of each; None where headers do not tell what is in each feed.

    Raises DataError for a header that cannot be read.
    """
    used: list[int] = []
    ends: list[int] = []
    front: Feed | None = None
    for number in range(len(files)):
        shapes = fit_shapes(files.outline(number), inputs, declared, quiet)
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
        total=total, inputs=inputs, declared=declared, rule=rule, files=files, size=size, used=used, ends=ends
    )


def cut_chunks(
    arrays: Mapping[str, SampleArray], whole: Feed, size: int, rows: int, where: str, start: int = 0
) -> Iterator[Chunk]:
    """The samples `start` to `rows` - 1 of arrays, `size` at a time."""
    blocks = {name: array.blocks(size, rows, start) for name, array in arrays.items()}
    for first in range(start, rows, size):
        last = min(first + size, rows)
        places = {name: array.label(first, last) for name, array in arrays.items()}
        parts = {name: next(block) for name, block in blocks.items()}
        yield Chunk(where=where, arrays={**parts, **whole}, places=places)
