"""From calibration data to feeds that fit a model: shapes, types and the number of samples in a batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Note = Callable[[str], None]

_ELEMENTS = 4 * 3 * 224 * 224  # of the inputs of a batch by default: four common images
_MOST = 32


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some samples as they come. `where` names them in errors, `places` those of one input if it has more to say."""

    where: str
    arrays: Feed
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BatchRule:
    """Which inputs have the batch as their first dimension, and its size where the model fixes it.

    `loose` ones have a first dimension of another name, which may be the batch or, say, the length of a sequence: the
    data decide. An input without a batch, beside others that have one, is the same in each feed.
    """

    batched: frozenset[str]
    loose: frozenset[str]
    fixed: int | None

    @staticmethod
    def of(inputs: Sequence[ModelInput]) -> BatchRule:
        """The rule of a model. First dimensions that are all fixed and differ are no batch: no input is batched."""
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
        """The inputs that have the batch as first dimension, given the lengths of the first dimensions in the data."""
        strict = {name for name in lengths if name in self.batched}
        rows = {lengths[name] for name in strict}
        return frozenset(strict | {name for name in lengths if name in self.loose and lengths[name] in rows})

    def names(self, arrays: Feed) -> frozenset[str]:
        """The inputs of a feed that have the batch as first dimension."""
        return self.batched_in({name: array.shape[0] for name, array in arrays.items() if array.ndim})

    def rows(self, piece: Piece) -> int:
        """Samples in a piece that was checked; 1 where nothing is batched. Raises DataError if inputs disagree."""
        return check_rows({name: piece.arrays[name].shape[0] for name in self.names(piece.arrays)}, piece.where)

    def cut(self, arrays: Feed, first: int, last: int) -> Feed:
        """The samples `first` to `last` - 1."""
        names = self.names(arrays)
        return {name: array[first:last] if name in names else array for name, array in arrays.items()}

    def count(self, arrays: Mapping[str, Array]) -> int:
        """How many samples `sample` can take of a feed; 1 where the model fixes the batch, or has none."""
        names = frozenset() if self.fixed is not None else self.names(dict(arrays))
        return min((arrays[name].shape[0] for name in names), default=1)

    def sample(self, arrays: Mapping[str, Array], index: int) -> Feed:
        """A copy of one sample, as a batch of one; the whole feed where there is nothing to cut."""
        feed = dict(arrays)
        feed = feed if self.fixed is not None else self.cut(feed, index, index + 1)
        return {name: np.array(array) for name, array in feed.items()}


def check_rows(counts: Mapping[str, int], where: str) -> int:
    """The number of samples that all inputs have, 1 if there are none. Raises DataError if they disagree."""
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name!r} has {counts[name]}" for name in sorted(counts))
        raise DataError(f"{where}: the inputs have different numbers of samples: {text}")
    return next(iter(counts.values()), 1)


def fed_by_position(inputs: Sequence[ModelInput]) -> tuple[ModelInput, ...]:
    """The inputs that arrays without names belong to: those without a default, or all if each has one."""
    return tuple(value for value in inputs if not value.optional) or tuple(inputs)


def default_batch(samples: Iterable[Sequence[int]]) -> int:
    """Samples in a batch whose size is free, from the shapes of one sample of each input.

    4 images of 224 x 224; more if they are smaller, since activations grow with the input; never more than 32.
    """
    elements = sum(int(np.prod(shape)) for shape in samples)
    return max(1, min(_MOST, _ELEMENTS // max(1, elements)))


def fitted(pieces: Iterable[Piece], inputs: Sequence[ModelInput], rule: BatchRule, note: Note) -> Iterator[Piece]:
    """`pieces` in the shapes and types of the model; `note` is told what was changed. Raises DataError."""
    first = 0
    for piece in pieces:
        arrays = {}
        for value in inputs:
            if value.name not in piece.arrays:
                continue
            where = f"{piece.places.get(value.name, piece.where)}: input {value.name!r}"
            array = fit_shape(piece.arrays[value.name], value, rule, where, note)
            array = fit_type(array, value, where, note)
            if array.dtype.kind == "f" and np.isnan(np.min(array)):
                sample = _nan_sample(array, first) if value.name in rule.batched and array.ndim else ""
                raise DataError(f"{where}{sample}: holds NaN; repair it or leave it out")
            arrays[value.name] = array
        result = replace(piece, arrays=arrays)
        first += rule.rows(result)
        yield result


def fit_shape(array: Array, value: ModelInput, rule: BatchRule, where: str, note: Note) -> Array:
    """`array`, with a leading dimension if only that is missing. Raises DataError."""
    if array.size == 0:
        raise DataError(f"{where}: is empty, its shape is {list(array.shape)}")
    if value.shape is None:
        return array
    batched = value.name in rule.batched | rule.loose
    wanted = (None, *value.shape[1:]) if batched else value.shape
    if agrees(array.shape, wanted):
        return array
    if value.shape == () and array.shape == (1,):
        return array.reshape(())
    if value.shape and (batched or value.shape[0] == 1) and agrees(array.shape, value.shape[1:]):
        note(f"input {value.name!r}: the data come without the dimension of the batch, it is added")
        return array[None]
    what = f"has the shape {list(array.shape)}, the model takes {shape_text(value.shape)}"
    raise DataError(f"{where}: {what}; {_shape_hint(array.shape, wanted)}")


def agrees(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def shape_text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _shape_hint(shape: tuple[int, ...], wanted: Sequence[int | None]) -> str:
    if len(shape) == len(wanted) == 4:
        for order, names in (((0, 3, 1, 2), "NHWC to NCHW"), ((0, 2, 3, 1), "NCHW to NHWC")):
            if agrees([shape[axis] for axis in order], wanted):
                return f"transpose the data from {names}: array.transpose{order}"
    return "prepare the data as the model needs them"


def fit_type(array: Array, value: ModelInput, where: str, note: Note) -> Array:
    """`array` in the type of the input, if no value can be lost by it. Raises DataError."""
    have = array.dtype.newbyteorder("=")
    if value.dtype in ("", have.name) or (value.dtype == "object" and have.kind in "OUST"):
        return np.asarray(array, have)
    what = f"{where}: the data are {have.name}, the model takes {value.dtype}"
    try:
        want = np.dtype(value.dtype)
    except TypeError:
        raise DataError(f"{what}; give them in that type") from None
    if have.kind not in "biuf" or want.kind not in "biuf" or (have.kind == "f" and want.kind != "f"):
        raise DataError(f"{what}; convert them before, it depends on their meaning how")
    with np.errstate(over="ignore"):
        converted = array.astype(want)
    if want.kind == "f":
        if np.isinf(converted).any() and not np.isinf(array).any():
            raise DataError(f"{what}, and some are too large for it; scale the data")
    elif not np.array_equal(converted, array):
        raise DataError(f"{what}, and {array.min()} to {array.max()} do not fit in it")
    advice = ", their values as they are: scale them before if the model expects 0..1" if have.name == "uint8" else ""
    note(f"input {value.name!r}: the data are {have.name} and become {want.name}{advice if want.kind == 'f' else ''}")
    return converted


def _nan_sample(array: Array, first: int) -> str:
    index = int(np.isnan(array).reshape(array.shape[0], -1).any(axis=1).argmax())
    return f", sample {first + index} of all"


def at_most(pieces: Iterable[Piece], rule: BatchRule, limit: int | None) -> Iterator[Piece]:
    """The first `limit` samples of `pieces`; no piece is asked for after them."""
    left = limit
    for piece in pieces:
        if left is None:
            yield piece
            continue
        rows = rule.rows(piece)
        yield replace(piece, arrays=rule.cut(piece.arrays, 0, left))
        left -= rows
        if left <= 0:
            return


def rebatch(pieces: Iterable[Piece], rule: BatchRule, size: int, note: Note) -> Generator[Feed, None, None]:
    """The same samples in the same order, in batches of `size`.

    With a free batch the last one may be smaller, and samples of another shape begin a batch of their own. With a fixed
    one the rest is dropped, and `note` is told. Raises DataError for samples that do not make up a fixed batch.
    """
    held: list[Feed] = []
    rows = 0
    full = False
    for piece in pieces:
        count, start = rule.rows(piece), 0
        if held and not _joinable(held[-1], piece.arrays, rule):
            if rule.fixed is not None:
                raise DataError(
                    f"{piece.where}: has another shape than the samples before it, and the model takes {size} at once"
                )
            yield _join(held, rule)
            held, rows = [], 0
        while start < count:
            take = min(size - rows, count - start)
            held.append(rule.cut(piece.arrays, start, start + take))
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


def joined(feeds: Sequence[Mapping[str, Array]], rule: BatchRule, size: int) -> list[Feed]:
    """Samples of `BatchRule.sample` as feeds of up to `size` of them; as they are where the model has no free batch."""
    if rule.fixed is not None or not rule.batched | rule.loose:
        return [dict(feed) for feed in feeds]
    return list(rebatch((Piece(where="a sample", arrays=dict(feed)) for feed in feeds), rule, size, lambda _: None))


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
