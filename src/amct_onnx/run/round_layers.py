"""Round the weights of many layers side by side: one progress, one way to stop, one text for what cannot be rounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import AmctError, CalibrationError
from amct_onnx.numerics.weights.second_order import Advance
from amct_onnx.progress import Progress
from amct_onnx.run.threads import AHEAD, one_blas_thread, run_side_by_side

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundingJob(Generic[Outcome]):
    """The rounding of one layer.

    solve: gives what becomes of the weight. It runs on a thread of its own, tells what it has done by the function that
    it is given, lets through what that raises, and raises ValueError where the weight cannot be rounded. size: its part
    of the whole work.
    """

    layer: str
    solve: Callable[[Advance], Outcome]
    size: int = 1


def round_layers(
    jobs: Iterable[RoundingJob[Outcome]],
    *,
    total: int,
    workers: int,
    what: str,
    progress: Progress,
    ahead: int = AHEAD,
    engine: Engine = HERE,
) -> dict[str, Outcome]:
    """What each job gives, by layer, in the order of `jobs`; `workers` run at a time.

    jobs: may be computed while others run, on the thread of the caller; not more than `ahead` wait to be run. total:
    the sum of their sizes. what: the name of the work, for `progress`. engine: where it has others, they do the jobs,
    which then can be pickled.

    Where a job fails, or the caller is interrupted, those that run end with their next call of `advance`, and the
    others never begin. Raises CalibrationError for a weight that cannot be rounded, and whatever a job raises.
    """
    if not engine.alone:
        return _round_elsewhere(jobs, total, what, progress, engine)
    stop, lock = threading.Event(), threading.Lock()
    failures: list[BaseException] = []
    done, shown = 0.0, -1

    def add(part: float) -> None:
        nonlocal done, shown
        if stop.is_set():
            raise InterruptedError
        with lock:
            done += part
            per_mille = int(1000 * done / total)
            if shown < per_mille < 1000:  # the end is told when all threads have ended
                shown = per_mille
                progress(what, done / total)

    def run(job: RoundingJob[Outcome]) -> Outcome:
        told = 0.0

        def advance(share: float) -> None:
            nonlocal told
            told += share
            add(share * job.size)

        try:
            outcome = _solve(job, advance)
            advance(max(1 - told, 0))
        except BaseException as error:
            failures.append(error)
            stop.set()
            raise
        return outcome

    found: dict[str, Outcome] = {}
    try:
        side_by_side = run_side_by_side(run, jobs, workers, ahead=ahead, stop=stop)
        with one_blas_thread(), closing(side_by_side) as running:
            for job, outcome in running:
                found[job.layer] = outcome.result()
    except InterruptedError:
        raise failures[0] from failures[0].__cause__  # the job was told to stop because of this one
    finally:
        progress(what, 1.0)
    return found


def _round_elsewhere(
    jobs: Iterable[RoundingJob[Outcome]], total: int, what: str, progress: Progress, engine: Engine
) -> dict[str, Outcome]:
    given: deque[tuple[str, int]] = deque()  # their layers and sizes

    def sent() -> Iterator[RoundingJob[Outcome]]:
        for job in jobs:
            given.append((job.layer, job.size))
            yield job

    work: _Rounding[Outcome] = _Rounding()
    found: dict[str, Outcome] = {}
    done = 0
    try:
        with closing(engine.map(work, sent())) as outcomes:
            for outcome in outcomes:
                layer, size = given.popleft()
                found[layer] = outcome
                done += size
                progress(what, min(done / total, 0.999))
    finally:
        progress(what, 1.0)
    return found


class _Rounding(Generic[Outcome]):
    """The work of rounding layers."""

    @contextmanager
    def open(self) -> Iterator[Callable[[RoundingJob[Outcome]], Outcome]]:
        with one_blas_thread():
            yield lambda job: _solve(job, _nothing)


def _nothing(_: float) -> None:
    """Tells nobody how far a job is."""


def _solve(job: RoundingJob[Outcome], advance: Advance) -> Outcome:
    try:
        return job.solve(advance)
    except AmctError:  # some are ValueErrors, and say themselves what is wrong
        raise
    except ValueError as error:
        raise CalibrationError(f'Layer "{job.layer}" cannot be rounded: {error}.') from error
