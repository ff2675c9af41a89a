"""Layers rounded side by side: the order of results, what progress tells, and how work ends that fails."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from amct_onnx.errors import CalibrationError, DataError, RecordValueError
from amct_onnx.numerics.weights.second_order import Advance
from amct_onnx.progress import silent
from amct_onnx.run.round_layers import RoundingJob, round_layers

Shown = list[tuple[str, float]]


def give(value: int, steps: int, advance: Advance) -> int:
    for _ in range(steps):
        advance(1 / steps)
    return value


def for_ever(begun: threading.Event, advance: Advance) -> int:
    begun.set()
    while True:
        advance(0.0)


def refuse(error: BaseException, others: threading.Event | None, advance: Advance) -> int:
    if others is not None:
        assert others.wait(10)
    raise error


def run(
    *solve: Callable[[Advance], int], workers: int = 2, shown: Shown | None = None, **options: int
) -> dict[str, int]:
    jobs = [RoundingJob(layer=f"layer{k}", solve=each, size=k + 1) for k, each in enumerate(solve)]
    total = sum(job.size for job in jobs)
    progress = silent if shown is None else lambda what, share: shown.append((what, share))
    return round_layers(jobs, total=total, workers=workers, what="rounding", progress=progress, **options)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 20])
def test_results_are_in_the_order_of_the_jobs(workers: int, ahead: int) -> None:
    found = run(*(partial(give, k, 3) for k in range(12)), workers=workers, ahead=ahead)
    assert list(found.items()) == [(f"layer{k}", k) for k in range(12)]


def test_progress_counts_the_sizes_of_the_layers_and_ends_once() -> None:
    shown: Shown = []
    run(partial(give, 0, 0), partial(give, 1, 4), partial(give, 2, 1), workers=1, shown=shown)
    assert {what for what, _ in shown} == {"rounding"}
    # A layer that tells nothing is done at its end; the second of 6 parts is told in quarters.
    assert [share for _, share in shown] == pytest.approx([1 / 6, 1.5 / 6, 2 / 6, 2.5 / 6, 3 / 6, 1])


def test_progress_is_told_in_tenths_of_a_percent() -> None:
    shown: Shown = []
    run(partial(give, 0, 50_000), workers=1, shown=shown)
    assert len(shown) <= 1001


def test_jobs_are_made_while_others_run_and_not_all_at_once() -> None:
    made: list[int] = []
    done: list[int] = []

    def solve(k: int, advance: Advance) -> int:
        done.append(k)
        return k

    def jobs() -> Iterator[RoundingJob[int]]:
        for k in range(30):
            made.append(k)
            assert len(made) <= len(done) + 3 + 4 + 1  # those that run, those that wait, and this one
            yield RoundingJob(layer=f"{k}", solve=partial(solve, k))

    assert len(round_layers(jobs(), total=30, workers=3, what="rounding", progress=silent, ahead=4)) == 30


def test_a_weight_that_cannot_be_rounded_is_named_and_the_others_end() -> None:
    begun, shown = threading.Event(), []
    reason = ValueError("the Gram matrix is odd")
    with pytest.raises(
        CalibrationError, match=r'^Layer "layer1" cannot be rounded: the Gram matrix is odd\.$'
    ) as found:
        run(partial(for_ever, begun), partial(refuse, reason, begun), partial(give, 1, 1), shown=shown)
    assert found.value.__cause__ is reason
    assert shown[-1] == ("rounding", 1.0)


def test_an_error_that_says_itself_what_is_wrong_stays_as_it_is() -> None:
    begun, error = threading.Event(), RecordValueError("r.txt: scale_w is wrong")
    with pytest.raises(RecordValueError) as found:
        run(partial(for_ever, begun), partial(refuse, error, begun))
    assert found.value is error


def test_what_the_jobs_are_made_of_may_fail() -> None:
    begun = threading.Event()

    def jobs() -> Iterator[RoundingJob[int]]:
        yield RoundingJob(layer="layer", solve=partial(for_ever, begun))
        assert begun.wait(10)
        raise DataError("Batch 2 is odd")

    with pytest.raises(DataError, match="Batch 2 is odd"):
        round_layers(jobs(), total=1, workers=2, what="rounding", progress=silent)


def test_an_interruption_of_the_caller_ends_what_runs_and_drops_what_waits() -> None:
    begun: list[int] = []

    def interrupt(k: int, advance: Advance) -> int:
        begun.append(k)
        while True:  # a signal that comes just before a thread begins to wait may be lost
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                advance(0.0)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(partial(give, 0, 1), *(partial(interrupt, k) for k in range(10)), workers=1, ahead=10)
    assert begun == [0]
    assert threading.active_count() == before
