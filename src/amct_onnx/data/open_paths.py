"""Opens the paths and arrays that a user gave as data, after finding out what they hold.

A path may be a file, a folder of files, or a folder of one folder for each input. Nothing is read as a whole.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from amct_onnx.data.array_files import ArrayFiles, ArrayRows, NpyFiles, RawFiles
from amct_onnx.data.arrays import (
    TEXTS,
    NpzArray,
    SampleArray,
    is_array,
    open_array,
    open_npy,
    open_npz,
    to_array,
)
from amct_onnx.data.batches import Note, fed_by_position
from amct_onnx.data.blobs import FileBlobs
from amct_onnx.data.chunk_files import ArchiveFiles
from amct_onnx.data.images import (
    IMAGE_SUFFIXES,
    ImageArray,
    classes_of,
    find_images,
    image_options,
    is_image,
    open_images,
)
from amct_onnx.data.input_texts import InputFolder, check_data_type
from amct_onnx.data.items import missing_text, note_unused, select_keys
from amct_onnx.data.open_shards import SHARDS, open_shards, shard_kind, shards_in
from amct_onnx.data.options import DataOptions
from amct_onnx.data.places import expanded, find_place, is_local, is_place
from amct_onnx.data.raw_folders import check_sizes, list_files
from amct_onnx.data.texts import TEXT_SUFFIX, open_texts
from amct_onnx.errors import ArgumentError, DataError
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.graph.outputs import Purpose
from amct_onnx.numerics.arrays import Array
from amct_onnx.values.skipped_data import SkippedData
from amct_onnx.words import either, given, given_for, named

_log = logging.getLogger("amct_onnx.Data")
_RAW = ".bin"  # numbers without a header
_KINDS = (".npy", ".npz", _RAW)
_READABLE = f"{', '.join(sorted(IMAGE_SUFFIXES))}, {', '.join(_KINDS)}, {', '.join(SHARDS)}"


@dataclass(frozen=True, kw_only=True)
class InputParts:
    """What one input gets, part by part: each is what it takes in a run, or a sample without the axis of the batch."""

    arrays: Iterator[tuple[str, Array | DataError]]
    """Each with its place for errors; they can be read once."""
    count: int | None
    """How many there are, None if only their end shows it."""
    files: ArrayFiles | None = None
    """The same by number, where they lie in files."""

    @staticmethod
    def of_files(files: ArrayFiles) -> InputParts:
        return InputParts(arrays=files.read(0, len(files)), count=len(files), files=files)

    @property
    def are_images(self) -> bool:
        return isinstance(self.files, ArrayRows) and isinstance(self.files.array, ImageArray)

    @property
    def raw(self) -> bool:
        """Whether they are files without a header, so that `DataOptions.dtypes` may say their type."""
        return isinstance(self.files, RawFiles)


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """Data whose form is known: arrays and parts by input, or items of an iterable that have yet to be named."""

    arrays: Mapping[str, SampleArray] = field(default_factory=dict)
    parts: Mapping[str, InputParts] = field(default_factory=dict)
    items: Iterable[tuple[str, object]] | None = None
    """Each with its place for errors."""
    archives: ArchiveFiles | None = None
    """.npz files with the inputs of a run each."""
    count: int | None = None
    """The number of parts or items, None if only their end shows it."""


@dataclass(frozen=True, kw_only=True)
class DataOpener:
    """Opens the data of a model with these inputs. Methods raise DataError.

    `note` is told what is assumed or left out.
    """

    inputs: tuple[ModelInput, ...]
    options: DataOptions
    note: Note
    purpose: Purpose | None = None
    lost: Callable[[SkippedData], None] | None = None
    """Is told of files of many samples that cannot be read, where these are skipped."""

    def only(self, what: str) -> ModelInput:
        """The input that data without names belong to. `what` names the data in the error of a model with several."""
        wanted = fed_by_position(self.inputs)
        if len(wanted) > 1:
            text = ", ".join(repr(value.name) for value in wanted)
            several = " ".join(f"--data {value.name}=PATH" for value in wanted)
            advice = either("give a dict of data by input", f"give {several}, or one .npz file")
            raise DataError(f"{what} is for a model of one input, this one takes {text}; {advice}")
        return wanted[0]

    def check_complete(self, given: Iterable[str]) -> None:
        """Raise DataError unless each input without a default value has data."""
        given = list(given)
        for value in self.inputs:
            if value.name not in given and not value.optional:
                raise DataError(f"the model needs input {value.name!r}, and no data are given for it")

    def path(self, path: str | os.PathLike[str]) -> OpenedData:
        """A folder, a file, or a pattern of files, for the whole model."""
        several = expanded(os.fspath(path))
        if len(several) > 1:
            return self.paths(several)
        place = find_place(several[0])
        if shards := shards_in(place):
            return self.by_input(self._shards(shards, fed_by_position(self.inputs)))
        if place.suffix.lower() == ".npz" and place.is_file():
            return self.by_input(self._archive(place))
        if place.suffix.lower() == TEXT_SUFFIX and place.is_file() and self._takes_texts():
            return self._texts(place)
        if not place.is_dir():
            return self.by_input({self.only(str(path)).name: place})
        wanted = fed_by_position(self.inputs)
        keys = {value.name: self.options.key(value.name) for value in wanted}
        for suffix in ("", ".npy"):
            parts = {name: place / f"{key}{suffix}" for name, key in keys.items()}
            if all(part.is_file() if suffix else part.is_dir() for part in parts.values()):
                return self.by_input(parts)
        kind, files = _array_files(place)
        if kind == ".npz":
            archives = ArchiveFiles(files=tuple(files), inputs=self.inputs, options=self.options)
            return OpenedData(archives=archives, count=len(files))
        return self.by_input({self.only(str(path)).name: place})

    def _takes_texts(self) -> bool:
        return self.options.tokenizer is not None or all(value.dtype.startswith("int") for value in self.inputs)

    def _texts(self, place: Path) -> OpenedData:
        if self.options.tokenizer is None:
            raise DataError(f"{place}: a text becomes tokens by {named('tokenizer')}, a tokenizer.json: give that too")
        if not is_local(place):
            raise DataError(f"{place}: a text is read from a file of this machine, copy it here")
        found = open_texts(place, self.options.tokenizer, self.inputs)
        return OpenedData(items=found, count=len(found))

    def _shards(self, files: Sequence[Path], inputs: Sequence[ModelInput]) -> dict[str, SampleArray | InputParts]:
        found = open_shards(files, inputs, self.options, self.note, self.purpose, self.lost)
        arrays = {name: samples for name, samples in found.items() if isinstance(samples, SampleArray)}
        if len(arrays) == len(found):
            return dict(arrays)
        alike = found | {name: ArrayRows(array=array, keep=False) for name, array in arrays.items()}
        return {name: InputParts.of_files(files) for name, files in alike.items() if isinstance(files, ArrayFiles)}

    def mapping(self, data: Mapping[Any, Any]) -> OpenedData:
        """Arrays or paths by input."""
        keys = select_keys(data, self.inputs, self.options, "data", self.note)
        return self.by_input({name: data[key] for name, key in keys.items()})

    def paths(self, data: Sequence[str | os.PathLike[str]]) -> OpenedData:
        """A list of images or of .npy or .bin files for one input, or a path for each input in their order."""
        places = _places(data)
        wanted = fed_by_position(self.inputs)
        if shard_kind(places):
            return self.by_input(self._shards(places, wanted))
        if len(wanted) == len(places) and (len(places) > 1 or places[0].is_dir()):
            return self.by_input({value.name: place for value, place in zip(wanted, places, strict=True)})
        return self.by_input({self.only("a list of files").name: places})

    def by_input(self, data: Mapping[str, object]) -> OpenedData:
        """Data of each input: an array, nested lists of numbers, an iterable of arrays, a path or a list of paths."""
        opened = {value: self._open(value, data[value.name]) for value in self.inputs if value.name in data}
        counts = {v.name: found.count for v, found in opened.items() if isinstance(found, InputParts) and found.count}
        if len(set(counts.values())) > 1:
            text = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
            raise DataError(f"the inputs have different numbers of files or arrays: {text}; each is for one run")
        count = next(iter(counts.values()), None)
        parts = {value.name: found for value, found in opened.items() if isinstance(found, InputParts)}
        arrays = {value: found for value, found in opened.items() if isinstance(found, SampleArray)}
        for value, array in arrays.items() if parts else ():
            if value.shape and value.shape[0] is None and array.shape[0] == count:
                parts[value.name] = _rows(array, keep=True)  # a row for each run
        left = {value.name: array for value, array in arrays.items() if value.name not in parts}
        return OpenedData(arrays=left, parts=parts, count=count)

    def _open(self, value: ModelInput, data: object) -> SampleArray | InputParts:
        if value.dtype == TEXTS and isinstance(data, (list, tuple)):
            data = to_array(data, f"data of input {value.name!r}", texts=True)
        found: SampleArray | InputParts
        if is_place(data):
            found = self._folder(value, data) if data.is_dir() else self._file(value, data)
        elif isinstance(data, (str, os.PathLike)):
            places = _places([data])
            found = self._open(value, places[0]) if len(places) == 1 else self._listed(value, places)
        elif is_paths(data):
            found = self._listed(value, _places(data))
        elif isinstance(data, list) and data and all(map(is_place, data)):
            found = self._listed(value, data)
        elif isinstance(data, (SampleArray, InputParts)):
            return data if isinstance(data, InputParts) else self._rows_of(value, data)
        else:
            found = self._array_or_arrays(value, data, f"data of input {value.name!r}")
        return found if isinstance(found, InputParts) else self._rows_of(value, found)

    def _rows_of(self, value: ModelInput, array: SampleArray) -> SampleArray | InputParts:
        """What each run gets of an array that has an axis more than the input; else the array."""
        if value.shape is None or len(array.shape) != len(value.shape) + 1 or (value.shape, array.shape) == ((), (1,)):
            return array
        return _rows(array, keep=False)

    def _array_or_arrays(self, value: ModelInput, data: object, where: str) -> SampleArray | InputParts:
        """An array, as nested lists of numbers are; or, of an iterable that is neither, an array for each run."""
        numbers = isinstance(data, (list, tuple)) and not any(map(is_array, data))
        if not numbers and not is_array(data) and is_iterable(data):
            places = ((f"{where}, number {number} of all", item) for number, item in enumerate(data))
            return InputParts(arrays=((place, to_array(item, place)) for place, item in places), count=length_of(data))
        array = to_array(data, where)
        return open_array(np.atleast_1d(array) if value.shape == () else array, where)

    def _listed(self, value: ModelInput, places: Sequence[Path]) -> SampleArray | InputParts:
        if shard_kind(places):
            return self._shards(places, [value])[value.name]
        if all(is_image(place) for place in places):
            return self._images(value, places, "data")
        kinds = {place.suffix.lower() for place in places}
        if len(kinds) == 1 and kinds <= {".npy", _RAW}:
            return self._file_list(value, places, kinds.pop())
        raise DataError(f"data: the list of files mixes kinds, or holds others than {_READABLE}")

    def _folder(self, value: ModelInput, place: Path) -> SampleArray | InputParts:
        if shards := shards_in(place):
            return self._shards(shards, [value])[value.name]
        kind, arrays = _array_files(place)
        if kind == ".npz":
            how = either("as the data of the model", "as --data without a name")
            raise DataError(f"{place}: a folder of .npz files holds all inputs, give it {how}")
        if kind is not None:
            if kind == ".npy" and len(arrays) == 1:  # all samples rather than one batch, which may be too large
                return open_npy(arrays[0], scalar=value.shape == ())
            return self._file_list(value, arrays, kind)
        files = find_images(place)
        if not files:
            raise DataError(f"{place}: the folder holds no data, put files into it: {_READABLE}")
        return self._images(value, self._spread(files), str(place))

    def _file(self, value: ModelInput, place: Path) -> SampleArray | InputParts:
        suffix = place.suffix.lower()
        if shard_kind([place]):
            return self._shards([place], [value])[value.name]
        if is_image(place):
            return self._images(value, [place], str(place))
        if suffix == ".npy":
            return open_npy(place, scalar=value.shape == ())
        if suffix == ".npz":
            return self._member(place, value, open_npz(place))
        if suffix == _RAW:
            return self._file_list(value, [place], suffix)
        raise DataError(f"{place}: data in such a file cannot be read, give one of {_READABLE}, or a folder")

    def _archive(self, place: Path) -> dict[str, SampleArray]:
        """The arrays of a .npz file by input."""
        members = open_npz(place)
        wanted = [v for v in self.inputs if not v.optional or self.options.key(v.name) in members]
        arrays = {value.name: self._member(place, value, members) for value in wanted}
        used = {array.member for array in arrays.values()}
        note_unused([name for name in members if name not in used], self.note)
        return dict(arrays)

    def _member(self, place: Path, value: ModelInput, members: Mapping[str, NpzArray]) -> NpzArray:
        """The array of an input in a .npz file. Its name does not matter if there is one array for one input."""
        key = self.options.key(value.name)
        if key in members:
            return members[key]
        if len(members) == len(fed_by_position(self.inputs)) == 1 and value.name not in (self.options.names or {}):
            return next(iter(members.values()))
        raise DataError(f"{place}: {missing_text(value.name, key, members)}")

    def _spread(self, files: Sequence[Path]) -> Sequence[Path]:
        """The files that `limit` leaves, at equal distances, since the order of paths is often that of classes."""
        limit = self.options.limit
        if limit is None or limit >= len(files):
            return files
        self.note(f"{limit} of {len(files)} images are used, at equal distances in the order of their paths")
        chosen = [files[index * len(files) // limit] for index in range(limit)]
        known, used = set(classes_of(files)), dict(zip(files, classes_of(files), strict=True))
        if len(known) > len(seen := {used[file] for file in chosen}):
            _log.warning("Images of %d of %d classes are used: raise %s.", len(seen), len(known), given("limit", limit))
        return chosen

    def _images(self, value: ModelInput, files: Sequence[Path], where: str) -> ImageArray:
        options = image_options(value, self.options.images, self.note, self.purpose)
        encoded = FileBlobs(files=tuple(files[: self.options.limit]))
        check = self.options.on_bad_data == "fail"
        return open_images(encoded, options, value.dtype or "float32", where, check=check)

    def _file_list(self, value: ModelInput, files: Sequence[Path], kind: str) -> InputParts:
        if kind != _RAW:
            return InputParts.of_files(NpyFiles(files=tuple(files)))
        if not all(map(is_local, files)):
            raise DataError(f"{files[0]}: files without a header are read from this machine, copy them here")
        dtype, shape = self._raw_type(value), self._raw_shape(value)
        mistakes = Mistakes(None)
        entry = InputFolder(name=value.name, shape=shape, dtype=dtype, folder=str(files[0].parent))
        check_sizes(entry, files, mistakes)
        mistakes.raise_any(DataError)
        return InputParts.of_files(RawFiles(files=tuple(files), dtype=dtype, dims=shape))

    def _raw_type(self, value: ModelInput) -> str:
        dtype = (self.options.dtypes or {}).get(value.name, value.dtype)
        if not dtype:
            raise ArgumentError(f"input {value.name!r}: the model does not say its type, give it in {named('dtypes')}")
        check_data_type(dtype)
        return dtype

    def _raw_shape(self, value: ModelInput) -> tuple[int, ...]:
        given = (self.options.shapes or {}).get(value.name)
        shape = given if given is not None else [-1 if dim is None else dim for dim in value.shape or (-1, -1)]
        if given is None and -1 not in shape:
            shape = [-1, *shape[1:]]  # a file may hold several of the model's batches
        if list(shape).count(-1) > 1:
            what = f"the model leaves more than one dimension open, {_RAW} files do not say them"
            raise DataError(
                f"input {value.name!r}: {what}; give them in {given_for('shapes', value.name)}, one may be -1"
            )
        return tuple(shape)


def is_paths(data: object) -> TypeGuard[Sequence[str | os.PathLike[str]]]:
    """Whether `data` is a list of paths."""
    return isinstance(data, (list, tuple)) and bool(data) and all(isinstance(p, (str, os.PathLike)) for p in data)


def is_iterable(data: object) -> TypeGuard[Iterable[object]]:
    """Whether `data` can be iterated over, and is no text, bytes or mapping."""
    return not isinstance(data, (str, bytes, bytearray, memoryview, Mapping)) and _has_iterator(data)


def _has_iterator(data: Any) -> bool:
    return hasattr(data, "__iter__") or hasattr(data, "__getitem__")


def length_of(data: Any) -> int | None:
    """The length of `data`, None if it does not tell."""
    try:
        return len(data)
    except Exception:  # a DataLoader of an IterableDataset raises what its dataset raises
        return None


def _rows(array: SampleArray, *, keep: bool) -> InputParts:
    """What each run gets of an array that has one more axis than the input; or, to `keep` it, one row of the batch."""
    rows = ArrayRows(array=array, keep=keep)
    return InputParts(arrays=rows.read(0, len(rows)), count=len(rows), files=rows if array.in_files else None)


def _places(data: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The places of a list of paths, URLs and patterns of these."""
    return [find_place(path) for path in itertools.chain.from_iterable(expanded(os.fspath(path)) for path in data)]


def _array_files(folder: Path) -> tuple[str | None, list[Path]]:
    """The suffix of the files of arrays in a folder, None if there are none, and these files.

    Raises DataError for several kinds.
    """
    files = list_files(folder)
    kinds = {file.suffix.lower() for file in files} & {*_KINDS, *IMAGE_SUFFIXES}
    arrays = sorted(kinds & set(_KINDS))
    if len(arrays) > 1 or (arrays and kinds - set(_KINDS)):
        raise DataError(f"{folder}: the folder mixes {', '.join(sorted(kinds))} files, leave one kind in it")
    kind = arrays[0] if arrays else None
    return kind, [file for file in files if file.suffix.lower() == kind]
