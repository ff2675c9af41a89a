"""Encoded samples, as images, that lie somewhere in an order and are read by number: in files of their own, for one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from amct_onnx.errors import DataError

Blob = bytes | Path | DataError
"""What a sample is encoded as: its bytes, or the file that holds them; or why it cannot be read."""


class Blobs(ABC):
    """Encoded samples in an order. They can be pickled, and another process that sees the same files reads the same."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, number: int) -> str:
        """Of one sample, for errors."""

    def exact_name(self, number: int) -> str:
        """The same, as exact as can be: it may read something for that."""
        return self.name(number)

    def classes(self) -> Sequence[str] | None:
        """What lies beside each sample as its class; None where nothing does. Raises DataError."""
        return None

    @abstractmethod
    def read(self, first: int, last: int) -> Iterator[Blob]:
        """The samples `first` to `last` - 1."""


@dataclass(frozen=True, kw_only=True)
class FileBlobs(Blobs):
    """A file for each sample."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        return str(self.files[number])

    def read(self, first: int, last: int) -> Iterator[Blob]:
        return iter(self.files[first:last])
