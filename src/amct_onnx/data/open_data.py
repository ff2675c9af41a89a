"""Calibration data in whatever form the user has them become feeds of a model: `open_data`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from amct_onnx.data.arrays import SampleArray, is_array, open_array, to_array
from amct_onnx.data.batches import (
    BatchRule,
    Chunk,
    check_rows,
    default_batch,
    dropped_text,
    first_chunks,
    rebatch,
    too_few_text,
)
from amct_onnx.data.fit_to_model import fit_chunks, shapes_agree
from amct_onnx.data.images import ImageArray
from amct_onnx.data.items import named_items
from amct_onnx.data.open_paths import DataOpener, InputFiles, OpenedData, is_paths
from amct_onnx.data.options import DataOptions
from amct_onnx.data.read_ahead import read_ahead
from amct_onnx.errors import ArgumentError, ArgumentTypeError, DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Array, Feed

_AHEAD = 2  # batches of images that are decoded before somebody asks for them
_FORMS = (
    "a folder of images, .npy, .npz or .bin files, such a file, an array, a dict {input: array or path}, an iterable "
    "of arrays, tuples or dicts, a torch DataLoader or a CalibrationDataReader"
)


class DataSource:
    """Feeds `{input: array}` in the types and shapes of a model. It can be iterated over once.

    `total` is the number of feeds, None if only the end of the data shows it.
    """

    def __init__(self, feeds: Iterator[Feed], *, total: int | None, notes: dict[str, None]) -> None:
        self._feeds: Iterator[Feed] | None = feeds
        self.total = total
        self._notes = notes

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed or changed because the user did not say it, a sentence each. Iterating may add to them."""
        return tuple(self._notes)

    def __iter__(self) -> Iterator[Feed]:
        """The feeds. Raises DataError, with the file or the number of the sample, for data that do not fit."""
        feeds, self._feeds = self._feeds, None
        if feeds is None:
            raise DataError("the calibration data were read already, open them again for a second pass")
        return feeds


def open_data(data: object, inputs: Sequence[ModelInput], options: DataOptions) -> DataSource:
    """The calibration data of a model with these inputs. Nothing is read as a whole.

    `data` is one of these:
    - a folder of images, or of a folder of images for each class;
    - a folder of .npy or .npz files, or of files without a header (.bin); each file is a batch;
    - a .npy or .npz file;
    - an array [N, ...], or a tensor of torch;
    - a dict {input: one of these};
    - an iterable of arrays, of tuples in the order of the inputs or of dicts, such as a torch DataLoader;
    - an ONNX Runtime CalibrationDataReader.

    Raises ArgumentError or ArgumentTypeError for options and for data of another kind. Raises DataError for data that
    are missing or do not fit, if the first batch or the headers of files show it; iterating finds the others.
    """
    options.check_names(inputs)
    if not inputs:
        raise DataError("the model has no inputs, it cannot be calibrated")
    notes: dict[str, None] = {}
    shapes = options.shapes or {}
    opener = DataOpener(
        inputs=tuple(_refined(value, shapes.get(value.name)) for value in inputs),
        options=options,
        note=notes.setdefault,
    )
    opened = _open(data, opener)
    for array in opened.arrays.values():
        if 0 in array.shape:
            raise DataError(f"{array.where}: is empty, its shape is {list(array.shape)}; give at least one sample")
    if options.images is not None and not any(isinstance(array, ImageArray) for array in opened.arrays.values()):
        raise ArgumentError("images= is for folders of images, and the data are of another kind; leave it out")
    if options.dtypes and not any(files.raw for files in opened.files.values()):
        raise ArgumentError("dtypes= is for .bin files, and the data are of another kind; leave it out")
    rule = BatchRule.of(opener.inputs)
    if rule.fixed is not None and options.batch_size not in (None, rule.fixed):
        opener.note(f"the model fixes the batch at {rule.fixed}, a batch_size of {options.batch_size} is not used")
    if opened.items is None and not opened.files:
        return _from_arrays(opened.arrays, opener, rule, notes)
    return _from_chunks(opened, opener, rule, notes)


def _refined(value: ModelInput, shape: Sequence[int] | None) -> ModelInput:
    """The input, with the sizes of the user where the model leaves them open. Raises ArgumentError."""
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


def _open(data: object, opener: DataOpener) -> OpenedData:
    if isinstance(data, (str, os.PathLike)):
        return opener.path(data)
    if callable(getattr(data, "get_next", None)):
        return OpenedData(items=_until_none(data), count=_length(data))
    if isinstance(data, Mapping):
        return opener.mapping(data)
    if is_array(data):
        return OpenedData(arrays={opener.only("an array").name: open_array(to_array(data, "data"), "data")})
    if is_paths(data):
        return opener.paths(data)
    try:
        iterator = None if isinstance(data, (bytes, bytearray, memoryview)) else iter(data)  # type: ignore[call-overload]
    except TypeError:
        iterator = None
    if iterator is None:
        raise ArgumentTypeError(f"data: {type(data).__name__} cannot be read, give {_FORMS}")
    return OpenedData(items=((f"feed {index}", item) for index, item in enumerate(iterator)), count=_length(data))


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


def _from_arrays(
    arrays: Mapping[str, SampleArray], opener: DataOpener, rule: BatchRule, notes: dict[str, None]
) -> DataSource:
    """Feeds from arrays, whose sizes are known: they are cut into batches as they are read."""
    opener.check_complete(arrays)
    whole, cut = {}, {}
    batched = rule.batched_in({name: array.shape[0] for name, array in arrays.items()})
    shapes = {value.name: value.shape for value in opener.inputs}
    for name, array in arrays.items():
        shape = shapes[name]
        if name not in batched or (shape is not None and shapes_agree(array.shape, shape[1:])):
            whole[name] = _whole(array)
        else:
            cut[name] = array
    rows, size = _counts(cut, rule, opener)
    where = next(iter(arrays.values())).where if len(arrays) == 1 else "data"
    chunks = _cut(cut, whole, size, rows, where) if cut else iter([Chunk(where=where, arrays=whole)])
    feeds = rebatch(fit_chunks(chunks, opener.inputs, rule, opener.note), rule, size, opener.note)
    images = any(isinstance(array, ImageArray) for array in cut.values())
    checked = read_ahead(feeds, _AHEAD) if images else _peeked(feeds)
    return DataSource(checked, total=-(-rows // size), notes=notes)


def _whole(array: SampleArray) -> Array:
    return next(array.blocks(array.shape[0], array.shape[0]))


def _counts(cut: Mapping[str, SampleArray], rule: BatchRule, opener: DataOpener) -> tuple[int, int]:
    """The number of samples that are used, and of samples in a batch."""
    options = opener.options
    rows = check_rows({name: array.shape[0] for name, array in cut.items()}, "data")
    rows = min(rows, options.limit or rows)
    size = rule.fixed or options.batch_size or default_batch([array.shape[1:] for array in cut.values()])
    if rule.fixed is not None and cut and rows % size:
        if rows < size:
            raise DataError(too_few_text(rows, size))
        opener.note(dropped_text(rows % size, size))
        rows -= rows % size
    return rows, size


def _cut(arrays: Mapping[str, SampleArray], whole: Feed, size: int, rows: int, where: str) -> Iterator[Chunk]:
    blocks = {name: array.blocks(size, rows) for name, array in arrays.items()}
    for start in range(0, rows, size):
        last = min(start + size, rows)
        places = {name: array.label(start, last) for name, array in arrays.items()}
        parts = {name: next(block) for name, block in blocks.items()}
        yield Chunk(where=where, arrays={**parts, **whole}, places=places)


def _from_chunks(opened: OpenedData, opener: DataOpener, rule: BatchRule, notes: dict[str, None]) -> DataSource:
    """Feeds from files or items that hold batches or samples of their own."""
    options = opener.options
    if opened.items is not None:
        chunks = named_items(opened.items, opener.inputs, options, opener.note)
    else:
        opener.check_complete({**opened.arrays, **opened.files})
        chunks = _chunks_of_files(opened.files, _same_for_all(opened.arrays, rule))
    head = list(itertools.islice(chunks, 1))
    size = rule.fixed or options.batch_size or _joined_size(head, opener.inputs, rule)
    fitted = fit_chunks(itertools.chain(head, chunks), opener.inputs, rule, opener.note)
    limited = first_chunks(fitted, rule, options.limit)
    if size is None or not rule.batched:  # the batches stay as they are
        total = opened.count if options.limit is None else None
        return DataSource(_peeked(chunk.arrays for chunk in limited), total=total, notes=notes)
    return DataSource(_peeked(rebatch(limited, rule, size, opener.note)), total=None, notes=notes)


def _joined_size(head: Sequence[Chunk], inputs: Sequence[ModelInput], rule: BatchRule) -> int | None:
    """The samples in a batch if `head` shows that the data are single samples, None if they are batches already."""
    shapes = {value.name: value.shape for value in inputs if value.name in rule.batched and value.shape is not None}
    samples = [
        array.shape
        for chunk in head
        for name, array in chunk.arrays.items()
        if name in shapes and shapes_agree(array.shape, shapes[name][1:])
    ]
    return default_batch(samples) if samples else None


def _same_for_all(arrays: Mapping[str, SampleArray], rule: BatchRule) -> Feed:
    """The inputs beside files of other inputs: their arrays are the same in each feed. Raises DataError."""
    for name, array in arrays.items():
        if name in rule.batched:
            raise DataError(
                f"{array.where}: is one array for input {name!r}, other inputs have a folder of files; give all alike"
            )
    return {name: _whole(array) for name, array in arrays.items()}


def _chunks_of_files(files: Mapping[str, InputFiles], whole: Feed) -> Iterator[Chunk]:
    for paths in zip(*(found.paths for found in files.values()), strict=True):
        by_input = dict(zip(files, paths, strict=True))
        places = {name: os.fspath(path) for name, path in by_input.items()}
        arrays = {name: files[name].load(path) for name, path in by_input.items()}
        yield Chunk(where=os.fspath(paths[0]), arrays={**arrays, **whole}, places=places)


def _peeked(feeds: Iterator[Feed]) -> Iterator[Feed]:
    """The same feeds. The first one is made now, so that data that do not fit are found before anything runs."""
    first = next(feeds, None)
    if first is None:
        raise DataError("the data are empty, give at least one sample")
    return itertools.chain((first,), feeds)
