"""Runs one job: quantizes, writes the results and the report, and says what they are worth."""

from __future__ import annotations

import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amct_onnx.engine.engine import Engine
from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.errors import one_line
from amct_onnx.files.onnx_file import file_bytes
from amct_onnx.progress import Progress
from amct_onnx.ptq.other_target import serves_other_targets, to_other_target, warnings_of_target
from amct_onnx.ptq.quantize import quantize
from amct_onnx.ptq.quantized_model import QuantizedModel, SavedModel
from amct_onnx.ptq.saved_report import written_bytes
from amct_onnx.report.write import save_run, write_report
from amct_onnx.targets.target import without_suffix
from amct_onnx.tools.batch.job import Job
from amct_onnx.tools.heard import warnings_heard
from amct_onnx.tools.user_script import session_evaluator
from amct_onnx.values.batch_result import DONE, JobResult

_log = logging.getLogger("amct_onnx.Batch")


@dataclass(frozen=True, kw_only=True)
class _Calibrated:
    """The last result that serves other targets, and what it was made from. warnings: those about its data."""

    key: tuple[Any, ...]
    result: QuantizedModel
    warnings: tuple[str, ...]


class Shared:
    """What jobs share: a calibration, which serves those that differ in the target alone, where no recipe fits to one;
    and an engine, as long as the jobs name the same. One of each is kept, and let go by `close`.

    What comes of a job is what `quantize` gives for it alone, byte for byte.
    """

    def __init__(self) -> None:
        self._last: _Calibrated | None = None
        self._engines = ExitStack()
        self._engine: tuple[str, Engine | None] = ("", None)

    def quantized(self, job: Job, warnings: list[str], progress: Progress, state: str) -> QuantizedModel:
        """The result of a job. warnings: those that are heard, to which those of a shared calibration are added."""
        key = (job.model, job.data, job.options, job.evaluator)
        if self._last is not None and self._last.key == key and self._last.result.target != job.target:
            warnings.extend(self._last.warnings)
            return to_other_target(self._last.result, job.target)
        self._last = None  # the memory is free
        with ExitStack() as stack:
            given = {**job.options, "target": job.target, "progress": progress}
            if job.keeps_state:
                given["state"] = state
            if "engine" in given:
                given["engine"] = self._opened(given["engine"])
            if job.evaluator:
                given["evaluator"] = stack.enter_context(session_evaluator(job.evaluator))
            result = quantize(job.model, job.data, **given)
        if serves_other_targets(result):
            own = warnings_of_target(result)
            told = tuple(text for text in warnings if text not in own)
            self._last = _Calibrated(key=key, result=result, warnings=told)
        return result

    def close(self) -> None:
        """Let calibration and engine go."""
        self._last = None
        self._engine = ("", None)
        self._engines.close()

    def _opened(self, name: str) -> Engine | None:
        if name != self._engine[0]:
            self.close()
            self._engine = (name, self._engines.enter_context(opened_engine(name)))
        return self._engine[1]


def run_job(job: Job, shared: Shared, progress: Progress, state: str) -> JobResult:
    """Make the results of a job; what it is worth. state: a folder for what is done of it, from which it goes on.

    Raises what `quantize` and `save` raise, and ScriptError.
    """
    start = time.monotonic()
    with warnings_heard() as warnings:
        result = shared.quantized(job, warnings, progress, state)
        if os.path.exists(job.record):  # what an earlier call made is no surprise that save has to warn of
            for file in (job.record, *job.files, job.run, job.page):
                Path(file).unlink(missing_ok=True)
        saved = result.save(job.prefix, inspect=job.report)
        run = _reported(job, result, saved, progress) if job.report else ""
    report, decisions, source = saved.report, result.decisions, result.calibration.source.source
    latency = None if report is None else report.latency
    return JobResult(
        name=job.name,
        target=job.target,
        model=job.model,
        state=DONE,
        seconds=time.monotonic() - start,
        data=result.data,
        accuracy=result.accuracy if report is None else report.accuracy,
        met=None if result.precision is None else result.precision.met,
        bytes_before=file_bytes(source.model, job.model) if report is None else report.bytes_before,
        bytes_after=written_bytes(saved.files[0]) if report is None else report.bytes_after,
        speedup=None if latency is None or latency.too_busy else latency.speedup,
        quantized=sum(decision.quantized for decision in decisions),
        candidates=len(decisions),
        files=job.files,
        run=run,
        report=job.page if run else "",
        warnings=tuple(warnings),
        assumptions=result.assumptions,
    )


def _reported(job: Job, result: QuantizedModel, saved: SavedModel, progress: Progress) -> str:
    """Leave a run file and a report beside the results, which are written whatever fails here; the run file's path."""
    try:
        run = save_run(result, without_suffix(job.prefix), saved=saved, progress=progress)
        write_report(run, job.page, progress=False)
    except Exception as error:
        _log.warning("%s is written, but there is no report of it: %s", saved.files[0], one_line(error))
        return ""
    return run
