"""What could not be read of calibration data, and was left out because the user said so, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_NAMED = 5


@dataclass(frozen=True, kw_only=True, order=True)
class Unreadable:
    """A sample, or a file of samples, that cannot be read. number: its place among all samples, from 0 on. why: what
    the error would have said, with its name."""

    number: int
    why: str


@dataclass(frozen=True, kw_only=True)
class SkippedData:
    """Samples that are left out: `samples` could not be read, and `beside` are whole, but in a batch with some that
    could not, of a model that takes only whole batches. feeds: so many feeds are left out as a whole. files: and so
    many files, of which nobody knows how many samples they have. first: those in front, at most 5.

    `str()` gives a phrase.
    """

    samples: int = 0
    beside: int = 0
    feeds: int = 0
    files: int = 0
    first: tuple[Unreadable, ...] = ()

    @classmethod
    def of_samples(cls, found: Sequence[Unreadable]) -> SkippedData:
        """Samples that cannot be read."""
        return cls(samples=len(found), first=_first(found))

    @classmethod
    def of_dict(cls, document: Mapping[str, Any]) -> SkippedData:
        """What `to_dict` has given."""
        first = tuple(Unreadable(**one) for one in document["first"])
        return cls(**{**document, "first": first})

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON."""
        return asdict(self)

    def __bool__(self) -> bool:
        return bool(self.samples or self.files)

    def __str__(self) -> str:
        parts = [_counted(self.samples, "sample")] if self.samples or not self.files else []
        parts += [_counted(self.files, "file")] if self.files else []
        text = f"{' and '.join(parts)} that cannot be read"
        return f"{text}, and {self.beside} beside them in batches that are not whole" if self.beside else text

    def merge(self, other: SkippedData) -> SkippedData:
        """Of both; the order does not matter."""
        return SkippedData(
            samples=self.samples + other.samples,
            beside=self.beside + other.beside,
            feeds=self.feeds + other.feeds,
            files=self.files + other.files,
            first=_first([*self.first, *other.first]),
        )


NOTHING_SKIPPED = SkippedData()


def _first(found: Sequence[Unreadable]) -> tuple[Unreadable, ...]:
    return tuple(sorted(found)[:_NAMED])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
