"""Arrays [N, ...] of calibration data that are read in parts: in memory, in .npy, in .npz."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from amct_onnx.errors import DataError

Array = npt.NDArray[Any]


class Table(Protocol):
    """The samples of one input: an array whose rows are read once, from the first on."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def where(self) -> str:
        """The file, or what else names it in an error."""

    def blocks(self, size: int, rows: int) -> Iterator[Array]:
        """The first `rows` rows, `size` at a time, the last part may have fewer."""

    def label(self, first: int, last: int) -> str:
        """What names the rows `first` to `last` - 1 in an error."""


@dataclass(frozen=True, kw_only=True)
class ArrayTable:
    """An array in memory."""

    array: Array
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def label(self, first: int, last: int) -> str:
        return _label(self.where, first, last)

    def blocks(self, size: int, rows: int) -> Iterator[Array]:
        for start in range(0, rows, size):
            yield self.array[start : min(start + size, rows)]


@dataclass(frozen=True, kw_only=True)
class NpyTable:
    """An array in a .npy file. Each part maps the file anew: pages that were read do not count as memory for long."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def where(self) -> str:
        return os.fspath(self.path)

    def label(self, first: int, last: int) -> str:
        return _label(self.where, first, last)

    def blocks(self, size: int, rows: int) -> Iterator[Array]:
        for start in range(0, rows, size):
            yield np.array(map_npy(self.path)[start : min(start + size, rows)])


@dataclass(frozen=True, kw_only=True)
class NpzTable:
    """An array in a .npz file, decompressed as it is read; one in Fortran order is read as a whole."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def where(self) -> str:
        return f"{os.fspath(self.path)}: {self.member!r}"

    def label(self, first: int, last: int) -> str:
        return _label(self.where, first, last)

    def blocks(self, size: int, rows: int) -> Iterator[Array]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as stream:
            _, whole_shape, dtype = _header(stream)
            if self.fortran:
                data = self._read(stream, int(np.prod(whole_shape)))
                whole = data.view(dtype).reshape(whole_shape[::-1]).T
                yield from ArrayTable(array=whole, where=self.where).blocks(size, rows)
                return
            row = int(np.prod(self.shape[1:]))
            for start in range(0, rows, size):
                count = min(size, rows - start)
                yield self._read(stream, count * row).view(dtype).reshape(count, *self.shape[1:])

    def _read(self, stream: IO[bytes], count: int) -> npt.NDArray[np.uint8]:
        data = np.empty(count * self.dtype.itemsize, np.uint8)
        position = 0
        try:
            while position < data.size and (part := stream.read(min(1 << 20, data.size - position))):
                data[position : position + len(part)] = np.frombuffer(part, np.uint8)
                position += len(part)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as reason:
            raise DataError(f"{self.where}: cannot be read ({reason})") from None
        if position < data.size:
            raise DataError(f"{self.where}: ends before its last sample, the file is not complete")
        return data


def open_array(array: Array, where: str) -> ArrayTable:
    """Raises DataError for a number instead of an array."""
    if array.ndim == 0:
        raise DataError(f"{where}: is a single number, give an array [N, ...] of samples")
    return ArrayTable(array=array, where=where)


def map_npy(path: Path) -> Array:
    """The array in a .npy file, mapped into memory. Raises DataError."""
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as reason:  # numpy raises many classes for what is no array file
        raise DataError(f"{os.fspath(path)}: is no readable .npy file ({_line(reason)})") from None
    if not isinstance(data, np.ndarray):
        raise DataError(f"{os.fspath(path)}: is no .npy file; one with several arrays ends in .npz")
    return np.asarray(data)


def open_npy(path: Path) -> NpyTable:
    """Only the header is read. Raises DataError."""
    array = open_array(map_npy(path), os.fspath(path)).array
    return NpyTable(path=path, shape=array.shape, dtype=array.dtype)


def open_npz(path: Path) -> dict[str, NpzTable]:
    """The arrays in a .npz file by name; those of Python objects and numbers are left out. Raises DataError."""
    tables = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith(".npy"):
                    continue
                with archive.open(name) as stream:
                    fortran, shape, dtype = _header(stream)
                if shape and not dtype.hasobject:
                    member = name.removesuffix(".npy")
                    tables[member] = NpzTable(path=path, member=member, shape=shape, dtype=dtype, fortran=fortran)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as reason:
        raise DataError(f"{os.fspath(path)}: is no readable .npz file ({_line(reason)})") from None
    return tables


def _header(stream: IO[bytes]) -> tuple[bool, tuple[int, ...], np.dtype[Any]]:
    """Whether the order is Fortran's, shape and type of the array whose numbers follow in `stream`."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return bool(fortran), tuple(shape), dtype


def _label(where: str, first: int, last: int) -> str:
    return f"{where}, sample {first}" if last == first + 1 else f"{where}, samples {first} to {last - 1}"


def _line(reason: Exception) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
