"""Arrays [N, ...] of samples that are read in parts: from memory, from a .npy file, from a .npz file.

Whatever else numpy can make an array of, as tensors of torch or lists of numbers, becomes one by `to_array`.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from amct_onnx.data.places import is_local
from amct_onnx.errors import DataError, one_line
from amct_onnx.numerics.arrays import Array

BadSamples = dict[int, DataError]
"""Why samples cannot be read, by their number."""
TEXTS = "object"  # numpy's name of the type of an input that takes texts


@dataclass(frozen=True, kw_only=True)
class SampleArray(ABC):
    """The samples of one input, as an array [N, ...] that is read in parts."""

    shape: tuple[int, ...]
    where: str
    """The file, or another name of the array for errors."""

    @property
    def in_files(self) -> bool:
        """Whether another process that sees the same files can read them too."""
        return True

    @abstractmethod
    def blocks(self, size: int, rows: int, start: int = 0, bad: BadSamples | None = None) -> Iterator[Array]:
        """The samples `start` to `rows` - 1, `size` at a time. The last part may have fewer.

        bad: gets those that cannot be read, where others can; they are 0 in their part. Raises DataError for them
        where it is None, and in any case for what makes all that follow unreadable.
        """

    def label(self, first: int, last: int) -> str:
        """A name of the samples `first` to `last` - 1 for errors."""
        return f"{self.where}, sample {first}" if last == first + 1 else f"{self.where}, samples {first} to {last - 1}"


@dataclass(frozen=True, kw_only=True)
class MemoryArray(SampleArray):
    """An array in memory."""

    array: Array

    @property
    def in_files(self) -> bool:
        return False

    def blocks(self, size: int, rows: int, start: int = 0, bad: BadSamples | None = None) -> Iterator[Array]:
        for first in range(start, rows, size):
            yield self.array[first : min(first + size, rows)]


@dataclass(frozen=True, kw_only=True)
class NpyArray(SampleArray):
    """An array in a .npy file. Each part maps the file anew, so that pages that were read leave the memory."""

    path: Path

    def blocks(self, size: int, rows: int, start: int = 0, bad: BadSamples | None = None) -> Iterator[Array]:
        for first in range(start, rows, size):
            yield np.array(np.atleast_1d(map_npy(self.path))[first : min(first + size, rows)])


@dataclass(frozen=True, kw_only=True)
class NpzArray(SampleArray):
    """An array in a .npz file, which is decompressed as it is read, from its beginning on in any case. An array in
    Fortran order is read as a whole."""

    path: Path
    member: str
    dtype: np.dtype[Any]
    fortran: bool

    def blocks(self, size: int, rows: int, start: int = 0, bad: BadSamples | None = None) -> Iterator[Array]:
        with self._stream() as stream:
            if self.fortran:
                whole = self._read(stream, self.shape[::-1]).T
                yield from MemoryArray(array=whole, shape=self.shape, where=self.where).blocks(size, rows, start)
                return
            self._skip(stream, start * math.prod(self.shape[1:]) * self.dtype.itemsize)
            for first in range(start, rows, size):
                yield self._read(stream, (min(size, rows - first), *self.shape[1:]))

    @contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        """The numbers of the array. Raises DataError where there is no such file any more."""
        try:
            archive = zipfile.ZipFile(self.path if is_local(self.path) else self.path.open("rb"))
            stream = archive.open(f"{self.member}.npy")
            _header(stream)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError) as reason:
            raise DataError(f"{self.where}: cannot be read ({one_line(reason)})") from None
        with archive, stream:
            yield stream

    def _skip(self, stream: IO[bytes], count: int) -> None:
        try:
            stream.seek(count, os.SEEK_CUR)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as reason:
            raise DataError(f"{self.where}: cannot be read ({reason})") from None

    def _read(self, stream: IO[bytes], shape: tuple[int, ...]) -> Array:
        data = np.empty(math.prod(shape) * self.dtype.itemsize, np.uint8)
        position = 0
        try:
            while position < data.size and (part := stream.read(min(1 << 20, data.size - position))):
                data[position : position + len(part)] = np.frombuffer(part, np.uint8)
                position += len(part)
        except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as reason:
            raise DataError(f"{self.where}: cannot be read ({reason})") from None
        if position < data.size:
            raise DataError(f"{self.where}: ends before its last sample, the file is not complete")
        return data.view(self.dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class RemoteNpyArray(NpzArray):
    """An array in a .npy file behind a URL, which is read as it comes."""

    @contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        try:
            stream = self.path.open("rb")
            _header(stream)
        except Exception as reason:  # whatever the client of a cloud raises
            raise DataError(f"{self.where}: cannot be read ({one_line(reason)})") from None
        with stream:
            yield stream


def open_array(array: Array, where: str) -> MemoryArray:
    """An array in memory as samples. Raises DataError for a single number."""
    if array.ndim == 0:
        raise DataError(f"{where}: is a single number, give an array [N, ...] of samples")
    return MemoryArray(array=array, shape=array.shape, where=where)


def map_npy(path: Path) -> Array:
    """The array in a .npy file, mapped into memory. Raises DataError."""
    if not is_local(path):
        return read_npy(path, str(path))
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as reason:  # numpy raises many classes for what is no array file
        raise DataError(f"{path!s}: is no readable .npy file ({why_unreadable(reason)})") from None
    if not isinstance(data, np.ndarray):
        raise DataError(f"{path!s}: is no .npy file; one with several arrays ends in .npz")
    return np.asarray(data)


def read_npy(source: Path | bytes, where: str) -> Array:
    """The array in the bytes of a .npy file, or in one that cannot be mapped. Raises DataError."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        return np.asarray(np.lib.format.read_array(io.BytesIO(content), allow_pickle=False))
    except Exception as reason:  # numpy raises many classes for what is no array file, and a cloud's client its own
        raise DataError(f"{where}: is no readable .npy file ({why_unreadable(reason)})") from None


def why_unreadable(error: Exception) -> str:
    """Why numpy cannot read a file, without its advice to those who call it."""
    text = one_line(error)
    return "it is broken, or holds objects of Python" if "pickle" in text else text


def _remote_header(path: Path) -> tuple[bool, tuple[int, ...], np.dtype[Any]]:
    try:
        with path.open("rb") as stream:
            return _header(stream)
    except Exception as reason:  # whatever the client of a cloud raises
        raise DataError(f"{path}: is no readable .npy file ({why_unreadable(reason)})") from None


def open_npy(path: Path, *, scalar: bool = False) -> SampleArray:
    """The array in a .npy file, of which only the header is read now; `scalar`: it may be a single number.

    Raises DataError.
    """
    if not is_local(path):
        fortran, shape, dtype = _remote_header(path)
        if not shape and not scalar:
            raise DataError(f"{path}: is a single number, give an array [N, ...] of samples")
        return RemoteNpyArray(path=path, member="", shape=shape or (1,), where=str(path), dtype=dtype, fortran=fortran)
    mapped = map_npy(path)
    array = open_array(np.atleast_1d(mapped) if scalar else mapped, str(path))
    return NpyArray(path=path, shape=array.shape, where=array.where)


def open_npz(path: Path) -> dict[str, NpzArray]:
    """The arrays in a .npz file by name, a single number as one of length 1. Arrays of Python objects are left out.

    Raises DataError.
    """
    return {
        member: NpzArray(
            path=path,
            member=member,
            shape=shape or (1,),
            where=f"{path!s}: {member!r}",
            dtype=dtype,
            fortran=fortran,
        )
        for member, (fortran, shape, dtype) in npz_headers(path).items()
        if not dtype.hasobject
    }


def npz_headers(path: Path) -> dict[str, tuple[bool, tuple[int, ...], np.dtype[Any]]]:
    """Of the arrays in a .npz file by name, whether the order is Fortran's, the shape, the type. Raises DataError."""
    headers = {}
    try:
        with zipfile.ZipFile(path if is_local(path) else path.open("rb")) as archive:
            for name in archive.namelist():
                if not name.endswith(".npy"):
                    continue
                with archive.open(name) as stream:
                    headers[name.removesuffix(".npy")] = _header(stream)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, NotImplementedError) as reason:
        raise DataError(f"{path!s}: is no readable .npz file ({why_unreadable(reason)})") from None
    return headers


def is_array(value: object) -> bool:
    """Whether `value` is an array, a tensor of torch, an OrtValue, or something else that offers `__array__`."""
    return any(callable(getattr(value, name, None)) for name in ("__array__", "detach", "numpy"))


def to_array(value: Any, where: str, *, texts: bool = False) -> Array:
    """`value` as an array: what `is_array` accepts, or nested lists of numbers, or of `texts`. Raises DataError.

    No library is imported for it: what a tensor can do is found by its methods.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (bool, int, float, list, tuple)):
        return _numbers(value, where, "biufUS" if texts else "biuf")
    if not is_array(value):
        raise DataError(f"{where}: is of type {type(value).__name__}, give an array or a tensor")
    try:
        if callable(getattr(value, "detach", None)):
            value = value.detach().cpu()
        if callable(getattr(value, "numpy", None)):
            value = value.numpy()
        return np.asarray(value)
    except Exception as reason:  # e.g. a bfloat16 tensor, which numpy does not know
        text = f"a {type(value).__name__} that cannot become an array ({one_line(reason)})"
        raise DataError(f"{where}: {text}") from None


def _numbers(value: Any, where: str, kinds: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in kinds:
        raise DataError(f"{where}: is of type {type(value).__name__} and holds no array of numbers")
    return array


def _header(stream: IO[bytes]) -> tuple[bool, tuple[int, ...], np.dtype[Any]]:
    """Of the array whose numbers follow in `stream`: whether its order is Fortran's, its shape, its type."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return bool(fortran), tuple(shape), dtype
