"""Arrays [N, ...] of samples that are read in parts: from memory, from a .npy file, from a .npz file.

Whatever else numpy can make an array of, as tensors of torch or lists of numbers, becomes one by `to_array`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from amct_onnx.errors import DataError
from amct_onnx.numerics.arrays import Array, Uint8s


class SampleArray(Protocol):
    """The samples of one input, as an array [N, ...] that is read in parts, from the first sample on."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def where(self) -> str:
        """The file, or another name of the array for errors."""

    def blocks(self, size: int, rows: int) -> Iterator[Array]:
        """The first `rows` samples, `size` at a time. The last part may have fewer."""

    def label(self, first: int, last: int) -> str:
        """A name of the samples `first` to `last` - 1 for errors."""


@dataclass(frozen=True, kw_only=True)
class MemoryArray:
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
class NpyArray:
    """An array in a .npy file. Each part maps the file anew, so that pages that were read leave the memory."""

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
class NpzArray:
    """An array in a .npz file, which is decompressed as it is read. An array in Fortran order is read as a whole."""

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
                yield from MemoryArray(array=whole, where=self.where).blocks(size, rows)
                return
            row = int(np.prod(self.shape[1:]))
            for start in range(0, rows, size):
                count = min(size, rows - start)
                yield self._read(stream, count * row).view(dtype).reshape(count, *self.shape[1:])

    def _read(self, stream: IO[bytes], count: int) -> Uint8s:
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


def open_array(array: Array, where: str) -> MemoryArray:
    """An array in memory as samples. Raises DataError for a single number."""
    if array.ndim == 0:
        raise DataError(f"{where}: is a single number, give an array [N, ...] of samples")
    return MemoryArray(array=array, where=where)


def map_npy(path: Path) -> Array:
    """The array in a .npy file, mapped into memory. Raises DataError."""
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as reason:  # numpy raises many classes for what is no array file
        raise DataError(f"{os.fspath(path)}: is no readable .npy file ({_line(reason)})") from None
    if not isinstance(data, np.ndarray):
        raise DataError(f"{os.fspath(path)}: is no .npy file; one with several arrays ends in .npz")
    return np.asarray(data)


def open_npy(path: Path) -> NpyArray:
    """The array in a .npy file, of which only the header is read now. Raises DataError."""
    array = open_array(map_npy(path), os.fspath(path)).array
    return NpyArray(path=path, shape=array.shape, dtype=array.dtype)


def open_npz(path: Path) -> dict[str, NpzArray]:
    """The arrays in a .npz file by name. Arrays of Python objects and single numbers are left out. Raises DataError."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith(".npy"):
                    continue
                with archive.open(name) as stream:
                    fortran, shape, dtype = _header(stream)
                if shape and not dtype.hasobject:
                    member = name.removesuffix(".npy")
                    arrays[member] = NpzArray(path=path, member=member, shape=shape, dtype=dtype, fortran=fortran)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as reason:
        raise DataError(f"{os.fspath(path)}: is no readable .npz file ({_line(reason)})") from None
    return arrays


def is_array(value: object) -> bool:
    """Whether `value` is an array, a tensor of torch, an OrtValue, or something else that offers `__array__`."""
    return any(callable(getattr(value, name, None)) for name in ("__array__", "detach", "numpy"))


def to_array(value: Any, where: str) -> Array:
    """`value` as an array: what `is_array` accepts, or nested lists of numbers. Raises DataError.

    No library is imported for it: what a tensor can do is found by its methods.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (bool, int, float, list, tuple)):
        return _numbers(value, where)
    if not is_array(value):
        raise DataError(f"{where}: is of type {type(value).__name__}, give an array or a tensor")
    try:
        if callable(getattr(value, "detach", None)):
            value = value.detach().cpu()
        if callable(getattr(value, "numpy", None)):
            value = value.numpy()
        return np.asarray(value)
    except Exception as reason:  # e.g. a bfloat16 tensor, which numpy does not know
        text = " ".join(str(reason).split())[:200]
        raise DataError(f"{where}: a {type(value).__name__} that cannot become an array ({text})") from None


def _numbers(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: is of type {type(value).__name__} and holds no array of numbers")
    return array


def _header(stream: IO[bytes]) -> tuple[bool, tuple[int, ...], np.dtype[Any]]:
    """Of the array whose numbers follow in `stream`: whether its order is Fortran's, its shape, its type."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return bool(fortran), tuple(shape), dtype


def _label(where: str, first: int, last: int) -> str:
    return f"{where}, sample {first}" if last == first + 1 else f"{where}, samples {first} to {last - 1}"


def _line(reason: Exception) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
