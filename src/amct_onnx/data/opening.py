"""Data of a known form on the way to feeds, and the trial of the network on the first of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from amct_onnx.data.arrays import BadSamples, SampleArray
from amct_onnx.data.batches import BatchRule, Chunk, check_rows, default_batch
from amct_onnx.data.data_source import DataSource
from amct_onnx.data.feed_parts import FeedParts, cut_chunks, without
from amct_onnx.data.fit_to_model import fit_chunks, shapes_agree
from amct_onnx.data.open_paths import DataOpener
from amct_onnx.data.sample_axis import NOT_ONE_BY_ONE, Network, decide, runs
from amct_onnx.data.skipped_samples import SkippedTally
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.values.skipped_data import SkippedData

_MOST_SEARCHED, _MOST_JOINED = 8, 32  # items that are read ahead for a trial
MOST_AT_ONCE = 1 << 24  # elements of an array that is one feed as a whole, though it could be several


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What it takes to turn opened data into feeds: `declared` is what the shapes say of the batch."""

    opener: DataOpener
    declared: BatchRule
    network: Network | None
    notes: dict[str, None]
    tally: SkippedTally | None
    lost: SkippedData
    """What was left out when the data were opened."""

    @property
    def skips(self) -> bool:
        """Whether what cannot be read is left out."""
        return self.tally is not None

    def fit(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        return fit_chunks(chunks, self.opener.inputs, self.declared, self.opener.note)

    def source(
        self,
        feeds: Iterator[Feed],
        rule: BatchRule,
        total: int | None,
        order: str = "",
        parts: Callable[[], FeedParts | None] = lambda: None,
    ) -> DataSource:
        if rule.whole and self.declared.batched:
            self.opener.note(f"each feed is one sample, since {rule.whole}")
        if rule.fixed != self.declared.fixed:
            self.opener.note(f"the network takes {rule.fixed} samples at once, though the model leaves the batch open")
        return DataSource(
            feeds, total=total, rule=rule, notes=self.notes, sorted_by_class=order, parts=parts, tally=self.tally
        )


def tried_on_arrays(arrays: Mapping[str, SampleArray], work: Opening, network: Network, where: str) -> BatchRule:
    """The rule, after a trial on the first rows of arrays, and on the arrays as they are."""

    def everything() -> Feed:
        whole = {name: read_whole(array) for name, array in arrays.items()}
        return next(work.fit(iter([Chunk(where=where, arrays=whole)]))).arrays

    cut, whole = parted(arrays, work.declared, work.opener)
    lengths = {array.shape[0] for array in cut.values()}
    if not cut or work.declared.fixed is not None:
        return work.declared
    if len(lengths) > 1:
        return decide(work.declared, everything(), None, network, where) or work.declared
    (rows,) = lengths
    size = min(rows, max(work.opener.options.batch_size or usual_batch(cut), 2))
    first = _first_rows(cut, whole, size, rows, where, work)
    if first is None:
        return work.declared
    rule = decide(work.declared, first, None, network, where)
    if rule is not None and rule.whole and rows > size and rule.whole == NOT_ONE_BY_ONE:
        return work.declared.fixed_at(size)
    fits = sum(math.prod(array.shape) for array in arrays.values()) <= MOST_AT_ONCE
    if rule is None and rows > size and fits and runs(network, complete := everything()):
        return decide(work.declared, complete, None, network, where) or work.declared
    return rule or work.declared


def _first_rows(
    cut: Mapping[str, SampleArray], whole: Feed, size: int, rows: int, where: str, work: Opening
) -> Feed | None:
    """The first rows, as many as a batch has where all can be read; None where none of the first ones can."""
    if not work.skips:
        return next(work.fit(cut_chunks(cut, whole, size, size, where))).arrays
    bad: BadSamples = {}
    chunks = cut_chunks(cut, whole, size, min(rows, _MOST_SEARCHED * size), where, 0, bad)
    for number, chunk in enumerate(chunks):
        if left := without(chunk, cut, bad, number * size):
            return next(work.fit(iter([left]))).arrays
    return None


def parted(
    arrays: Mapping[str, SampleArray], rule: BatchRule, opener: DataOpener
) -> tuple[dict[str, SampleArray], dict[str, Array]]:
    """The arrays that are cut into batches, and those that are in each feed as they are."""
    batched = rule.batched_in({name: array.shape[0] for name, array in arrays.items()})
    shapes = {value.name: value.shape for value in opener.inputs}
    cut, whole = {}, {}
    for name, array in arrays.items():
        shape = shapes[name]
        if name not in batched or (shape is not None and shapes_agree(array.shape, shape[1:])):
            whole[name] = read_whole(array)
        else:
            cut[name] = array
    return cut, whole


def read_whole(array: SampleArray) -> Array:
    return next(array.blocks(array.shape[0], array.shape[0]))


def usual_batch(cut: Mapping[str, SampleArray]) -> int:
    return default_batch([array.shape[1:] for array in cut.values()])


def tried_on_chunks(chunks: Iterator[Chunk], work: Opening) -> tuple[list[Chunk], BatchRule]:
    """The chunks that were read for a trial, and the rule that came of it."""
    declared, network = work.declared, work.network
    read: list[Chunk] = []
    if network is None:
        return read, declared
    first = None
    for chunk in itertools.islice(chunks, _MOST_SEARCHED):  # what is empty shows little of what a network does
        read.append(chunk)
        first = first or (chunk if declared.rows(chunk.arrays) else None)
        if all(array.size for array in chunk.arrays.values()):
            first = chunk
            break
    if first is None:
        return read, declared
    if declared.rows(first.arrays) > 1:
        return read, decide(declared, first.arrays, None, network, first.where) or declared
    read += itertools.islice(chunks, 1)
    other = next((chunk.arrays for chunk in read if chunk is not first), None)
    if (rule := decide(declared, first.arrays, other, network, first.where)) is not None:
        return read, rule
    read += itertools.islice(chunks, _MOST_JOINED - len(read))
    together = declared.join([c.arrays for c in read if c is first or declared.joinable(first.arrays, c.arrays)])
    rule = decide(declared, together, None, network, first.where)
    takes_all = rule is not None and rule.whole == NOT_ONE_BY_ONE
    return read, declared.fixed_at(declared.rows(together)) if takes_all else rule or declared


def checked_chunks(chunks: Iterator[Chunk], rule: BatchRule, work: Opening) -> Iterator[Chunk]:
    """`chunks` that have samples. Raises DataError for one whose inputs have different numbers of them, unless the
    network takes it as it is."""
    for chunk in chunks:
        lengths = rule.lengths(chunk.arrays)
        if len(set(lengths.values())) > 1 and not (
            work.network is not None and rule.fixed is None and runs(work.network, chunk.arrays)
        ):
            check_rows(lengths, chunk.where)
        if rule.rows(chunk.arrays):
            yield chunk
        else:
            work.opener.note("items without a sample are not used")
