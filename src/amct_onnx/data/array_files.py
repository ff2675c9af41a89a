"""Arrays that lie in files, many of them, and are read by number: .npy files, files without a header, rows of an array.

Each is what an input of a network takes in one run, or one sample of it. Their shapes are known without reading them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from amct_onnx.data.arrays import SampleArray, map_npy
from amct_onnx.data.raw_folders import read_array, shape_of_file
from amct_onnx.errors import DataError
from amct_onnx.numerics.arrays import Array


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
        return os.fspath(self.files[number])

    def shape(self, number: int) -> tuple[int, ...]:
        return map_npy(self.files[number]).shape

    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        return ((os.fspath(file), _or_why_not(map_npy, file)) for file in self.files[first:last])


@dataclass(frozen=True, kw_only=True)
class RawFiles(ArrayFiles):
    """A file of numbers without a header for each array. One dimension of `dims` may be -1."""

    files: tuple[Path, ...]
    dtype: str
    dims: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def place(self, number: int) -> str:
        return os.fspath(self.files[number])

    def shape(self, number: int) -> tuple[int, ...]:
        return shape_of_file(self.files[number], self.dtype, self.dims)

    def read(self, first: int, last: int) -> Iterator[tuple[str, Array | DataError]]:
        read = partial(read_array, dtype=self.dtype, shape=self.dims)
        return ((os.fspath(file), _or_why_not(read, file)) for file in self.files[first:last])


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
        for number, block in enumerate(self.array.blocks(1, last, first), first):
            yield self.place(number), block if self.keep else np.asarray(block[0])


def _or_why_not(read: Callable[[Path], Array], file: Path) -> Array | DataError:
    try:
        return read(file)
    except DataError as reason:
        return reason
