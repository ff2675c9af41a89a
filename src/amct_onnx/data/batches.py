"""Which inputs of a model have a batch, and how samples are cut and joined to batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed

Note = Callable[[str], None]

_USUAL_ELEMENTS = 4 * 3 * 224 * 224  # of all inputs in a batch whose size nobody says: four common images
_LARGEST_USUAL = 32  # samples in such a batch at most


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
    """Which inputs of a model have the batch as their first dimension.

    An input without a batch, beside others that have one, is the same in each feed.
    """

    batched: frozenset[str]
    loose: frozenset[str]
    """Inputs whose first dimension has a name of its own. It may be the batch or, say, the length of a sequence. The
    data decide: it is the batch where it is as long as that of the `batched` inputs."""
    fixed: int | None
    """The samples in a batch if the model fixes them, None if it leaves them open."""

    @staticmethod
    def of(inputs: Sequence[ModelInput]) -> BatchRule:
        """The rule of a model. If all first dimensions are fixed and they differ, no input has a batch."""
        firsts = {value.name: None if value.shape is None else value.shape[0] for value in inputs if value.shape != ()}
        needed = [value for value in fed_by_position(inputs) if value.name in firsts]
        free = [value for value in needed if firsts[value.name] is None]
        if free:
            batched = [value for value in inputs if value.name in firsts and firsts[value.name] is None]
            loose = {value.name for value in batched if value.batch_name not in ("", free[0].batch_name)}
            strict = {value.name for value in batched} - loose
            return BatchRule(batched=frozenset(strict), loose=frozenset(loose), fixed=None)
        sizes = {firsts[value.name] for value in needed}
        fixed = next(iter(sizes)) if len(sizes) == 1 else None
        names = frozenset(name for name, first in firsts.items() if first == fixed is not None)
        return BatchRule(batched=names, loose=frozenset(), fixed=fixed)

    def batched_in(self, lengths: Mapping[str, int]) -> frozenset[str]:
        """The inputs that have the batch as first dimension, from the length of each first dimension in the data."""
        strict = {name for name in lengths if name in self.batched}
        rows = {lengths[name] for name in strict}
        return frozenset(strict | {name for name in lengths if name in self.loose and lengths[name] in rows})

    def names(self, arrays: Feed) -> frozenset[str]:
        """The inputs of a feed that have the batch as first dimension."""
        return self.batched_in({name: array.shape[0] for name, array in arrays.items() if array.ndim})

    def rows(self, chunk: Chunk) -> int:
        """The number of samples in a chunk, 1 if no input has a batch. Raises DataError if inputs disagree."""
        return check_rows({name: chunk.arrays[name].shape[0] for name in self.names(chunk.arrays)}, chunk.where)

    def cut(self, arrays: Feed, first: int, last: int) -> Feed:
        """The samples `first` to `last` - 1."""
        names = self.names(arrays)
        return {name: array[first:last] if name in names else array for name, array in arrays.items()}

    def count(self, arrays: Feed) -> int:
        """How many samples `sample` can take of a feed: 1 if the model fixes the batch, or has none."""
        names = frozenset() if self.fixed is not None else self.names(arrays)
        return min((arrays[name].shape[0] for name in names), default=1)

    def sample(self, arrays: Feed, index: int) -> Feed:
        """A copy of one sample, as a batch of one. If the model fixes the batch, it is a copy of the whole feed."""
        feed = arrays if self.fixed is not None else self.cut(arrays, index, index + 1)
        return {name: np.array(array) for name, array in feed.items()}


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
        limit -= rule.rows(chunk)
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
        count, start = rule.rows(chunk), 0
        if held and not _joinable(held[-1], chunk.arrays, rule):
            if rule.fixed is not None:
                raise DataError(
                    f"{chunk.where}: has another shape than the samples before it, and the model takes {size} at once"
                )
            yield _join(held, rule)
            held, rows = [], 0
        while start < count:
            take = min(size - rows, count - start)
            held.append(rule.cut(chunk.arrays, start, start + take))
            start, rows = start + take, rows + take
            if rows == size:
                yield _join(held, rule)
                held, rows, full = [], 0, True
    if held and rule.fixed is None:
        yield _join(held, rule)
    elif held and full:
        note(dropped_text(rows, size))
    elif held:
        raise DataError(too_few_text(rows, size))


def joined(feeds: Sequence[Feed], rule: BatchRule, size: int) -> list[Feed]:
    """Samples that `BatchRule.sample` made, in batches of up to `size`. They stay as they are if the batch is fixed."""
    if rule.fixed is not None or not rule.batched | rule.loose:
        return [dict(feed) for feed in feeds]
    return list(rebatch((Chunk(where="a sample", arrays=dict(feed)) for feed in feeds), rule, size, lambda _: None))


def dropped_text(rows: int, size: int) -> str:
    return f"the model takes {size} samples at once: the last {rows} do not fill a batch and are not used"


def too_few_text(rows: int, size: int) -> str:
    return f"the data have {rows} samples, the model takes {size} at once; give at least {size}"


def _joinable(one: Feed, two: Feed, rule: BatchRule) -> bool:
    names = rule.names(one)
    if one.keys() != two.keys() or names != rule.names(two):
        return False
    return all(
        array.shape[1:] == two[name].shape[1:] if name in names else np.array_equal(array, two[name])
        for name, array in one.items()
    )


def _join(parts: Sequence[Feed], rule: BatchRule) -> Feed:
    if len(parts) == 1:
        return parts[0]
    names = rule.names(parts[0])
    return {
        name: np.concatenate([part[name] for part in parts]) if name in names else array
        for name, array in parts[0].items()
    }
