"""One HTML page over all jobs of a batch: a table that sorts, with a link to the report of each job."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from amct_onnx.files.whole_files import write_atomic
from amct_onnx.measure.kernel_report import size_phrase
from amct_onnx.report.render import environment, page_file
from amct_onnx.values.batch_result import DONE, FAILED, KEPT, WAITING, JobResult
from amct_onnx.version import VERSION

_STATES = (DONE, KEPT, FAILED, WAITING)
_CHIPS = {DONE: "int", KEPT: "int", FAILED: "bad", WAITING: ""}


@dataclass(frozen=True, kw_only=True)
class _Column:
    key: str
    title: str
    numeric: bool = False
    down: bool = False
    """Whether the largest comes first."""


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """text: what is shown. value: what sorts it, None for nothing known. lines: below the text."""

    text: str = "\N{EN DASH}"
    value: object = None
    kind: str = ""
    link: str = ""
    chip: str = ""
    lines: tuple[str, ...] = ()


_COLUMNS = (
    _Column(key="name", title="Job"),
    _Column(key="target", title="Target"),
    _Column(key="state", title="State"),
    _Column(key="accuracy", title="Accuracy", numeric=True),
    _Column(key="top", title="Same top-1", numeric=True),
    _Column(key="before", title="Float size", numeric=True, down=True),
    _Column(key="after", title="Size now", numeric=True, down=True),
    _Column(key="speed", title="Speed", numeric=True, down=True),
    _Column(key="float", title="In float", numeric=True, down=True),
    _Column(key="seconds", title="Seconds", numeric=True, down=True),
    _Column(key="report", title="Report"),
    _Column(key="notes", title="Notes"),
)


def write_batch_page(jobs: Sequence[JobResult], path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises OutputError."""
    write_atomic(path, batch_page(jobs, os.fspath(path)))


def batch_page(jobs: Sequence[JobResult], path: str) -> str:
    """The page that will be at `path`, from which its links lead to the reports."""
    from markupsafe import Markup  # of which jinja2 is made

    counts = Counter(job.state for job in jobs)
    tiles = [{"name": state, "value": counts[state], "kind": _tile_kind(state, counts[state])} for state in _STATES]
    models, targets = len({job.model for job in jobs}), len({job.target for job in jobs})
    return (
        environment()
        .from_string(page_file("batch.html.j2"))
        .render(
            title=f"{Path(path).stem}: {len(jobs)} jobs",
            subtitle=f"{models} model{'s' * (models != 1)}, {targets} target{'s' * (targets != 1)}",
            version=VERSION,
            style=Markup(page_file("style.css")),
            script=Markup(page_file("batch.js")),
            tiles=tiles,
            states=[state for state in _STATES if counts[state]],
            columns=_COLUMNS,
            rows=[{"state": job.state, "cells": _cells(job, os.path.dirname(path))} for job in jobs],
        )
    )


def _tile_kind(state: str, count: int) -> str:
    return ("bad" if count else "good") if state == FAILED else ""


def _cells(job: JobResult, folder: str) -> tuple[_Cell, ...]:
    accuracy = job.accuracy
    top = None if accuracy is None else accuracy.same_top1
    notes = [f"Failed: {job.error}"] if job.error else []
    notes += [f"Done again, since {job.because}."] if job.because and not job.error else []
    notes += ["The target of accuracy is not met."] if job.met is False else []
    notes += job.warnings
    link = _link(job.report, folder) if job.report else ""
    return (
        _Cell(text=job.name, value=job.name, kind="name"),
        _Cell(text=job.target, value=job.target),
        _Cell(text=job.state, value=job.state, chip=_CHIPS[job.state] or "quiet"),
        _number(None if accuracy is None else accuracy.decibels, "{:.1f} dB"),
        _number(top, "{:.1%}"),
        _Cell(kind="n") if job.bytes_before is None else _size(job.bytes_before),
        _Cell(kind="n") if job.bytes_after is None else _size(job.bytes_after),
        _number(job.speedup, "{:.2f} \N{MULTIPLICATION SIGN}"),
        _Cell(kind="n")
        if job.in_float is None
        else _Cell(text=f"{job.in_float} of {job.candidates}", value=job.in_float, kind="n"),
        _number(job.seconds, "{:.1f}"),
        _Cell(text="report", value=job.name, link=link) if link else _Cell(),
        _Cell(text="", value=notes[0] if notes else None, kind="text", lines=tuple(notes)),
    )


def _number(value: float | None, form: str) -> _Cell:
    return _Cell(kind="n") if value is None else _Cell(text=form.format(value), value=value, kind="n")


def _size(count: int) -> _Cell:
    return _Cell(text=size_phrase(count), value=count, kind="n")


def _link(path: str, folder: str) -> str:
    """The address of a file from a page in `folder`."""
    try:
        return quote(Path(os.path.relpath(path, folder or ".")).as_posix())
    except ValueError:  # it is on another drive
        return Path(path).resolve().as_uri()
