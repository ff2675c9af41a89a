"""Which form calibration data on disk have, and opening them: folders, files, and one of these for each input."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from amct_onnx.data.arrays import NpzTable, Table, map_npy, open_array, open_npy, open_npz
from amct_onnx.data.batches import Note, fed_by_position
from amct_onnx.data.images import IMAGE_SUFFIXES, ImageOptions, ImageTable, find_images, image_options, is_image
from amct_onnx.data.items import missing_text, note_unused, to_array
from amct_onnx.data.raw_folders import InputFolder, check_sizes, list_files, read_array
from amct_onnx.errors import ArgumentError, DataError
from amct_onnx.files.data_options import check_data_type
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.graph.inputs import ModelInput

_RAW = ".bin"
_KINDS = (".npy", ".npz", _RAW)
_READABLE = f"{', '.join(sorted(IMAGE_SUFFIXES))}, {', '.join(_KINDS)}"


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of one input, each a batch or a sample."""

    paths: Sequence[Path]
    load: Callable[[Path], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Opened data: tables and files by input, or items that have yet to be named, each with its place."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    files: Mapping[str, Files] = field(default_factory=dict)
    items: Iterable[tuple[str, object]] | None = None
    count: int | None = None
    """Number of files or items, if it is known."""


@dataclass(frozen=True, kw_only=True)
class Opener:
    """What `open_data` was told, and the forms that it can open with that. Methods raise DataError."""

    inputs: tuple[ModelInput, ...]
    images: ImageOptions | str | None
    shapes: Mapping[str, Sequence[int]]
    dtypes: Mapping[str, str]
    names: Mapping[str, str]
    limit: int | None
    note: Note
    used_dtypes: list[str] = field(default_factory=list)

    def only(self, what: str) -> ModelInput:
        """The input that data without names belong to."""
        wanted = fed_by_position(self.inputs)
        if len(wanted) > 1:
            text = ", ".join(repr(value.name) for value in wanted)
            raise DataError(f"{what} is for a model of one input, this one takes {text}; give a dict of data by input")
        return wanted[0]

    def check_complete(self, given: Iterable[str]) -> None:
        """Each input without a default has data."""
        given = list(given)
        for value in self.inputs:
            if value.name not in given and not value.optional:
                raise DataError(f"the model needs input {value.name!r}, and no data are given for it")

    def path(self, path: str | os.PathLike[str]) -> Form:
        """A folder or a file for the whole model."""
        place = _existing(path)
        if place.suffix.lower() == ".npz" and place.is_file():
            return Form(tables=self._archive(place))
        if not place.is_dir():
            return self.one(self.only(os.fspath(path)), place)
        wanted = fed_by_position(self.inputs)
        keys = {value.name: self.names.get(value.name, value.name) for value in wanted}
        for suffix in ("", ".npy"):
            parts = {name: place / f"{key}{suffix}" for name, key in keys.items()}
            if all(part.is_file() if suffix else part.is_dir() for part in parts.values()):
                return self._columns(parts)
        if kind := _kind(place):
            files = _files(place, kind)
            if kind == ".npz":
                return Form(
                    items=_archives(files, {self.names.get(value.name, value.name) for value in self.inputs}),
                    count=len(files),
                )
        return self.one(self.only(os.fspath(path)), place)

    def mapping(self, data: Mapping[Any, Any]) -> Form:
        """Arrays or paths by input."""
        columns = {}
        for value in self.inputs:
            key = self.names.get(value.name, value.name)
            if key in data:
                columns[value.name] = data[key]
            elif not value.optional:
                raise DataError(f"data: {missing_text(value.name, key, data)}")
        used = {self.names.get(value.name, value.name) for value in self.inputs}
        note_unused([str(key) for key in data if key not in used], self.note)
        return self._columns(columns)

    def paths(self, data: Sequence[str | os.PathLike[str]]) -> Form:
        """A list of images or of .npy or .bin files for one input, or a path for each input in their order."""
        places = [_existing(path) for path in data]
        wanted = fed_by_position(self.inputs)
        if len(wanted) == len(places) and (len(places) > 1 or places[0].is_dir()):
            return self._columns({value.name: place for value, place in zip(wanted, places, strict=True)})
        return self._listed(self.only("a list of files"), places)

    def _listed(self, value: ModelInput, places: Sequence[Path]) -> Form:
        if all(is_image(place) for place in places):
            return Form(tables={value.name: self._image_table(value, places, "data")})
        kinds = {place.suffix.lower() for place in places}
        if len(kinds) == 1 and kinds <= {".npy", _RAW}:
            return self._file_list(value, places, kinds.pop())
        raise DataError(f"data: the list of files mixes kinds, or holds others than {_READABLE}")

    def one(self, value: ModelInput, data: object) -> Form:
        """Data of one input: an array, nested lists of numbers, a path or a list of paths."""
        if isinstance(data, (str, os.PathLike)):
            place = _existing(data)
            return self._folder(value, place) if place.is_dir() else self._file(value, place)
        if is_paths(data):
            return self._listed(value, [_existing(path) for path in data])
        where = f"data of input {value.name!r}"
        array = to_array(data, where)
        return Form(tables={value.name: open_array(np.atleast_1d(array) if value.shape == () else array, where)})

    def _folder(self, value: ModelInput, place: Path) -> Form:
        kind = _kind(place)
        if kind == ".npz":
            raise DataError(f"{place}: a folder of .npz files holds all inputs, give it as the data of the model")
        if kind is not None:
            arrays = _files(place, kind)
            if kind == ".npy" and len(arrays) == 1:  # all samples rather than one batch, which may be too large
                return Form(tables={value.name: open_npy(arrays[0])})
            return self._file_list(value, arrays, kind)
        files = find_images(place)
        if not files:
            raise DataError(f"{place}: the folder holds no data, put files into it: {_READABLE}")
        return Form(tables={value.name: self._image_table(value, self._spread(files), os.fspath(place))})

    def _file(self, value: ModelInput, place: Path) -> Form:
        suffix = place.suffix.lower()
        if is_image(place):
            return Form(tables={value.name: self._image_table(value, [place], os.fspath(place))})
        if suffix == ".npy":
            return Form(tables={value.name: open_npy(place)})
        if suffix == ".npz":
            return Form(tables={value.name: self._member(place, value, open_npz(place))})
        if suffix == _RAW:
            return self._file_list(value, [place], suffix)
        raise DataError(f"{place}: data in such a file cannot be read, give one of {_READABLE}, or a folder")

    def _columns(self, columns: Mapping[str, object]) -> Form:
        known = {value.name: value for value in self.inputs}
        forms = [self.one(known[name], data) for name, data in columns.items()]
        files = {name: column for form in forms for name, column in form.files.items()}
        counts = {name: len(column.paths) for name, column in files.items()}
        if len(set(counts.values())) > 1:
            text = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
            raise DataError(f"the inputs have different numbers of files: {text}; each file is a batch")
        tables = {name: table for form in forms for name, table in form.tables.items()}
        return Form(tables=tables, files=files, count=next(iter(counts.values()), None))

    def _archive(self, place: Path) -> dict[str, Table]:
        members = open_npz(place)
        keys = {value.name: self.names.get(value.name, value.name) for value in self.inputs}
        tables = {
            v.name: self._member(place, v, members) for v in self.inputs if not v.optional or keys[v.name] in members
        }
        used = {table.member for table in tables.values()}
        note_unused([name for name in members if name not in used], self.note)
        return dict(tables)

    def _member(self, place: Path, value: ModelInput, members: Mapping[str, NpzTable]) -> NpzTable:
        """The array of an input in a .npz file; one single array for one single input has no need of a name."""
        key = self.names.get(value.name, value.name)
        if key in members:
            return members[key]
        if len(members) == len(fed_by_position(self.inputs)) == 1 and value.name not in self.names:
            return next(iter(members.values()))
        raise DataError(f"{place}: {missing_text(value.name, key, members)}")

    def _spread(self, files: Sequence[Path]) -> Sequence[Path]:
        """`limit` files at equal distances: folders and names often go by class."""
        if self.limit is None or self.limit >= len(files):
            return files
        self.note(f"{self.limit} of {len(files)} images are used, at equal distances in the order of their paths")
        return [files[index * len(files) // self.limit] for index in range(self.limit)]

    def _image_table(self, value: ModelInput, files: Sequence[Path], where: str) -> ImageTable:
        options = image_options(value, self.images, self.note)
        dtype = np.dtype(value.dtype or "float32")
        table = ImageTable(files=tuple(files[: self.limit]), options=options, dtype=dtype, where=where)
        table.check()
        return table

    def _file_list(self, value: ModelInput, files: Sequence[Path], kind: str) -> Form:
        load: Callable[[Path], npt.NDArray[Any]] = map_npy
        if kind == _RAW:
            dtype, shape = self._raw_type(value), self._raw_shape(value)
            load = partial(_read_raw, dtype=dtype, shape=shape)
            mistakes = Mistakes(None)
            entry = InputFolder(name=value.name, shape=shape, dtype=dtype, folder=os.fspath(files[0].parent))
            check_sizes(entry, files, mistakes)
            if mistakes:
                raise DataError(str(mistakes))
        return Form(files={value.name: Files(paths=files, load=load)}, count=len(files))

    def _raw_type(self, value: ModelInput) -> str:
        dtype = self.dtypes.get(value.name, value.dtype)
        if not dtype:
            raise ArgumentError(f"input {value.name!r}: the model does not say its type, give it in dtypes=")
        check_data_type(dtype)
        self.used_dtypes.append(dtype)
        return dtype

    def _raw_shape(self, value: ModelInput) -> tuple[int, ...]:
        given = self.shapes.get(value.name)
        shape = given if given is not None else [-1 if dim is None else dim for dim in value.shape or (-1, -1)]
        if given is None and -1 not in shape:
            shape = [-1, *shape[1:]]  # a file may hold several of the model's batches
        if list(shape).count(-1) > 1:
            what = f"the model leaves more than one dimension open, {_RAW} files do not say them"
            raise DataError(f"input {value.name!r}: {what}; give them in shapes={{{value.name!r}: ...}}, one may be -1")
        return tuple(shape)


def is_paths(data: object) -> TypeGuard[Sequence[str | os.PathLike[str]]]:
    """Whether it is a list of paths."""
    return isinstance(data, (list, tuple)) and bool(data) and all(isinstance(p, (str, os.PathLike)) for p in data)


def _read_raw(path: Path, *, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return read_array(path, dtype, shape)


def _existing(path: object) -> Path:
    place = Path(os.fspath(path))  # type: ignore[call-overload]
    try:
        if place.exists():
            return place
    except (OSError, ValueError):  # too long; a NUL byte
        pass
    raise DataError(f"{place}: the data do not exist, check the path")


def _kind(folder: Path) -> str | None:
    """The suffix of the array files in a folder, None if it holds images or nothing. Raises DataError for a mixture."""
    mistakes = Mistakes(None)
    files = list_files(os.fspath(folder), mistakes)
    if files is None:
        raise DataError(str(mistakes))
    kinds = {file.suffix.lower() for file in files} & {*_KINDS, *IMAGE_SUFFIXES}
    arrays = sorted(kinds & set(_KINDS))
    if len(arrays) > 1 or (arrays and kinds - set(_KINDS)):
        raise DataError(f"{folder}: the folder mixes {', '.join(sorted(kinds))} files, leave one kind in it")
    return arrays[0] if arrays else None


def _files(folder: Path, kind: str) -> list[Path]:
    return [file for file in list_files(os.fspath(folder), Mistakes(None)) or () if file.suffix.lower() == kind]


def _archives(files: Sequence[Path], wanted: Container[str]) -> Iterator[tuple[str, object]]:
    """Each file as a dict; a single array whose name says nothing as itself."""
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as archive:
                unnamed = [key for key in archive.files if key == "arr_0" and len(archive.files) == 1]
                arrays = {key: archive[key] if key in wanted or unnamed else None for key in archive.files}
        except Exception as reason:
            raise DataError(f"{file}: is no readable .npz file ({reason})") from None
        yield os.fspath(file), arrays["arr_0"] if unnamed and "arr_0" not in wanted else arrays


def close_to(name: str, known: Sequence[str]) -> str:
    """What to do about an unknown name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(map(repr, known))}"
