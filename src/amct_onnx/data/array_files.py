"""Arrays that lie in files, many of them, and are read by number: .npy files, files without a header, rows of an array.

Each is what an input of a network takes in one run, or one sample of it. Their shapes are known without reading them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from amct_onnx.data.arrays import BadSamples, SampleArray, map_npy, read_npy
from amct_onnx.data.blobs import Blobs
from amct_onnx.data.raw_folders import read_array, shape_of_file
from amct_onnx.errors import DataError
from amct_onnx.numerics.arrays import Array

Source = TypeVar("Source", Path, bytes, Path | bytes)


class ArrayFiles(ABC):
    """Arrays in an order. They can be pickled: another process that sees the same files reads the same."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, number: int) -> str:
        """A name of one array for errors."""

    @abstractmethod
    def shape(self, number: int) -> tuple[int, ...]:
        """Of one array, by what stands in front of its numbers. Raises DataError."""

    @abstractmethod
    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        """The arrays `first` to `last` - 1, each with its place for errors, or why it cannot be read.

        Raises DataError for what makes all that follow unreadable.
        """


@dataclass(frozen=True, kw_only=True)
class NpyFiles(ArrayFiles):
    """A .npy file for each array."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def place(self, number: int) -> str:
        return str(self.files[number])

    def shape(self, number: int) -> tuple[int, ...]:
        return map_npy(self.files[number]).shape

    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        return ((str(file), _or_why_not(map_npy, file)) for file in self.files[first:last])


@dataclass(frozen=True, kw_only=True)
class RawFiles(ArrayFiles):
    """A file of numbers without a header for each array. One dimension of `dims` may be -1."""

    files: tuple[Path, ...]
    dtype: str
    dims: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def place(self, number: int) -> str:
        return str(self.files[number])

    def shape(self, number: int) -> tuple[int, ...]:
        return shape_of_file(self.files[number], self.dtype, self.dims)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        read = partial(read_array, dtype=self.dtype, shape=self.dims)
        return ((str(file), _or_why_not(read, file)) for file in self.files[first:last])


@dataclass(frozen=True, kw_only=True)
class ArrayRows(ArrayFiles):
    """The rows of an array in a file. `keep`: each keeps axis 0, of length 1."""

    array: SampleArray
    keep: bool

    def __len__(self) -> int:
        return self.array.shape[0]

    def place(self, number: int) -> str:
        return self.array.label(number, number + 1)

    def shape(self, number: int) -> tuple[int, ...]:
        row = self.array.shape[1:]
        return (1, *row) if self.keep else row

    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        bad: BadSamples = {}
        for number, block in enumerate(self.array.blocks(1, last, first, bad), first):
            row = block if self.keep else np.asarray(block[0])
            yield self.place(number), bad.pop(number, row)


@dataclass(frozen=True, kw_only=True)
class BlobArrays(ArrayFiles):
    """The content of a .npy file for each array, wherever it lies."""

    blobs: Blobs

    def __len__(self) -> int:
        return len(self.blobs)

    def place(self, number: int) -> str:
        return self.blobs.name(number)

    def shape(self, number: int) -> tuple[int, ...]:
        ((_, found),) = self.read(number, number + 1)
        if isinstance(found, DataError):
            raise found
        return found.shape

    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        for number, blob in enumerate(self.blobs.read(first, last), first):
            where = self.place(number)
            yield where, blob if isinstance(blob, DataError) else _or_why_not(partial(read_npy, where=where), blob)


def _or_why_not(read: Callable[[Source], Array], source: Source) -> Array | DataError:
    try:
        return read(source)
    except DataError as reason:
        return reason
