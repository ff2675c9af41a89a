"""What the results of a job are made from, as a value that JSON holds, and what has changed since an earlier one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from amct_onnx.data.fingerprint import data_digest
from amct_onnx.errors import AmctError
from amct_onnx.files.onnx_file import model_files
from amct_onnx.tools.batch.job import Data, Job, is_local
from amct_onnx.tools.batch.option_values import OPTIONS
from amct_onnx.values.shown import plain
from amct_onnx.version import VERSION

_PART = 1 << 20  # bytes that are read at a time
# Who does the work, and with what at hand, makes no difference to what comes of it.
_NO_DIFFERENCE = ("engine",)


class Origins:
    """What jobs are made from; files that several jobs share are read once."""

    def __init__(self) -> None:
        self._digest = functools.cache(digest_of)
        self._model = functools.cache(_model)
        self._known: list[tuple[Data, str]] = []

    def of(self, job: Job) -> dict[str, Any]:
        """The digests of the model and of files that options name; the data by names, sizes and times of its files;
        the options that are given; the version of amct_onnx. Raises AmctError for a file that cannot be read."""
        options = {name: value for name, value in job.options.items() if name not in _NO_DIFFERENCE}
        files = {name: value for name, value in options.items() if OPTIONS[name].is_path and is_local(value)}
        if job.evaluator:
            files["evaluator"] = job.evaluator
        return {
            "version": VERSION,
            "model": self._model(job.model),
            "data": None if job.data is None else self._data(job.data),
            "target": job.target,
            "options": {name: plain(value) for name, value in options.items() if name not in files},
            "files": {name: self._digest(file) for name, file in files.items()},
            "report": job.report,
        }

    def _data(self, data: Data) -> str:
        """Names, sizes and times of files; what is in them is not read: there may be a million."""
        found = next((text for known, text in self._known if known == data), None)
        if found is None:
            found = data_digest(data)
            self._known.append((data, found))
        return found


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first difference between two origins, as a clause; "" where there is none."""
    if before == now:
        return ""
    if before.get("model") != now["model"]:
        return "the model is another file now"
    if before.get("data") != now["data"]:
        return "the data are others now"
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
