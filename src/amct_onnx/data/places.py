"""Where data lie: a path of this machine, or a URL that fsspec opens, as s3://bucket/folder. Patterns of several.

A URL becomes a `upath.UPath`, which does what a `pathlib.Path` does. Only this module imports it.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any, TypeGuard, cast
from urllib.parse import urlparse
from urllib.request import url2pathname

from amct_onnx.errors import DataError, one_line
from amct_onnx.words import either

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST = 1_000_000  # paths of a pattern


def find_place(path: object) -> Path:
    """The place of data that exist. Raises DataError for those that do not, or that nothing here can reach."""
    place = place_of(path)
    try:
        if place.exists():
            return place
    except ImportError as reason:  # fsspec lacks what this kind of URL takes, and says what
        raise DataError(f"{path}: cannot be opened: {one_line(reason)}") from None
    except (OSError, ValueError):  # too long; a NUL byte
        pass
    except Exception as reason:  # whatever the client of a cloud raises
        raise DataError(f"{path}: cannot be reached ({one_line(reason)})") from None
    raise DataError(f"{path}: the data do not exist, check the path{either('', ' of --data')}")


def place_of(path: object) -> Path:
    """A path or a URL as a place. Raises DataError for a URL that cannot be opened."""
    text = os.fspath(cast(Any, path)) if isinstance(path, (str, os.PathLike)) else str(path)
    if isinstance(path, Path) or _URL.match(text) is None:
        return Path(text)
    if text.startswith("file://"):
        return Path(url2pathname(urlparse(text).path))
    try:
        from upath import UPath
    except ImportError:
        raise DataError(
            f'{text}: a URL needs the packages fsspec and universal_pathlib: pip install "amct-onnx[remote]"'
        ) from None
    try:
        return cast(Path, UPath(text))
    except (ValueError, ImportError) as reason:
        raise DataError(f"{text}: cannot be opened: {one_line(reason)}") from None


def is_local(place: object) -> bool:
    """Whether it is a path of this machine, and not a URL."""
    return isinstance(place, (str, os.PathLike))


def is_place(data: object) -> TypeGuard[Path]:
    """Whether it is what `place_of` has made."""
    return isinstance(data, Path) or (not is_local(data) and callable(getattr(data, "iterdir", None)))


def state_of(place: Path) -> str:
    """What changes when a file behind a URL does, as far as its storage tells. Raises DataError."""
    url = cast(Any, place)
    try:
        return str(url.fs.ukey(url.path))
    except Exception as reason:  # whatever the client of a cloud raises
        raise DataError(f"{place}: cannot be reached ({one_line(reason)})") from None


def expanded(text: str) -> list[str]:
    """The paths of a pattern as `shard-{000000..000099}.tar`; the path itself where it is none.

    Numbers have as many digits as the first one. Raises DataError for a pattern of too many paths.
    """
    if _RANGE.search(text) is None or (_URL.match(text) is None and os.path.exists(text)):
        return [text]
    parts = _RANGE.split(text)  # text, first, last, text, first, last, text
    numbers = [
        [str(number).zfill(len(first)) for number in range(int(first), min(int(last), int(first) + _MOST) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    found = list(itertools.islice(itertools.product(*numbers), _MOST + 1))
    if not found or len(found) > _MOST:
        what = "no path: its range ends before it begins" if not found else f"more than {_MOST} paths"
        raise DataError(f"{text}: this pattern is of {what}")
    return ["".join(itertools.chain(*zip(parts[::3], (*chosen, ""), strict=True))) for chosen in found]
