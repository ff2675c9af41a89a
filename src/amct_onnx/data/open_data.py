"""Calibration data in whatever form the user has them become feeds of a model: `open_data`."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from amct_onnx.data.arrays import SampleArray, is_array, open_array, to_array
from amct_onnx.data.batches import (
    BatchRule,
    Chunk,
    Note,
    check_rows,
    default_batch,
    dropped_text,
    first_chunks,
    quiet,
    rebatch,
    too_few_text,
)
from amct_onnx.data.chunk_files import ChunkFiles, PartFiles, chunks_of_parts
from amct_onnx.data.data_source import DataSource
from amct_onnx.data.feed_parts import ArrayFeeds, FeedParts, file_feeds, readable
from amct_onnx.data.fit_to_model import shapes_agree
from amct_onnx.data.images import ImageArray, classes_of
from amct_onnx.data.items import named_items
from amct_onnx.data.open_paths import DataOpener, OpenedData, is_iterable, is_paths, length_of
from amct_onnx.data.opening import (
    MOST_AT_ONCE,
    Opening,
    checked_chunks,
    parted,
    read_whole,
    tried_on_arrays,
    tried_on_chunks,
    usual_batch,
)
from amct_onnx.data.options import DataOptions
from amct_onnx.data.poor_data import sorted_by_class
from amct_onnx.data.sample_axis import Network
from amct_onnx.data.skipped_samples import SkippedTally, nothing_left
from amct_onnx.errors import ArgumentError, ArgumentTypeError, DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.graph.outputs import Purpose
from amct_onnx.numerics.arrays import Feed
from amct_onnx.values.skipped_data import NOTHING_SKIPPED
from amct_onnx.words import given, named

_FORMS = (
    "a folder of images, .npy, .npz, .bin, .tar or .parquet files, such a file, an array, a dict of these or of "
    "iterables of arrays by input, an iterable of arrays, tuples or dicts, a torch DataLoader or a "
    "CalibrationDataReader"
)


def open_data(
    data: object,
    inputs: Sequence[ModelInput],
    options: DataOptions,
    network: Network | None = None,
    purpose: Purpose | None = None,
    announce: Note = quiet,
) -> DataSource:
    """The calibration data of a model with these inputs. Nothing is read as a whole.

    `data` is one of these:
    - a folder of images, or of a folder of images for each class;
    - a folder of .npy or .npz files, or of files without a header (.bin); each file is for one run;
    - a .npy or .npz file;
    - tar files of images or .npy files as WebDataset writes them, or parquet files with images: a folder or a list of
      them, or a pattern as "shard-{000000..000099}.tar";
    - a URL of one of these that fsspec can open, as "s3://bucket/folder";
    - an array [N, ...], or a tensor of torch;
    - an iterable of arrays, of tuples in the order of the inputs or of dicts, such as a torch DataLoader;
    - a dict that gives each input one of these: a path, an array [N, ...], or an iterable of arrays;
    - an ONNX Runtime CalibrationDataReader.

    The number of axes tells what an array is. One of an iterable that has as many as the input of the model is what the
    input takes in a run; with an axis less it is a sample without the axis of the batch. An array in the place of an
    iterable is one of samples along axis 0; with an axis more it is one of runs.

    purpose: what the network is likely to be, which tells how images are prepared where the options do not say it.
    announce: is told of each assumption when it is made.
    network: tries whether axis 0 of the inputs is a batch, as their shapes say; without it the shapes are believed. If
    it is not, each feed is one sample, and `rule` says why.

    Raises ArgumentError or ArgumentTypeError for options and for data of another kind. Raises DataError for data that
    are missing or do not fit, if the first batch or the headers of files show it; iterating finds the others.
    """
    options.check_names(inputs)
    if not inputs:
        raise DataError("the model has no inputs, it cannot be calibrated")
    notes: dict[str, None] = {}

    def note(text: str) -> None:
        if text not in notes:
            notes[text] = None
            announce(text)

    shapes = options.shapes or {}
    tally = SkippedTally() if options.on_bad_data == "skip" else None
    opener = DataOpener(
        inputs=tuple(_refined(value, shapes.get(value.name)) for value in inputs),
        options=options,
        note=note,
        purpose=purpose,
        lost=None if tally is None else tally.add,
    )
    opened = _open(data, opener)
    lost = NOTHING_SKIPPED if tally is None else tally.value
    for array in opened.arrays.values():
        if not array.shape[0] and lost:
            raise nothing_left(lost)
        if not array.shape[0]:
            raise DataError(f"{array.where}: is empty, its shape is {list(array.shape)}; give at least one sample")
    images = [isinstance(array, ImageArray) for array in opened.arrays.values()]
    if options.images is not None and not any([*images, *(part.are_images for part in opened.parts.values())]):
        raise ArgumentError(
            f"{named('images')} is for folders of images, and the data are of another kind; leave it out"
        )
    if options.dtypes and not any(parts.raw for parts in opened.parts.values()):
        raise ArgumentError(f"{named('dtypes')} is for .bin files, and the data are of another kind; leave it out")
    rule = BatchRule.of(opener.inputs)
    if rule.fixed is not None and options.batch_size not in (None, rule.fixed):
        opener.note(f"the model fixes the batch at {rule.fixed}, {given('batch_size', options.batch_size)} is not used")
    work = Opening(opener=opener, declared=rule, network=network, notes=notes, tally=tally, lost=lost)
    try:
        return (
            _from_chunks(opened, work)
            if opened.items is not None or opened.archives is not None or opened.parts
            else _from_arrays(opened.arrays, work)
        )
    finally:
        if network is not None:
            network.close()


def _refined(value: ModelInput, shape: Sequence[int] | None) -> ModelInput:
    """The input, with the sizes of the user where the model leaves them open. Raises ArgumentError."""
    if shape is None or value.shape is None:
        return value if shape is None else replace(value, shape=tuple(None if dim == -1 else dim for dim in shape))
    missing = len(value.shape) - len(shape)  # without the batch: files of one sample each
    fixed = value.shape[missing:] if missing in (0, 1) else None
    if fixed is None or any(-1 != dim != known for dim, known in zip(shape, fixed, strict=True) if known is not None):
        text = ["?" if dim is None else dim for dim in value.shape]
        raise ArgumentError(f"{named('shapes')}: {value.name!r} has the shape {list(shape)}, the model takes {text}")
    merged = tuple(known if known is not None or dim == -1 else dim for dim, known in zip(shape, fixed, strict=True))
    head = value.shape[:1]  # a batch that the model leaves open stays open: "1,3,320,320" is about the size
    return replace(value, shape=(*head, *merged[1 - missing :]))


def _open(data: object, opener: DataOpener) -> OpenedData:
    if isinstance(data, (str, os.PathLike)):
        return opener.path(data)
    if callable(getattr(data, "get_next", None)):
        return OpenedData(items=_until_none(data), count=length_of(data))
    if isinstance(data, Mapping):
        return opener.mapping(data)
    if is_array(data):
        return opener.by_input({opener.only("an array").name: open_array(to_array(data, "data"), "data")})
    if is_paths(data):
        return opener.paths(data)
    if not is_iterable(data):
        raise ArgumentTypeError(f"data: {type(data).__name__} cannot be read, give {_FORMS}")
    return OpenedData(items=((f"feed {index}", item) for index, item in enumerate(data)), count=length_of(data))


def _until_none(reader: Any) -> Iterator[tuple[str, object]]:
    for index in itertools.count():
        item = reader.get_next()
        if item is None:
            return
        yield f"feed {index}", item


def _from_arrays(arrays: Mapping[str, SampleArray], work: Opening) -> DataSource:
    """Feeds from arrays, whose sizes are known: they are cut into batches as they are read."""
    opener, options = work.opener, work.opener.options
    opener.check_complete(arrays)
    where = next(iter(arrays.values())).where if len(arrays) == 1 else "data"
    rule = work.declared if work.network is None else tried_on_arrays(arrays, work, work.network, where)
    if rule.whole:
        size = options.batch_size if work.declared.batched else None
        everything = sum(math.prod(array.shape) for array in arrays.values())
        cut, whole = parted(arrays, work.declared if size or everything > MOST_AT_ONCE else rule, opener)
        if not cut:
            if work.declared.batched:
                opener.note(f"the array is one feed, and {named('batch_size')} would cut it into several")
            fitted = work.fit(iter([Chunk(where=where, arrays=whole)]))
            return work.source(_peeked(chunk.arrays for chunk in fitted), rule, 1)
        rows = check_rows({name: array.shape[0] for name, array in cut.items()}, where)
        size = size or usual_batch(cut)
        total = min(-(-rows // size), options.limit or rows)
    else:
        cut, whole = parted(arrays, rule, opener)
        rows, size = _counts(cut, rule, opener)
        total = -(-rows // size)
        if not cut:
            feeds = rebatch(work.fit(iter([Chunk(where=where, arrays=whole)])), rule, size, opener.note)
            return work.source(_peeked(feeds), rule, total)
    parts = ArrayFeeds(
        total=total,
        inputs=opener.inputs,
        declared=work.declared,
        rule=rule,
        skips=work.skips,
        lost=work.lost,
        cut=cut,
        whole=whole,
        size=size,
        rows=rows,
        where=where,
    )
    made = parts.read(0, total, opener.note, None if work.tally is None else work.tally.add)
    images = [array for array in cut.values() if isinstance(array, ImageArray)]
    order = next((text for array in images if (text := sorted_by_class(classes_of(array.encoded)))), "")
    return work.source(
        made if images else _peeked(made, work.tally), rule, total, order, lambda: parts if parts.in_files else None
    )


def _counts(cut: Mapping[str, SampleArray], rule: BatchRule, opener: DataOpener) -> tuple[int, int]:
    """The number of samples that are used, and of samples in a batch."""
    options = opener.options
    rows = check_rows({name: array.shape[0] for name, array in cut.items()}, "data")
    rows = min(rows, options.limit or rows)
    size = rule.fixed or options.batch_size or usual_batch(cut)
    if rule.fixed is not None and cut and rows % size:
        if rows < size:
            raise DataError(too_few_text(rows, size))
        opener.note(dropped_text(rows % size, size))
        rows -= rows % size
    return rows, size


def _from_chunks(opened: OpenedData, work: Opening) -> DataSource:
    """Feeds from files or items that hold batches or samples of their own."""
    opener, options, declared = work.opener, work.opener.options, work.declared
    files: ChunkFiles | None = opened.archives
    chunks: Iterator[Chunk | DataError]
    if opened.items is not None:
        chunks = named_items(opened.items, opener.inputs, options, opener.note)
    elif files is not None:
        chunks = files.read(0, len(files), opener.note)
    else:
        opener.check_complete({**opened.arrays, **opened.parts})
        whole = _same_for_all(opened.arrays, declared)
        chunks = chunks_of_parts({name: part.arrays for name, part in opened.parts.items()}, whole)
        found = {name: part.files for name, part in opened.parts.items() if part.files is not None}
        files = PartFiles(parts=found, whole=whole) if len(found) == len(opened.parts) else None
    sound = readable(chunks, work.tally)
    head = list(itertools.islice(sound, 1))
    joined_size = _joined_size(head, opener.inputs, declared)
    fitted = work.fit(itertools.chain(head, sound))
    read, rule = tried_on_chunks(fitted, work)
    checked = checked_chunks(itertools.chain(read, fitted), rule, work)
    limited = first_chunks(checked, rule, options.limit)
    size = rule.fixed or options.batch_size or joined_size
    if not rule.batched:
        size = None

    def parts() -> FeedParts | None:
        if files is None:
            return None
        return file_feeds(files, opener.inputs, declared, rule, size, options.limit, skips=work.skips, lost=work.lost)

    if work.tally is not None and (numbered := parts()) is not None:
        work.tally.value = numbered.lost
        feeds = numbered.read(0, numbered.total, opener.note, work.tally.add)
        return work.source(_peeked(feeds, work.tally), rule, numbered.total, parts=lambda: numbered)
    if size is None:  # the batches stay as they are
        total = opened.count if options.limit is None else None
        return work.source(_peeked((chunk.arrays for chunk in limited), work.tally), rule, total, parts=parts)
    feeds = rebatch(limited, rule, size, opener.note)
    return work.source(_peeked(feeds, work.tally), rule, None, parts=parts)


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
    """The inputs beside parts of other inputs: their arrays are the same in each feed. Raises DataError."""
    for name, array in arrays.items():
        if name in rule.batched:
            text = f"is one array for input {name!r}, other inputs have a folder of files or an iterable of arrays"
            raise DataError(f"{array.where}: {text}; give all alike")
    return {name: read_whole(array) for name, array in arrays.items()}


def _peeked(feeds: Iterator[Feed], tally: SkippedTally | None = None) -> Iterator[Feed]:
    """The same feeds. The first one is made now, so that data that do not fit are found before anything runs."""
    first = next(feeds, None)
    if first is None and tally is not None and tally.value:
        raise nothing_left(tally.value)
    if first is None:
        raise DataError("the data are empty, give at least one sample")
    return itertools.chain((first,), feeds)
