"""Samples in tar files, as WebDataset has them: the files of a sample lie one behind the other, and share their name up
to its first dot. `000017.jpg` and `000017.cls` are the fields "jpg" and "cls" of one sample.

The headers of all files are read once, when the data are opened: they say where the files lie. After that a sample is
read without those in front.
"""

from __future__ import annotations

import itertools
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from amct_onnx.data.blobs import Blob, Blobs
from amct_onnx.data.images import IMAGE_SUFFIXES
from amct_onnx.errors import DataError, one_line
from amct_onnx.numerics.arrays import Int64s
from amct_onnx.values.skipped_data import SkippedData, Unreadable
from amct_onnx.words import given_for

TAR_SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ARRAY, _CLASS = ".npy", "cls"
Fields = Mapping[str, tuple[int, int]]  # of a sample: where a file begins, and its bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class TarBlobs(Blobs):
    """One field of the samples in tar files. ends: how many samples there are up to the end of each of the `shards`.

    offsets, sizes: where the file of each sample lies in its shard; a size of -1 is one that has no such file.
    """

    shards: tuple[Path, ...]
    ends: tuple[int, ...]
    offsets: Int64s
    sizes: Int64s
    field: str

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, number: int) -> str:
        shard = bisect_right(self.ends, number)
        return f"{self.shards[shard]}: sample {number - (self.ends[shard - 1] if shard else 0)}"

    def exact_name(self, number: int) -> str:
        """With the name in the header of the file, which is in front of it."""
        shard = self.shards[bisect_right(self.ends, number)]
        try:
            with shard.open("rb") as stream:
                stream.seek(int(self.offsets[number]) - tarfile.BLOCKSIZE)
                header = stream.read(tarfile.BLOCKSIZE)
            return f"{shard}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'surrogateescape').name}"
        except Exception:  # it cannot be read any more, or is no header
            return self.name(number)

    def read(self, first: int, last: int) -> Iterator[Blob]:
        while first < last:
            shard = bisect_right(self.ends, first)
            end = min(last, self.ends[shard])
            yield from self._of_shard(self.shards[shard], first, end)
            first = end

    def classes(self) -> Sequence[str] | None:
        """The content of the file `.cls` of each sample. Raises DataError for a sample without one, if others have."""
        found: list[str] = []
        for number, shard in enumerate(self.shards):
            first, last = self.ends[number - 1] if number else 0, self.ends[number]
            wanted = set(self.offsets[first:last].tolist())
            with shard.open("rb") as stream:
                for sample in _samples(shard) if wanted else ():
                    if wanted.isdisjoint(offset for offset, _ in sample.values()):
                        continue
                    if _CLASS in sample:
                        stream.seek(sample[_CLASS][0])
                    elif found:
                        raise DataError(
                            f"{self.exact_name(len(found))}: has no {_CLASS!r} beside it, which others have"
                        )
                    else:
                        return None
                    found.append(stream.read(sample[_CLASS][1]).decode("utf-8", "replace").strip())
        return found

    def _of_shard(self, shard: Path, first: int, last: int) -> Iterator[Blob]:
        try:
            stream = shard.open("rb")
        except Exception as reason:  # whatever the client of a cloud raises
            unreadable = DataError(f"{shard}: cannot be read ({one_line(reason)})")
            yield from itertools.repeat(unreadable, last - first)
            return
        with stream:
            for number in range(first, last):
                size = int(self.sizes[number])
                if size < 0:
                    yield DataError(f"{self.name(number)}: has no {self.field!r}, which others have")
                    continue
                try:
                    stream.seek(int(self.offsets[number]))
                    content = stream.read(size)
                except Exception as reason:
                    yield DataError(f"{self.name(number)}: cannot be read ({one_line(reason)})")
                    continue
                whole = len(content) == size
                yield (
                    content if whole else DataError(f"{self.exact_name(number)}: ends early, the file is not complete")
                )


@dataclass(frozen=True, kw_only=True)
class TarField:
    """Which files of a sample an input takes: those with this ending, or with any ending of an image."""

    ending: str
    is_image: bool

    def find(self, sample: Fields) -> tuple[int, int] | None:
        if not self.is_image:
            return sample.get(self.ending)
        return next((place for ending, place in sample.items() if _takes(self.ending, ending)), None)


def open_tars(
    shards: Sequence[Path],
    keys: Mapping[str, str],
    named: frozenset[str],
    limit: int | None,
    lost: Callable[[SkippedData], None] | None,
) -> dict[str, tuple[TarBlobs, bool]]:
    """The files of each input in tar files, and whether they are images.

    keys: the name of each input in the data; those of `named` were given, others need not be there where one input
    takes all. limit: so many samples are enough. lost: is told of tar files that cannot be read; None raises that.

    Raises DataError.
    """
    fields: dict[str, TarField] | None = None
    places: dict[str, array[int]] = {name: array("q") for name in keys}  # the two numbers of each sample
    ends: list[int] = []
    count, unreadable = 0, ""
    for shard in shards:
        try:
            for sample in _samples(shard):
                if fields is None:
                    if not _endings(sample):
                        continue
                    fields = {name: _field(shard, sample, name, key, named, keys) for name, key in keys.items()}
                found = {name: field.find(sample) for name, field in fields.items()}
                if not any(found.values()):
                    continue  # what else lies in a tar file, as a list of its classes
                for name, place in found.items():
                    places[name].extend(place or (0, -1))
                count += 1
                if count == limit:
                    break
        except DataError as reason:
            if lost is None:
                raise
            unreadable = unreadable or f", as far as they can be read: {reason}"
            lost(SkippedData(files=1, first=(Unreadable(number=count, why=str(reason)),)))
        ends.append(count)
        if count == limit:
            break
    if fields is None:
        raise DataError(f"{shards[0]}: the tar files hold no image and no .npy file{unreadable}")
    arrays = {name: np.frombuffer(found, np.int64).reshape(-1, 2) for name, found in places.items()}
    return {
        name: (
            TarBlobs(
                shards=tuple(shards[: len(ends)]),
                ends=tuple(ends),
                offsets=arrays[name][:, 0].copy(),
                sizes=arrays[name][:, 1].copy(),
                field=field.ending or "image",
            ),
            field.is_image,
        )
        for name, field in fields.items()
    }


def _samples(shard: Path) -> Iterator[Fields]:
    """The files of each sample. Raises DataError for what is no tar file, and for one that ends early."""
    current, sample = "", dict[str, tuple[int, int]]()
    try:
        with shard.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                base, _, ending = path.name.partition(".")
                key = str(path.with_name(base))
                if key != current and sample:
                    yield sample
                    sample = {}
                current = key
                sample[ending.lower()] = (member.offset_data, member.size)
    except Exception as reason:  # tarfile raises many classes for what is none, and a cloud's client its own
        if sample:
            yield sample
        raise DataError(f"{shard}: is no readable tar file ({one_line(reason)})") from None
    if sample:
        yield sample


def _endings(sample: Fields) -> list[str]:
    """Those of images and of arrays."""
    return [ending for ending in sample if _suffix(ending) in {*IMAGE_SUFFIXES, _ARRAY}]


def _suffix(ending: str) -> str:
    return f".{ending.rpartition('.')[2]}"


def _takes(wanted: str, ending: str) -> bool:
    """Whether an ending is that of an image of the field: "jpg", or "left.jpg" of the field "left"."""
    return _suffix(ending) in IMAGE_SUFFIXES and ending.rpartition(".")[0] == wanted


def _field(
    shard: Path, sample: Fields, name: str, key: str, named: frozenset[str], keys: Mapping[str, str]
) -> TarField:
    """Where input `name` is in samples like this one, the first. Raises DataError where that is not clear."""
    endings, key = _endings(sample), key.lower()
    for ending in endings:
        if ending in (key, f"{key}{_ARRAY}") or _takes(key, ending):
            is_image = _suffix(ending) in IMAGE_SUFFIXES
            return TarField(ending=ending.rpartition(".")[0] if is_image else ending, is_image=is_image)
    if len(keys) == 1 and name not in named:
        images = [ending for ending in endings if _suffix(ending) in IMAGE_SUFFIXES]
        chosen = images or endings
        if len(chosen) == 1:
            return TarField(ending=chosen[0].rpartition(".")[0] if images else chosen[0], is_image=bool(images))
    text = ", ".join(map(repr, sample))
    what = f"input {name!r}" if name not in named else f"input {name!r} under the name {key!r}"
    raise DataError(
        f"{shard}: its samples have {text}, and none is clearly {what}; say which in {given_for('names', name)}"
    )
