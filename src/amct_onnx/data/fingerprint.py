"""What tells data of a calibration from other data, without reading all of them: names, sizes and times of files, and
the contents of what is in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from amct_onnx.data.arrays import is_array, to_array
from amct_onnx.data.places import expanded, find_place, is_local, place_of, state_of
from amct_onnx.data.raw_folders import list_files
from amct_onnx.numerics.arrays import Feed


def data_fingerprint(data: object) -> str:
    """A phrase about `data` that is another one for other data, as far as that can be known.

    An iterable is read only once, so that nothing but its type is known of it.
    """
    return f"{_shown(data)} ({data_digest(data)})"


def data_digest(data: object) -> str:
    """The same wherever the data lie: without their path."""
    digest, what = hashlib.blake2b(digest_size=12), []
    for text in _texts(data):
        digest.update(text.encode(errors="surrogateescape"))
        what.append(text)
    count = f"{len(what)} files, " if len(what) > 1 else ""
    return f"{count}digest {digest.hexdigest()}"


def feed_fingerprint(feed: Feed) -> str:
    """A digest of one feed."""
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(feed):
        digest.update(f"{name} {_of_array(feed[name])}".encode())
    return digest.hexdigest()


def _shown(data: object) -> str:
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    if isinstance(data, Mapping):
        return ", ".join(f"{name}: {_shown(part)}" for name, part in data.items())
    return f"{'an' if type(data).__name__[0] in 'aeiou' else 'a'} {type(data).__name__}"


def _texts(data: object) -> Iterator[str]:
    if isinstance(data, (str, os.PathLike)):
        for path in expanded(os.fspath(data)):
            yield from _of_path(path)
    elif isinstance(data, Mapping):
        for name in data:
            yield str(name)
            yield from _texts(data[name])
    elif is_array(data):
        yield _of_array(to_array(data, "data"))
    elif isinstance(data, Sequence) and all(isinstance(part, (str, os.PathLike)) or is_array(part) for part in data):
        for part in data:
            yield from _texts(part)
    else:
        yield type(data).__name__


def _of_path(path: str) -> Iterator[str]:
    place = place_of(path)
    if not is_local(place):
        place = find_place(path)
        for file in list_files(place) if place.is_dir() else [place]:
            yield f"{file} {state_of(file)}"
    elif place.is_dir():
        for folder, folders, files in os.walk(place):
            folders.sort()
            for name in sorted(files):
                yield _of_file(Path(folder) / name, os.path.relpath(os.path.join(folder, name), place))
    else:
        yield _of_file(place, place.name)


def _of_file(file: Path, name: str) -> str:
    try:
        found = file.stat()
    except OSError:  # no file of this machine
        return str(file)
    return f"{name} {found.st_size} {found.st_mtime_ns}"


def _of_array(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array.astype(str) if array.dtype.hasobject else array)
    digest = hashlib.blake2b(content.reshape(-1).view(np.uint8).data, digest_size=12).hexdigest()
    return f"{array.dtype} {array.shape} {digest}"
