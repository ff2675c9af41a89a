"""Reads files without a header: a folder for each input, a file for each batch (amct_formats.md: Data handlers)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amct_onnx.data.input_texts import InputFolder, check_data_type
from amct_onnx.data.places import is_local, is_place
from amct_onnx.errors import DataError, did_you_mean
from amct_onnx.files.whole_files import Mistakes, system_reason
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Array

_NAMED_FILES = 5  # files of a wrong size that are named for each folder


@dataclass(frozen=True, kw_only=True)
class BatchFiles:
    """The files of the batches of a calibration."""

    inputs: tuple[InputFolder, ...]
    files: tuple[tuple[Path, ...], ...]
    """For each batch, the files of its inputs in their order."""
    available: int
    """The number of batches in the folder that has the fewest."""

    def read(self, index: int) -> dict[str, Array]:
        """Batch `index` as a feed of ONNX Runtime. Raises DataError."""
        files = zip(self.inputs, self.files[index], strict=True)
        return {entry.name: read_array(file, entry.dtype, entry.shape) for entry, file in files}


def check_signature(inputs: Sequence[InputFolder], wanted: Iterable[ModelInput], mistakes: Mistakes) -> None:
    """Note where names, types and dimensions of the data are not those of the inputs of the model."""
    known = {value.name: value for value in wanted}
    for entry in inputs:
        value = known.get(entry.name)
        if value is None:
            hint = did_you_mean(entry.name, known, f"it has {', '.join(map(repr, known))}")
            mistakes.add(f"input {entry.name!r}", f"the model has no such input, {hint}")
            continue
        if value.dtype and value.dtype != entry.dtype:
            mistakes.add(f"input {entry.name!r}", f"the data are {entry.dtype}, the model takes {value.dtype}")
        _check_shape(entry, value, mistakes)
    given = {entry.name for entry in inputs}
    for value in known.values():
        if value.name not in given and not value.optional:
            mistakes.add(f"input {value.name!r}", "the model needs it, and no data are given for it")


def _check_shape(entry: InputFolder, value: ModelInput, mistakes: Mistakes) -> None:
    if value.shape is None:
        return
    shape = "[" + ",".join("?" if dim is None else str(dim) for dim in value.shape) + "]"
    if len(value.shape) != len(entry.shape):
        what = f"the data have {len(entry.shape)} dimensions, the model takes {len(value.shape)}: {shape}"
        mistakes.add(f"input {entry.name!r}", what)
        return
    if any(-1 != dim != fixed for dim, fixed in zip(entry.shape, value.shape, strict=True) if fixed is not None):
        what = f"the data have the shape {list(entry.shape)}, the model takes {shape}"
        mistakes.add(f"input {entry.name!r}", what)


def find_batches(inputs: Sequence[InputFolder], number: int | None, mistakes: Mistakes) -> BatchFiles:
    """The first `number` files of each folder, in the order of their names. Hidden files and subfolders do not count.

    None takes as many as the first folder has. A folder that cannot be read, too few files and files of a wrong size
    are mistakes.
    """
    columns: list[list[Path]] = []
    available: list[int] = []
    for entry in inputs:
        try:
            files = list_files(entry.folder)
        except DataError as reason:
            mistakes.add("", str(reason))
            continue
        number = len(files) if number is None else number
        available.append(len(files))
        if len(files) < number:
            what = f"The number of given data batches is not enough: it holds {len(files)}, {number} are needed"
            mistakes.add(entry.folder, f"{what}; every file is one batch")
        columns.append(files[:number])
        check_sizes(entry, files[:number], mistakes)
    rows = () if mistakes else tuple(zip(*columns, strict=True))
    return BatchFiles(inputs=tuple(inputs), files=rows, available=min(available, default=0))


def list_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files in a folder in the order of their names, without hidden ones. Raises DataError."""
    try:
        if is_place(folder) and not is_local(folder):
            return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        raise DataError(f"{folder}: the data folder does not exist, check the path") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file, give the folder that holds the data files") from None
    except (OSError, ValueError) as reason:
        raise DataError(f"{folder}: the data folder cannot be read ({system_reason(reason)})") from None
    return [Path(folder, name) for name in names if not name.startswith(".") and Path(folder, name).is_file()]


def check_sizes(entry: InputFolder, files: Iterable[Path], mistakes: Mistakes) -> None:
    """Note files that have another size than their batch."""
    problems = {file: _size_problem(entry, _size(file)) for file in files}
    wrong = [(file, problem) for file, problem in problems.items() if problem is not None]
    for file, problem in wrong[:_NAMED_FILES]:
        mistakes.add(str(file), problem)
    if len(wrong) > _NAMED_FILES:
        mistakes.add(entry.folder, f"{len(wrong) - _NAMED_FILES} more files have a wrong size")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # it was deleted since it was listed


def _size_problem(entry: InputFolder, size: int) -> str | None:
    """What is wrong with a file of `size` bytes; with a dimension of -1, whole rows of the others are right."""
    unit = math.prod(dim for dim in entry.shape if dim != -1) * np.dtype(entry.dtype).itemsize
    is_open = -1 in entry.shape
    fits = 0 < unit <= size and size % unit == 0 if is_open else size == unit
    needed = f"a multiple of {unit}" if is_open else str(unit)
    return None if fits else f"has {size} bytes, but {entry.dtype} {list(entry.shape)} takes {needed}"


def shape_of_file(file: Path, dtype: str, dims: Sequence[int]) -> tuple[int, ...]:
    """The shape of the array in a file without a header; one of `dims` may be -1. Raises DataError for a wrong size."""
    size = _size(file)
    problem = _size_problem(InputFolder(name="", shape=tuple(dims), dtype=dtype, folder=""), size)
    if problem is not None:
        raise DataError(f"{file}: {problem}")
    unit = math.prod(dim for dim in dims if dim != -1) * np.dtype(dtype).itemsize
    return tuple(size // unit if dim == -1 else dim for dim in dims)


def read_array(file: str | os.PathLike[str], dtype: str, shape: Sequence[int]) -> Array:
    """The array in a file without a header. One dimension of `shape` may be -1.

    Raises ArgumentTypeError for an unknown type, and DataError for a file that is missing or has another size.
    """
    check_data_type(dtype)
    entry = InputFolder(name="", shape=tuple(shape), dtype=dtype, folder="")
    name = os.fspath(file)
    try:
        data = np.fromfile(name, np.dtype(dtype))
        size = Path(name).stat().st_size
    except (OSError, ValueError) as reason:
        raise DataError(f"{name}: the data file cannot be read ({system_reason(reason)})") from None
    problem = _size_problem(entry, size)
    if problem is not None:
        raise DataError(f"{name}: {problem}")
    try:
        return data.reshape(entry.shape)
    except ValueError as reason:  # more than one -1
        raise DataError(f"{name}: {list(entry.shape)} is no shape ({reason})") from None
