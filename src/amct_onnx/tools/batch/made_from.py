"""What the results of a job are made from, as a value that JSON holds, and what has changed since an earlier one."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import amct_onnx
from amct_onnx.errors import AmctError
from amct_onnx.files.onnx_file import model_files
from amct_onnx.tools.batch.job import Data, Job, is_local
from amct_onnx.tools.batch.option_values import OPTIONS
from amct_onnx.values.shown import plain

_PART = 1 << 20  # bytes that are read at a time
# Who does the work, and with what at hand, makes no difference to what comes of it.
_NO_DIFFERENCE = ("engine", "state")


class Origins:
    """What jobs are made from; files that several jobs share are read once."""

    def __init__(self) -> None:
        self._digest = functools.cache(digest_of)
        self._model = functools.cache(_model)

    def of(self, job: Job) -> dict[str, Any]:
        """The digests of the model and of files that options name; the data by names, sizes and times of its files;
        the options that are given; the version of amct_onnx. Raises AmctError for a file that cannot be read."""
        options = {name: value for name, value in job.options.items() if name not in _NO_DIFFERENCE}
        files = {name: value for name, value in options.items() if OPTIONS[name].is_path and is_local(value)}
        if job.evaluator:
            files["evaluator"] = job.evaluator
        return {
            "version": amct_onnx.__version__,
            "model": self._model(job.model),
            "data": _data(job.data),
            "target": job.target,
            "options": {name: plain(value) for name, value in options.items() if name not in files},
            "files": {name: self._digest(file) for name, file in files.items()},
            "report": job.report,
        }


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first difference between two origins, as a clause; "" where there is none."""
    if before == now:
        return ""
    if before.get("model") != now["model"]:
        return "the model is another file now"
    if before.get("data") != now["data"]:
        return f"the data were {_told(before.get('data'))} and are {_told(now['data'])}"
    for kind, what in (("files", "the file of {} is another one now"), ("options", "")):
        old, new = before.get(kind) or {}, now[kind]
        for name in [*new, *(name for name in old if name not in new)]:
            if old.get(name) != new.get(name):
                values = (f"{values[name]!r}" if name in values else "not given" for values in (old, new))
                return what.format(name) or "{} was {} and is {}".format(name, *values)
    for name in ("target", "version", "report"):
        if before.get(name) != now[name]:
            return f"{name} was {before.get(name)} and is {now[name]}"
    return "it was made in another way"


def digest_of(path: str) -> str:
    """32 hex digits of what is in a file. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def _model(path: str) -> list[str]:
    """The digests of a model and of its external data; of the file alone where it is no model."""
    try:
        files = model_files(path)
    except AmctError:
        files = (path,)
    return [digest_of(file) for file in files]


def _data(data: Data | None) -> Any:
    """Addresses and patterns as they are; of all others the number of files, their bytes, and a digest of names, sizes
    and times. What is in the files is not read: there may be a million of them."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {name: _data(item) for name, item in data.items()}
    digest, count, size = hashlib.blake2b(digest_size=16), 0, 0
    elsewhere = []
    for path in [data] if isinstance(data, str) else data:
        if not is_local(path):
            elsewhere.append(path)
            continue
        for name, length, changed in sorted(_listing(path)):
            digest.update(f"{name}\0{length}\0{changed}\0".encode("utf-8", "surrogateescape"))
            count, size = count + 1, size + length
    return {"files": count, "bytes": size, "listing": digest.hexdigest(), "addresses": elsewhere}


def _listing(path: str) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and time of each file below a folder, or of a file alone."""
    if not os.path.isdir(path):
        found = os.stat(path)
        yield os.path.basename(path), found.st_size, found.st_mtime_ns
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            found = os.stat(file)
            yield Path(os.path.relpath(file, path)).as_posix(), found.st_size, found.st_mtime_ns


def _told(data: Any) -> str:
    if not isinstance(data, Mapping) or "listing" not in data:
        return "others" if data else "none"
    return f"{data['files']} file{'s' * (data['files'] != 1)} of {data['bytes']} bytes"
