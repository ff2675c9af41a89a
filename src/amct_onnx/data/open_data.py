"""Calibration data in whatever form they come, as feeds of ONNX Runtime: `open_data`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from amct_onnx.data.arrays import Table, open_array
from amct_onnx.data.batches import (
    Array,
    BatchRule,
    Feed,
    Piece,
    agrees,
    at_most,
    check_rows,
    default_batch,
    dropped_text,
    fitted,
    rebatch,
    too_few_text,
)
from amct_onnx.data.images import ImageOptions, ImageTable
from amct_onnx.data.items import is_array, named_items, to_array
from amct_onnx.data.paths import Files, Form, Opener, close_to, is_paths
from amct_onnx.data.read_ahead import read_ahead
from amct_onnx.errors import ArgumentError, ArgumentTypeError, DataError
from amct_onnx.graph.inputs import ModelInput

_AHEAD = 2  # batches of images that are decoded before they are asked for
_FORMS = (
    "a folder of images, .npy, .npz or .bin files, such a file, an array, a dict {input: array or path}, an iterable "
    "of arrays, tuples or dicts, a torch DataLoader or a CalibrationDataReader"
)


class DataSource:
    """Feeds `{input: array}` in the types and shapes of a model. It can be iterated over once.

    `total` is the number of feeds and `samples` that of samples, None where only the end of the data shows it.
    """

    def __init__(
        self, feeds: Iterator[Feed], *, total: int | None, samples: int | None, notes: dict[str, None]
    ) -> None:
        self._feeds: Iterator[Feed] | None = feeds
        self.total = total
        self.samples = samples
        self._notes = notes

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed or changed without being told, a sentence each; iterating may add to them."""
        return tuple(self._notes)

    def __iter__(self) -> Iterator[Feed]:
        """Raises DataError, with the file or the number of the sample, where the data do not fit."""
        feeds, self._feeds = self._feeds, None
        if feeds is None:
            raise DataError("the calibration data were read already, open them again for a second pass")
        return feeds


def open_data(
    data: object,
    inputs: Sequence[ModelInput],
    *,
    images: ImageOptions | str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> DataSource:
    """The calibration data of a model with these inputs; nothing is read as a whole.

    `data` is a folder of images (also one of a folder for each class), of .npy or .npz files, or of files without a
    header (.bin), each a batch; a .npy or .npz file; an array [N, ...]; a dict {input: one of these}; an iterable of
    arrays, of tuples in the order of the inputs or of dicts; tensors of torch do as well as arrays, so a DataLoader
    does; an ONNX Runtime CalibrationDataReader.

    images: how images are prepared, `ImageOptions` or the name of a preset; None guesses and says so.
    batch_size: samples in a feed. None: batches of an iterable and files with a batch stay as they are; single samples
        are joined, and arrays cut, to batches of a few. A batch that the model fixes is obeyed in any case.
    limit: at most so many samples, the first ones; of a folder of images, ones at equal distances.
    shapes: sizes that the model leaves open, by input; -1 stays open. With .bin files, the shape of a file.
    dtypes: the types of .bin files, by input, if they are not those of the model.
    names: the names in the data of inputs that have another name in the model, e.g. {"input_ids": "ids_a"}.

    Raises ArgumentError or ArgumentTypeError for arguments; DataError for data that are missing or do not fit, here
    where the first batch or the headers of files show it.
    """
    for what, number in (("batch_size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise ArgumentError(f"{what}={number} is no number of samples, give 1 or more")
    for argument, keys in (("shapes", shapes), ("dtypes", dtypes), ("names", names)):
        for key in keys or ():
            if key not in {value.name for value in inputs}:
                raise ArgumentError(
                    f"{argument}: the model has no input {key!r}, {close_to(key, [v.name for v in inputs])}"
                )
    if not inputs:
        raise DataError("the model has no inputs, it cannot be calibrated")
    notes: dict[str, None] = {}
    opener = Opener(
        inputs=tuple(_refined(value, (shapes or {}).get(value.name)) for value in inputs),
        images=images,
        shapes=shapes or {},
        dtypes=dtypes or {},
        names=names or {},
        limit=limit,
        note=notes.setdefault,
    )
    form = _open(data, opener)
    for table in form.tables.values():
        if 0 in table.shape:
            raise DataError(f"{table.where}: is empty, its shape is {list(table.shape)}; give at least one sample")
    if images is not None and not any(isinstance(table, ImageTable) for table in form.tables.values()):
        raise ArgumentError("images= is for folders of images, and the data are of another kind; leave it out")
    if dtypes and not opener.used_dtypes:
        raise ArgumentError("dtypes= is for .bin files, and the data are of another kind; leave it out")
    rule = BatchRule.of(opener.inputs)
    if rule.fixed is not None and batch_size not in (None, rule.fixed):
        opener.note(f"the model fixes the batch at {rule.fixed}, a batch_size of {batch_size} is not used")
    if form.items is None and not form.files:
        return _from_tables(form.tables, opener, rule, batch_size, notes)
    return _from_pieces(form, opener, rule, batch_size, notes)


def _refined(value: ModelInput, shape: Sequence[int] | None) -> ModelInput:
    """The input with sizes from the user where the model has none."""
    if shape is None or value.shape is None:
        return value if shape is None else replace(value, shape=tuple(None if dim == -1 else dim for dim in shape))
    missing = len(value.shape) - len(shape)  # without the batch: files of one sample each
    fixed = value.shape[missing:] if missing in (0, 1) else None
    if fixed is None or any(-1 != dim != known for dim, known in zip(shape, fixed, strict=True) if known is not None):
        text = ["?" if dim is None else dim for dim in value.shape]
        raise ArgumentError(f"shapes: {value.name!r} has the shape {list(shape)}, the model takes {text}")
    merged = tuple(known if known is not None or dim == -1 else dim for dim, known in zip(shape, fixed, strict=True))
    head = value.shape[:1]  # a batch that the model leaves open stays open: "1,3,320,320" is about the size
    return replace(value, shape=(*head, *merged[1 - missing :]))


def _open(data: object, opener: Opener) -> Form:
    if isinstance(data, (str, os.PathLike)):
        return opener.path(data)
    if callable(getattr(data, "get_next", None)):
        return Form(items=_until_none(data), count=_length(data))
    if isinstance(data, Mapping):
        return opener.mapping(data)
    if is_array(data):
        return Form(tables={opener.only("an array").name: open_array(to_array(data, "data"), "data")})
    if is_paths(data):
        return opener.paths(data)
    try:
        iterator = None if isinstance(data, (bytes, bytearray, memoryview)) else iter(data)  # type: ignore[call-overload]
    except TypeError:
        iterator = None
    if iterator is None:
        raise ArgumentTypeError(f"data: {type(data).__name__} cannot be read, give {_FORMS}")
    return Form(items=((f"feed {index}", item) for index, item in enumerate(iterator)), count=_length(data))


def _until_none(reader: Any) -> Iterator[tuple[str, object]]:
    for index in itertools.count():
        item = reader.get_next()
        if item is None:
            return
        yield f"feed {index}", item


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except Exception:  # a DataLoader of an IterableDataset raises what its dataset raises
        return None


def _from_tables(
    tables: Mapping[str, Table], opener: Opener, rule: BatchRule, batch_size: int | None, notes: dict[str, None]
) -> DataSource:
    """Arrays whose sizes are known: cut into batches as they are read."""
    opener.check_complete(tables)
    whole, cut = {}, {}
    batched = rule.batched_in({name: table.shape[0] for name, table in tables.items()})
    for value in opener.inputs:
        table = tables.get(value.name)
        if table is None:
            continue
        one_sample = value.shape is not None and agrees(table.shape, value.shape[1:])
        if value.name not in batched or one_sample:
            whole[value.name] = _whole(table)
        else:
            cut[value.name] = table
    rows, size = _counts(cut, rule, batch_size, opener)
    where = next(iter(tables.values())).where if len(tables) == 1 else "data"
    pieces = _cut(cut, whole, size, rows, where) if cut else iter([Piece(where=where, arrays=whole)])
    feeds = rebatch(fitted(pieces, opener.inputs, rule, opener.note), rule, size, opener.note)
    if any(isinstance(table, ImageTable) for table in cut.values()):
        ahead = read_ahead(feeds, _AHEAD)
        return DataSource(ahead, total=-(-rows // size), samples=rows, notes=notes)
    return DataSource(_peeked(feeds), total=-(-rows // size), samples=rows, notes=notes)


def _whole(table: Table) -> Array:
    return next(table.blocks(table.shape[0], table.shape[0]))


def _counts(cut: Mapping[str, Table], rule: BatchRule, batch_size: int | None, opener: Opener) -> tuple[int, int]:
    """Samples that are used, and samples in a batch."""
    rows = check_rows({name: table.shape[0] for name, table in cut.items()}, "data")
    rows = min(rows, opener.limit or rows)
    size = rule.fixed or batch_size or default_batch([table.shape[1:] for table in cut.values()])
    if rule.fixed is not None and cut and rows % size:
        if rows < size:
            raise DataError(too_few_text(rows, size))
        opener.note(dropped_text(rows % size, size))
        rows -= rows % size
    return rows, size


def _cut(tables: Mapping[str, Table], whole: Feed, size: int, rows: int, where: str) -> Iterator[Piece]:
    blocks = {name: table.blocks(size, rows) for name, table in tables.items()}
    for start in range(0, rows, size):
        last = min(start + size, rows)
        places = {name: table.label(start, last) for name, table in tables.items()}
        arrays = {name: next(parts) for name, parts in blocks.items()}
        yield Piece(where=where, arrays={**arrays, **whole}, places=places)


def _from_pieces(
    form: Form, opener: Opener, rule: BatchRule, batch_size: int | None, notes: dict[str, None]
) -> DataSource:
    """Data that come in pieces of their own."""
    if form.items is not None:
        pieces = named_items(form.items, opener.inputs, opener.names, opener.note)
    else:
        opener.check_complete({**form.tables, **form.files})
        pieces = _file_pieces(form.files, _same_for_all(form.tables, rule))
    head = list(itertools.islice(pieces, 1))
    size = rule.fixed or batch_size or _joined_size(head, opener.inputs, rule)
    pieces = itertools.chain(head, pieces)
    limited = at_most(fitted(pieces, opener.inputs, rule, opener.note), rule, opener.limit)
    as_they_are = size is None or not rule.batched
    feeds = (piece.arrays for piece in limited) if as_they_are else rebatch(limited, rule, size or 1, opener.note)
    total = form.count if as_they_are and opener.limit is None else None
    return DataSource(_peeked(feeds), total=total, samples=None, notes=notes)


def _joined_size(head: Sequence[Piece], inputs: Sequence[ModelInput], rule: BatchRule) -> int | None:
    """The size of a batch if the data are single samples, None if they are batches already."""
    if not head:
        return None
    shapes = {value.name: value.shape for value in inputs if value.name in rule.batched and value.shape is not None}
    samples = [
        array.shape
        for name, array in head[0].arrays.items()
        if name in shapes and agrees(array.shape, (shapes[name] or ())[1:])
    ]
    return default_batch(samples) if samples else None


def _same_for_all(tables: Mapping[str, Table], rule: BatchRule) -> Feed:
    for name, table in tables.items():
        if name in rule.batched:
            raise DataError(
                f"{table.where}: is one array for input {name!r}, other inputs have a folder of files; give all alike"
            )
    return {name: _whole(table) for name, table in tables.items()}


def _file_pieces(files: Mapping[str, Files], whole: Feed) -> Iterator[Piece]:
    for paths in zip(*(column.paths for column in files.values()), strict=True):
        places = {name: os.fspath(path) for name, path in zip(files, paths, strict=True)}
        arrays = {name: files[name].load(path) for name, path in zip(files, paths, strict=True)}
        yield Piece(where=os.fspath(paths[0]), arrays={**arrays, **whole}, places=places)


def _peeked(feeds: Iterator[Feed]) -> Iterator[Feed]:
    """The same feeds; the first one is made now, so that data that do not fit are found before anything runs."""
    first = next(feeds, None)
    if first is None:
        raise DataError("the data are empty, give at least one sample")
    return itertools.chain((first,), feeds)
