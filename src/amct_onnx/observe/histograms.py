"""The histograms of chosen tensors over all data: what ONNX Runtime computes is counted where it lies, in one pass.

Batches run side by side, each on a thread of its own that computes and counts in turn. That is faster than several
threads for one batch, which wait for each other after each node; and a histogram does not depend on who counts what.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, islice
from types import MappingProxyType

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.engine.processors import processors
from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.accumulator import Accumulator, new_accumulator
from amct_onnx.numerics.statistics.histogram import NOT_FINITE, DyadicHistogram
from amct_onnx.observe.operators import MOST_WORKERS, run_showing, showing_session
from amct_onnx.run.session import run_feed
from amct_onnx.run.threads import run_side_by_side

NOTHING: Mapping[str, DyadicHistogram] = MappingProxyType({})
_log = logging.getLogger("amct_onnx.Calibration")


def collect_statistics(
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Feed],
    *,
    progress: Callable[[int], None] | None = None,
    counted: Mapping[str, DyadicHistogram] = NOTHING,
    before: int = 0,
) -> dict[str, DyadicHistogram]:
    """The histogram of each named tensor over all `feeds`, in the order of `names`.

    `model` is left as it is; `names` are float tensors of its main graph. Each of `feeds` has the inputs of one run, by
    name, and may have shapes of its own; some are read ahead. `progress` is told how many are done, after each. The
    histograms do not depend on how the data is cut into feeds, nor on the number of threads. That of a tensor without
    elements in all feeds is empty; that of a tensor with NaN or Inf is `not_finite`, and the log tells in which feed
    that began. counted: of `before` feeds in front of these, what is counted already; then there need be no more.

    Raises ModelError for a name that is no float tensor of the model, CalibrationError if ONNX Runtime cannot run the
    model, and DataError for a feed that is refused, or if there is none; the number of the feed, from 1 on, is named.
    """
    if not names:
        return {}
    source = iter(feeds)
    first = list(islice(source, side_by_side()))
    if counted and not first:
        return {name: counted[name] for name in names}
    done = 0
    with counting(model, names, max(1, len(first))) as counter:
        for done in counter.run(enumerate(chain(first, source), 1 + before)):
            if progress is not None:
                progress(done)
        found = counter.take()
    if not done:
        raise DataError("There are no calibration data: give at least one batch.")
    return {name: counted[name].merge(histogram) for name, histogram in found.items()} if counted else found


def side_by_side() -> int:
    """How many feeds run at a time, where there are as many."""
    return min(processors(), MOST_WORKERS)


@contextmanager
def counting(model: ir.Model, names: Sequence[str], workers: int) -> Iterator[TensorCounter]:
    """A counter of these tensors, as `collect_statistics` takes them, which runs `workers` feeds at a time; it has one
    session as long as the block runs. Raises ModelError or CalibrationError."""
    threads = processors()
    counters = {name: new_accumulator(min(max(1, threads // workers) * workers, 16)) for name in names}
    with showing_session(model, counters, workers) as session:
        yield TensorCounter(model, session, counters, workers)


class TensorCounter:
    """Counts what tensors of one model hold. It may count for one part of the data after the other."""

    def __init__(
        self, model: ir.Model, session: ort.InferenceSession, counters: Mapping[str, Accumulator], workers: int
    ) -> None:
        self._model, self._session, self._counters, self._workers = model, session, counters, workers
        self._told = set[str]()  # tensors with NaN or Inf

    def run(self, feeds: Iterable[tuple[int, Feed]]) -> Generator[int, None, None]:
        """Count for feeds that come with their number, which errors name; the number of each that is done, in their
        order. Raises DataError for a feed that is refused, and CalibrationError for a tensor that cannot be counted."""
        with closing(run_side_by_side(self._run, feeds, self._workers)) as runs:
            for (number, feed), running in runs:
                if suspects := [name for name in running.result() if name not in self._told]:
                    self._told.update(_tell(self._model, suspects, feed, number))
                yield number

    def _run(self, item: tuple[int, Feed]) -> list[str]:
        """Run a feed. The tensors that were wrong, in this one, before, or meanwhile."""
        return _run(self._counters, self._session, item)

    def histograms(self) -> dict[str, DyadicHistogram]:
        """What was counted since the last `take`, by tensor. Nothing may run meanwhile."""
        return {name: counter.histogram() for name, counter in self._counters.items()}

    def take(self) -> dict[str, DyadicHistogram]:
        """The same, and begin again with nothing counted."""
        return take_histograms(self._counters)


def take_histograms(counters: Mapping[str, Accumulator]) -> dict[str, DyadicHistogram]:
    """What was counted, by tensor; the counters begin again with nothing. Nothing may run meanwhile."""
    found = {name: counter.histogram() for name, counter in counters.items()}
    for counter in counters.values():
        counter.clear()
    return found


def _run(accumulators: Mapping[str, Accumulator], session: ort.InferenceSession, item: tuple[int, Feed]) -> list[str]:
    """Run a feed, which comes with its number. The tensors that were wrong, in this one, before, or meanwhile."""
    number, feed = item
    run_feed(session, feed, where=f"Batch {number}: ", what="the model with it")
    return [name for name, accumulator in accumulators.items() if accumulator.wrong]


def _tell(model: ir.Model, names: Sequence[str], feed: Feed, number: int) -> list[str]:
    """Which of the tensors hold NaN or Inf in this feed, which runs once more, alone. Raises CalibrationError for one
    that cannot be counted at all."""
    accumulators = {name: new_accumulator(1) for name in names}
    runs = list(run_showing(model, accumulators, partial(_run, accumulators), [(number, feed)], 1))
    found = runs[0][1]
    for name in found:
        text = f"Tensor {name} of batch {number}: {accumulators[name].wrong}"
        if accumulators[name].wrong != NOT_FINITE:
            raise CalibrationError(text)
        _log.info("%s", text)
    return found
