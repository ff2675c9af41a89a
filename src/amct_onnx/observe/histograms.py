"""The histograms of chosen tensors over all data: what ONNX Runtime computes is counted where it lies, in one pass.

Batches run side by side, each on a thread of its own that computes and counts in turn. That is faster than several
threads for one batch, which wait for each other after each node; and a histogram does not depend on who counts what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, islice

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.accumulator import Accumulator
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe.operators import open_showing
from amct_onnx.observe.shown_tensors import counting
from amct_onnx.run.session import run_feed
from amct_onnx.run.threads import processors, run_side_by_side

# Batches that run side by side at most: the activations of each are in memory.
MOST_WORKERS = 4


def collect_statistics(
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Feed],
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, DyadicHistogram]:
    """The histogram of each named tensor over all `feeds`, in the order of `names`.

    `model` is left as it is; `names` are float tensors of its main graph. Each of `feeds` has the inputs of one run, by
    name, and may have shapes of its own; some are read ahead. `progress` is told how many are done, after each. The
    histograms do not depend on how the data is cut into feeds, nor on the number of threads.

    Raises ModelError for a name that is no float tensor of the model, CalibrationError if ONNX Runtime cannot run the
    model, or for a tensor that is empty or holds NaN or Inf, and DataError for a feed that is refused, or if there is
    none; the number of the feed, from 1 on, is named.
    """
    if not names:
        return {}
    source, threads = iter(feeds), processors()
    first = list(islice(source, min(threads, MOST_WORKERS)))
    workers, numbered = max(1, len(first)), enumerate(chain(first, source), 1)
    with (
        _open(model, names, workers, threads // workers) as (session, accumulators),
        closing(run_side_by_side(partial(_run, session, accumulators), numbered, workers)) as runs,
    ):
        done = 0
        for (done, feed), running in runs:
            if running.result():
                _check(model, names, feed, done)
            if progress is not None:
                progress(done)
        if not done:
            raise DataError("There are no calibration data: give at least one batch.")
        return {name: accumulator.histogram() for name, accumulator in accumulators.items()}


@contextmanager
def _open(
    model: ir.Model, names: Sequence[str], workers: int, threads: int
) -> Iterator[tuple[ort.InferenceSession, dict[str, Accumulator]]]:
    """A session that counts the named tensors of `workers` batches at a time, each on `threads` threads."""
    with counting(names, min(workers * threads, 16)) as counted:
        session = open_showing(model, {name: number for name, (number, _) in counted.items()}, threads=threads)
        yield session, {name: accumulator for name, (_, accumulator) in counted.items()}


def _run(session: ort.InferenceSession, accumulators: Mapping[str, Accumulator], item: tuple[int, Feed]) -> bool:
    """Run a feed, which comes with its number. True if a tensor was wrong, in this one or in one that ran meanwhile."""
    number, feed = item
    run_feed(session, feed, where=f"Batch {number}: ", what="the model with it")
    return any(accumulator.wrong for accumulator in accumulators.values())


def _check(model: ir.Model, names: Sequence[str], feed: Feed, number: int) -> None:
    """Raise CalibrationError if a tensor of this feed is wrong: it runs once more, alone."""
    with _open(model, names, 1, 1) as (session, accumulators):
        _run(session, accumulators, (number, feed))
        for name, accumulator in accumulators.items():
            if accumulator.wrong:
                raise CalibrationError(f"Tensor {name} of batch {number}: {accumulator.wrong}")
