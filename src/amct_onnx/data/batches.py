"""Which inputs of a model have a batch, and how samples are cut and joined to batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed

Note = Callable[[str], None]


def quiet(_: str) -> None:
    """A note that nobody reads."""


_USUAL_ELEMENTS = 4 * 3 * 224 * 224  # of all inputs in a batch whose size nobody says: four common images
_LARGEST_USUAL = 32  # samples in such a batch at most
_FIXED = "the model fixes axis 0 of its inputs at different sizes"
_UNKNOWN = "no input has an axis that could be the batch"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some samples as the data give them, before they are cut or joined to batches."""

    where: str
    """The name of the samples in errors."""
    arrays: Feed
    places: Mapping[str, str] = field(default_factory=dict)
    """A more exact name than `where`, for inputs that have one: the file of that input."""


@dataclass(frozen=True, kw_only=True)
class BatchRule:
    """Where the samples of a feed are: along axis 0 of some inputs, or the whole feed is one.

    It is decided once, from the shapes that a model declares and by a trial on the first data (`data.sample_axis`), and
    whoever cuts, joins or counts samples asks it. An input without a batch, beside others that have one, is the same in
    each feed.
    """

    batched: frozenset[str]
    loose: frozenset[str]
    """Inputs whose first dimension has a name of its own. It may be the batch or, say, the length of a sequence. The
    data decide: it is the batch where it is as long as that of the `batched` inputs."""
    fixed: int | None
    """The samples in a batch if the model fixes them, None if it leaves them open."""
    whole: str = ""
    """Why one feed is one sample, as a clause; "" where samples lie along axis 0."""

    @staticmethod
    def of(inputs: Sequence[ModelInput]) -> BatchRule:
        """What the shapes say. If all first dimensions are fixed and they differ, no input has a batch."""
        firsts = {value.name: None if value.shape is None else value.shape[0] for value in inputs if value.shape != ()}
        needed = [value for value in fed_by_position(inputs) if value.name in firsts]
        free = [value for value in needed if firsts[value.name] is None]
        if free:
            batched = [value for value in inputs if value.name in firsts and firsts[value.name] is None]
            loose = {value.name for value in batched if value.batch_name not in ("", free[0].batch_name)}
            strict = {value.name for value in batched} - loose
            return BatchRule(batched=frozenset(strict), loose=frozenset(loose), fixed=None)
        sizes = {firsts[value.name] for value in needed}
        if len(sizes) != 1:
            return BatchRule.of_whole_feeds(_FIXED if sizes else _UNKNOWN)
        (fixed,) = sizes
        names = frozenset(name for name, first in firsts.items() if first == fixed)
        return BatchRule(batched=names, loose=frozenset(), fixed=fixed)

    @staticmethod
    def of_whole_feeds(reason: str) -> BatchRule:
        """One feed is one sample, for this reason."""
        return BatchRule(batched=frozenset(), loose=frozenset(), fixed=None, whole=reason)

    def batched_in(self, lengths: Mapping[str, int]) -> frozenset[str]:
        """The inputs that have the batch as first dimension, from the length of each first dimension in the data."""
        strict = {name for name in lengths if name in self.batched}
        rows = {lengths[name] for name in strict}
        return frozenset(strict | {name for name in lengths if name in self.loose and lengths[name] in rows})

    def lengths(self, arrays: Feed) -> dict[str, int]:
        """How long axis 0 of each input of a feed is that may have the batch there."""
        lengths = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
        return {name: lengths[name] for name in self.batched_in(lengths)}

    def names(self, arrays: Feed) -> frozenset[str]:
        """The inputs of a feed that have the batch as first dimension: none where they disagree how long it is."""
        lengths = self.lengths(arrays)
        return frozenset(lengths) if len(set(lengths.values())) == 1 else frozenset()

    def rows(self, arrays: Feed) -> int:
        """The number of samples in a feed, 1 if it is one as a whole."""
        return next((arrays[name].shape[0] for name in self.names(arrays)), 1)

    def cut(self, arrays: Feed, first: int, last: int) -> Feed:
        """The samples `first` to `last` - 1."""
        names = self.names(arrays)
        return {name: array[first:last] if name in names else array for name, array in arrays.items()}

    def count(self, arrays: Feed) -> int:
        """How many samples `sample` can take of a feed: 1 if the model fixes the batch, or has none."""
        return 1 if self.fixed is not None else self.rows(arrays)

    def sample(self, arrays: Feed, index: int) -> Feed:
        """A copy of one sample, as a batch of one. If the model fixes the batch, it is a copy of the whole feed."""
        feed = arrays if self.fixed is not None else self.cut(arrays, index, index + 1)
        return {name: np.array(array) for name, array in feed.items()}

    def joinable(self, one: Feed, two: Feed) -> bool:
        """Whether the samples of two feeds can be in one."""
        names = self.names(one)
        if not names or one.keys() != two.keys() or names != self.names(two):
            return False
        return all(
            array.shape[1:] == two[name].shape[1:] if name in names else np.array_equal(array, two[name])
            for name, array in one.items()
        )

    def join(self, parts: Sequence[Feed]) -> Feed:
        """The samples of feeds that are `joinable`, in one."""
        if len(parts) == 1:
            return parts[0]
        names = self.names(parts[0])
        return {
            name: np.concatenate([part[name] for part in parts]) if name in names else array
            for name, array in parts[0].items()
        }

    def settled(self, arrays: Feed) -> BatchRule:
        """The same with each loose input as it is in these data, in which the batch has more than one row."""
        return replace(self, batched=self.names(arrays), loose=frozenset())

    def fixed_at(self, size: int) -> BatchRule:
        """The same for a network that takes so many samples at a time, though its shapes leave that open."""
        return replace(self, fixed=size)


def check_rows(counts: Mapping[str, int], where: str) -> int:
    """The number of samples that each input has, 1 if there are no inputs. Raises DataError if they disagree."""
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name!r} has {counts[name]}" for name in sorted(counts))
        raise DataError(f"{where}: the inputs have different numbers of samples: {text}")
    return next(iter(counts.values()), 1)


def fed_by_position(inputs: Sequence[ModelInput]) -> tuple[ModelInput, ...]:
    """The inputs that arrays without names belong to: the inputs without a default value, or all if each has one."""
    return tuple(value for value in inputs if not value.optional) or tuple(inputs)


def default_batch(samples: Iterable[Sequence[int]]) -> int:
    """The samples in a batch where neither model nor user says it, from the shape of one sample of each input.

    They are 4 for images of 224 x 224 pixels and more for smaller ones, since activations grow with the input; they are
    never more than 32.
    """
    elements = sum(int(np.prod(shape)) for shape in samples)
    return max(1, min(_LARGEST_USUAL, _USUAL_ELEMENTS // max(1, elements)))


def first_chunks(chunks: Iterable[Chunk], rule: BatchRule, limit: int | None) -> Iterator[Chunk]:
    """The first `limit` samples of `chunks`, or all of them for None. No chunk is asked for after these samples."""
    if limit is None:
        yield from chunks
        return
    for chunk in chunks:
        yield replace(chunk, arrays=rule.cut(chunk.arrays, 0, limit))
        limit -= rule.rows(chunk.arrays)
        if limit <= 0:
            return


def rebatch(chunks: Iterable[Chunk], rule: BatchRule, size: int, note: Note) -> Generator[Feed, None, None]:
    """The same samples in the same order, in batches of `size`.

    If the model leaves the batch open, the last batch may be smaller, and samples of another shape begin a batch of
    their own. If it fixes the batch, samples that do not fill the last one are dropped, and `note` is told. Raises
    DataError if the model fixes the batch and the samples differ in shape or do not fill one batch.
    """
    held: list[Feed] = []
    rows = 0
    full = False
    for chunk in chunks:
        count, start = rule.rows(chunk.arrays), 0
        if held and not rule.joinable(held[-1], chunk.arrays):
            if rule.fixed is not None:
                raise DataError(
                    f"{chunk.where}: has another shape than the samples before it, and the model takes {size} at once"
                )
            yield rule.join(held)
            held, rows = [], 0
        while start < count:
            take = min(size - rows, count - start)
            held.append(rule.cut(chunk.arrays, start, start + take))
            start, rows = start + take, rows + take
            if rows == size:
                yield rule.join(held)
                held, rows, full = [], 0, True
    if held and rule.fixed is None:
        yield rule.join(held)
    elif held and full:
        note(dropped_text(rows, size))
    elif held:
        raise DataError(too_few_text(rows, size))


def joined(feeds: Sequence[Feed], rule: BatchRule, size: int) -> list[Feed]:
    """Samples that `BatchRule.sample` made, in batches of up to `size`. They stay as they are if the batch is fixed."""
    if rule.fixed is not None or rule.whole:
        return [dict(feed) for feed in feeds]
    return list(rebatch((Chunk(where="a sample", arrays=dict(feed)) for feed in feeds), rule, size, quiet))


def dropped_text(rows: int, size: int) -> str:
    return f"the model takes {size} samples at once: the last {rows} do not fill a batch and are not used"


def too_few_text(rows: int, size: int) -> str:
    return f"the data have {rows} samples, the model takes {size} at once; give at least {size}"
