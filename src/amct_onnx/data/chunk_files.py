"""Chunks of samples that lie in files and are read by number: a file for each input of each chunk, or .npz files."""

from __future__ import annotations

import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amct_onnx.data.array_files import ArrayFiles
from amct_onnx.data.arrays import npz_headers, why_unreadable
from amct_onnx.data.batches import Chunk, Note, quiet
from amct_onnx.data.items import named_items
from amct_onnx.data.options import DataOptions
from amct_onnx.data.places import is_local
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Array, Feed


class ChunkFiles(ABC):
    """Chunks in an order, as the files give them. They can be pickled."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place(self, number: int) -> str:
        """The name of one chunk for errors."""

    @abstractmethod
    def outline(self, number: int) -> Chunk | DataError:
        """One chunk with arrays of its shapes that take no memory, whose numbers mean nothing; or why it cannot be
        read. Raises DataError for one that lacks an input."""

    @abstractmethod
    def read(self, first: int, last: int, note: Note = quiet) -> Iterator[Chunk | DataError]:
        """The chunks `first` to `last` - 1, or why one cannot be read. Raises DataError for one that lacks an input."""


@dataclass(frozen=True, kw_only=True)
class PartFiles(ChunkFiles):
    """Files by input, as many for each. `whole`: inputs that are the same in each chunk."""

    parts: Mapping[str, ArrayFiles]
    whole: Feed

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def place(self, number: int) -> str:
        return next(iter(self.parts.values())).place(number)

    def outline(self, number: int) -> Chunk | DataError:
        try:
            arrays = {name: _outline(files.shape(number)) for name, files in self.parts.items()}
        except DataError as reason:
            return reason
        places = {name: files.place(number) for name, files in self.parts.items()}
        return Chunk(where=next(iter(places.values())), arrays={**arrays, **self.whole}, places=places)

    def read(self, first: int, last: int, note: Note = quiet) -> Iterator[Chunk | DataError]:
        return chunks_of_parts({name: files.read(first, last) for name, files in self.parts.items()}, self.whole)


@dataclass(frozen=True, kw_only=True)
class ArchiveFiles(ChunkFiles):
    """.npz files, each with the arrays of all inputs of one run."""

    files: tuple[Path, ...]
    inputs: tuple[ModelInput, ...]
    options: DataOptions

    def __len__(self) -> int:
        return len(self.files)

    def place(self, number: int) -> str:
        return str(self.files[number])

    def outline(self, number: int) -> Chunk | DataError:
        file = self.files[number]
        try:
            arrays = {name: _outline(shape) for name, (_, shape, _) in npz_headers(file).items()}
        except DataError as reason:
            return reason
        item = arrays["arr_0"] if self._is_unnamed(arrays) else arrays
        return next(named_items([(str(file), item)], self.inputs, self.options, quiet))

    def read(self, first: int, last: int, note: Note = quiet) -> Iterator[Chunk | DataError]:
        for file in self.files[first:last]:
            item = self._item(file)
            if isinstance(item, DataError):
                yield item
            else:
                yield from named_items([(str(file), item)], self.inputs, self.options, note)

    def _wanted(self) -> set[str]:
        return {self.options.key(value.name) for value in self.inputs}

    def _is_unnamed(self, names: Mapping[str, object]) -> bool:
        """Whether the file has one array, which numpy named by itself."""
        return list(names) == ["arr_0"] and "arr_0" not in self._wanted()

    def _item(self, file: Path) -> object:
        """A dict of the arrays of a file, or the only array in it; or why it cannot be read."""
        wanted = self._wanted()
        try:
            source = file if is_local(file) else io.BytesIO(file.read_bytes())
            with np.load(source, allow_pickle=False) as archive:
                unnamed = self._is_unnamed(dict.fromkeys(archive.files))
                arrays = {key: archive[key] if key in wanted or unnamed else None for key in archive.files}
        except Exception as reason:
            return DataError(f"{file}: is no readable .npz file ({why_unreadable(reason)})")
        return arrays["arr_0"] if unnamed else arrays


def chunks_of_parts(
    parts: Mapping[str, Iterator[tuple[str, Array | DataError]]], whole: Feed
) -> Iterator[Chunk | DataError]:
    """Chunks of arrays by input, each of which comes with its place for errors; or why one of them cannot be read.

    Raises DataError where some inputs have more of them than others.
    """
    for number in itertools.count():
        found = {name: next(arrays, None) for name, arrays in parts.items()}
        given = {name: item for name, item in found.items() if item is not None}
        if not given:
            return
        if len(given) < len(found):
            ended, longer = next(name for name in found if name not in given), next(iter(given))
            raise DataError(f"the data of input {ended!r} end after {number}, those of {longer!r} go on; give as many")
        places = {name: place for name, (place, _) in given.items()}
        unreadable = next((array for _, array in given.values() if isinstance(array, DataError)), None)
        if unreadable is not None:
            yield unreadable
            continue
        arrays = {name: array for name, (_, array) in given.items() if not isinstance(array, DataError)}
        yield Chunk(where=next(iter(places.values())), arrays={**arrays, **whole}, places=places)


def _outline(shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.zeros((), np.uint8), shape)
