"""How long two sessions take for the same input, in interleaved runs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import onnxruntime as ort

from amct_onnx.numerics.arrays import Feed
from amct_onnx.run.session import run_feed

_LEAST_RUNS = 5
_MOST_RUNS = 500
# A model that takes this many seconds is run less often than _LEAST_RUNS.
LONG_RUN = 0.2
# Medians that differ by less are the same: a quiet machine repeats them to one or two percent.
NOISE = 0.02
_BUSY = 1.6  # quartiles of the speed-up whose ratio is larger tell of another one that computes


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Medians of `runs` runs each, in seconds.

    How many times as fast the second session was in single turns: middle is the median, and the middle half of the
    turns lies between low and high. None where there were too few turns.
    """

    before: float
    after: float
    runs: int
    low: float | None = None
    middle: float | None = None
    high: float | None = None

    @property
    def too_busy(self) -> bool:
        """Whether the machine had so much else to do that the figures say little."""
        return self.low is not None and self.high is not None and self.high > _BUSY * self.low

    @property
    def speedup(self) -> float:
        """How many times as fast the second session is: in the turns, since what slows one run down slows both."""
        return self.before / self.after if self.middle is None else self.middle

    @property
    def slower(self) -> bool:
        """Whether the second session is slower by more than noise; on a busy machine, in most turns."""
        in_most = not self.too_busy or (self.high is not None and self.high * (1 + NOISE) < 1)
        return in_most and self.speedup * (1 + NOISE) < 1


def measure_latency(
    before: ort.InferenceSession,
    after: ort.InferenceSession,
    feed: Feed,
    *,
    budget: float = 0.4,
) -> Latency:
    """Median latencies of `before` and `after` for `feed`, within about `budget` seconds for both.

    The sessions take turns, and change places each turn, so that whatever else the machine does meets both. There are
    at least five runs each, one to four if a run takes longer than 0.2 s. Raises DataError if one of
    them does not take `feed`.
    """
    sessions = (before, after)
    for session in sessions:  # the first run allocates
        run_feed(session, feed, what="the models with this input")
    times: tuple[list[float], list[float]] = ([], [])
    turn = [0, 1]
    start = time.perf_counter()
    while not _is_enough(times, time.perf_counter() - start, budget):
        for which in turn:
            begin = time.perf_counter()
            sessions[which].run(None, feed)
            times[which].append(time.perf_counter() - begin)
        turn.reverse()
    low, middle, high = _quartiles([one / two for one, two in zip(*times, strict=True)])
    before_median, after_median = map(statistics.median, times)
    return Latency(before=before_median, after=after_median, runs=len(times[0]), low=low, middle=middle, high=high)


def _quartiles(ratios: list[float]) -> tuple[float | None, float | None, float | None]:
    if len(ratios) < _LEAST_RUNS:
        return None, None, None
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def _is_enough(times: tuple[list[float], list[float]], elapsed: float, budget: float) -> bool:
    runs = len(times[0])
    if runs == 0:
        return False
    enough = _LEAST_RUNS if elapsed / runs < 2 * LONG_RUN else max(1, int(_LEAST_RUNS * 2 * LONG_RUN * runs / elapsed))
    return runs >= enough and (elapsed >= budget or runs >= _MOST_RUNS)
