"""`batch`: runs the jobs of a file, one after the other; a second call does only what is left."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amct_onnx.errors import AmctError, ConfigError, StateError, one_line
from amct_onnx.files.whole_files import check_writable, make_folder
from amct_onnx.progress import Progress, TerminalProgress, progress_of, say_before
from amct_onnx.report.batch_page import write_batch_page
from amct_onnx.run.memory import give_back
from amct_onnx.tools.batch.check_jobs import check_jobs, check_model
from amct_onnx.tools.batch.job import Job
from amct_onnx.tools.batch.made_from import Origins
from amct_onnx.tools.batch.read_jobs import JobSource, read_jobs
from amct_onnx.tools.batch.record import earlier_result, write_record
from amct_onnx.tools.batch.run_job import Shared, run_job
from amct_onnx.values.batch_result import FAILED, WAITING, BatchResult, JobResult
from amct_onnx.words import of_python

_LONGEST = 1000  # characters of an error
_STATE = re.compile(r"[0-9a-f]{16}")  # the name of a state's folder
_log = logging.getLogger("amct_onnx.Batch")


def batch(
    jobs: JobSource,
    *,
    again: bool = False,
    page: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> BatchResult:
    """Quantize many models for many targets, as a file of jobs says it; what is done already is kept.

    jobs: the path of a TOML file with `[defaults]` and `[[job]]` tables, or a mapping of the same layout. A job has
        `model` (a path, a pattern as "models/*.onnx", or a list of these), `data`, `target` (one or a list),
        `save_path` (a prefix in which {name}, {model} and {target} are filled in) and the other arguments of
        `quantize` under their names; `evaluator` is the path of a script, `report = false` measures nothing, and
        `state = false` keeps nothing of a job that is not done. An empty text takes away what the defaults say. Paths
        are those of the file's folder.
    again: do all jobs, those too that are done.
    page: the page over all jobs, which is written anew after each; `<jobs>.html` if not given.
    progress: as for `quantize`.

    All jobs are checked before the first one runs. A job that fails stops no other, and the result tells why. A job is
    done when its results are there and were made from the same model, data (names, sizes and times of files), options
    and version; `<prefix>_<target>_job.json` beside them says so. The call after one that was killed goes on where
    that was: what was seen of the data so far is in `<page>_state`. The job that ran then comes last.

    Raises FileMissingError, ConfigError with all mistakes of the file, ArgumentTypeError, OutputError.
    """
    start, told = time.monotonic(), progress_of(progress)
    with of_python():
        found = read_jobs(jobs)
        check_jobs(found.jobs, found.mistakes)
        found.mistakes.raise_any(ConfigError)
        place = f"{found.stem}.html" if page is None else os.fspath(page)
        run = _Calls(place, f"{os.path.splitext(place)[0]}_state", told)
        results = run.all(found.jobs, again=again)
    return BatchResult(jobs=results, page=place, seconds=time.monotonic() - start)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A job that is left: its place among all, what its results are made from, and the folder of its state."""

    place: int
    job: Job
    origin: Mapping[str, Any]
    state: str


class _Calls:
    """What a call does. states: the folder in which each job that was begun has one until it is done."""

    def __init__(self, page: str, states: str, progress: Progress) -> None:
        self._page, self._states, self._progress = page, states, progress
        self._results: list[JobResult] = []

    def all(self, jobs: Sequence[Job], *, again: bool) -> tuple[JobResult, ...]:
        """What comes of the jobs. Raises OutputError where the page or the states could not be written."""
        check_writable(self._page, os.path.join(self._states, "job"))
        tasks = self._left(jobs, again=again)
        self._forget_others(tasks)
        self._write_page()
        # What ran when a call was killed may have been the reason: the others go first.
        tasks.sort(key=lambda task: os.path.exists(task.state))
        with closing(Shared()) as shared:
            for number, task in enumerate(tasks, 1):
                self._results[task.place] = self._done(task, shared, f"{number}/{len(tasks)}")
                self._write_page()
                give_back()
        with suppress(OSError):
            os.rmdir(self._states)
        return tuple(self._results)

    def _left(self, jobs: Sequence[Job], *, again: bool) -> list[_Task]:
        """The jobs that are left; the results have the others."""
        origins, tasks = Origins(), []
        for place, job in enumerate(jobs):
            found, because, origin = None, "", {}
            try:
                origin = origins.of(job)
                if not again:
                    found, because = earlier_result(job, origin)
                if found is None:
                    check_model(job)
            except Exception as error:
                found = _failed(job, error, because)
            if found is None:
                found = _result(job, WAITING, because=because)
                tasks.append(_Task(place=place, job=job, origin=origin, state=self._state_of(job, origin)))
            self._results.append(found)
        return tasks

    def _state_of(self, job: Job, origin: Mapping[str, Any]) -> str:
        """The folder of a job's state, another one where it is made from something else."""
        known = json.dumps([os.path.abspath(job.record), origin], sort_keys=True)
        return os.path.join(self._states, hashlib.blake2b(known.encode(), digest_size=8).hexdigest())

    def _forget_others(self, tasks: Sequence[_Task]) -> None:
        """Remove the states of jobs that are no more."""
        known = {os.path.basename(task.state) for task in tasks}
        with suppress(OSError):
            for name in os.listdir(self._states):
                if name not in known and _STATE.fullmatch(name):
                    shutil.rmtree(os.path.join(self._states, name), ignore_errors=True)

    def _done(self, task: _Task, shared: Shared, place: str) -> JobResult:
        """What comes of a job."""
        job, because = task.job, self._results[task.place].because
        _log.info("Job %s: %s%s.", place, job, f" is done again, since {because}" if because else "")
        told = _Told(self._progress, f"{place} {job}")
        try:
            make_folder(Path(task.state))
            result = replace(_run(task, shared, told), because=because)
            write_record(job, task.origin, result)
        except Exception as error:
            result = _failed(job, error, because)
            with suppress(OSError):
                os.rmdir(task.state)  # unless it holds work that the next call goes on with
        else:
            shutil.rmtree(task.state, ignore_errors=True)
        told("end", 1.0)
        told.tell(f"{result.state} in {result.seconds:.1f} s" if result.seconds is not None else result.state)
        return result

    def _write_page(self) -> None:
        try:
            write_batch_page(self._results, self._page)
        except AmctError as error:
            _log.warning("The page over all jobs is behind: %s", error)


def _run(task: _Task, shared: Shared, progress: Progress) -> JobResult:
    """Run a job with its state; anew where that cannot be used."""
    try:
        return run_job(task.job, shared, progress, task.state)
    except StateError as error:
        _log.info("%s begins anew: %s", task.job, error)
        shutil.rmtree(task.state, ignore_errors=True)
        return run_job(task.job, shared, progress, task.state)


class _Told(TerminalProgress):
    """Tells somebody else of the progress of one job, with its name before it."""

    def __init__(self, progress: Progress, title: str) -> None:
        super().__init__()
        self._to, self._title = progress, title

    def __call__(self, what: str, share: float) -> None:
        self._to(f"{self._title}: {what}", share)

    def say(self, text: str) -> None:
        """Keep what is assumed of each job to its report and the log."""

    def tell(self, text: str) -> None:
        """Say what came of the job."""
        say_before(self._to, f"{self._title}: {text}")


def _result(job: Job, state: str, **more: Any) -> JobResult:
    return JobResult(name=job.name, target=job.target, model=job.model, state=state, **more)


def _failed(job: Job, error: Exception, because: str) -> JobResult:
    """The result of a job that failed, which the log is told of as well."""
    text = one_line(error, _LONGEST)
    if isinstance(error, MemoryError):
        text = "there is not enough memory: use smaller batches, or a machine with more"
    elif not isinstance(error, AmctError | OSError):
        text = f"unexpected {type(error).__name__}: {text}"
        _log.debug("The error came from:", exc_info=error)
    _log.error("%s: %s", job, text)
    return _result(job, FAILED, error=text, because=because)
