"""The record beside the results of a job: what they were made from, which files they are, and what they are worth.

It is written last, whole or not at all: a job whose record is there and fits is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from amct_onnx.errors import AmctError
from amct_onnx.files.onnx_file import model_files
from amct_onnx.files.whole_files import write_atomic
from amct_onnx.report.run_data import read_value, to_document
from amct_onnx.tools.batch.job import RECORD, Job
from amct_onnx.tools.batch.made_from import digest_of, what_changed
from amct_onnx.values.batch_result import KEPT, JobResult

SCHEMA = 1


def write_record(job: Job, origin: Mapping[str, Any], result: JobResult) -> None:
    """Say that a job is done. Raises OutputError."""
    folder = os.path.realpath(os.path.dirname(job.record))
    files = {os.path.relpath(os.path.realpath(path), folder): digest_of(path) for path in _all_files(result)}
    document = {"schema": SCHEMA, "made_from": origin, "files": files, "result": to_document(result)}
    write_atomic(job.record, json.dumps(document, indent=1, allow_nan=False) + "\n")


def recorded_files(folder: str) -> set[str]:
    """The real paths of the files that records in a folder name: results, and no models to quantize."""
    found: set[str] = set()
    for record in Path(folder or ".").glob(f"*{RECORD}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            names = json.loads(record.read_text(encoding="utf-8"))["files"]
            found.update(os.path.realpath(record.parent / name) for name in names)
    return found


def earlier_result(job: Job, origin: Mapping[str, Any]) -> tuple[JobResult | None, str]:
    """What an earlier call made of the same, if its files are still there; else None, and why it has to be done again,
    as a clause, "" where there was none."""
    if not os.path.exists(job.record):
        return None, ""
    try:
        document = json.loads(Path(job.record).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            return None, "its record is of another version"
        changed = what_changed(document["made_from"], origin)
        if changed:
            return None, changed
        folder = os.path.dirname(job.record)
        for name, digest in document["files"].items():
            file = os.path.join(folder, name)
            if not os.path.isfile(file):
                return None, f"{file} is gone"
            if digest_of(file) != digest:
                return None, f"{file} is another file now"
        result: JobResult = read_value(document["result"], JobResult, "result")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, "its record cannot be read"
    # What the table calls it may have changed, and the folder may have moved.
    return replace(result, name=job.name, model=job.model, state=KEPT, because="", **_places(job)), ""


def _places(job: Job) -> dict[str, Any]:
    reported = {"run": job.run, "report": job.page}
    return {"files": job.files, **{name: path for name, path in reported.items() if os.path.exists(path)}}


def _all_files(result: JobResult) -> list[str]:
    """The files of a result, external weights too."""
    found = dict.fromkeys((*result.files, *(path for path in (result.run, result.report) if path)))
    for file in result.files:
        if file.endswith(".onnx"):
            try:
                found.update(dict.fromkeys(model_files(file)))
            except AmctError:  # the deploy model of Ascend has operators of its own, and is one file
                continue
    return list(found)
