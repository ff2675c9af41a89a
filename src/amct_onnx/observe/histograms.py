"""The histograms of chosen tensors over all data: what ONNX Runtime computes is counted where it lies, in one pass.

Batches run side by side, each on a thread of its own that computes and counts in turn. That is faster than several
threads for one batch, which wait for each other after each node; and a histogram does not depend on who counts what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.accumulator import Accumulator, new_accumulator
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe.operators import MOST_WORKERS, run_showing
from amct_onnx.run.session import run_feed
from amct_onnx.run.threads import processors


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
    histograms do not depend on how the data is cut into feeds, nor on the number of threads. That of a tensor without
    elements in all feeds is empty.

    Raises ModelError for a name that is no float tensor of the model, CalibrationError if ONNX Runtime cannot run the
    model, or for a tensor that holds NaN or Inf, and DataError for a feed that is refused, or if there is none; the
    number of the feed, from 1 on, is named.
    """
    if not names:
        return {}
    source, threads = iter(feeds), processors()
    first = list(islice(source, min(threads, MOST_WORKERS)))
    workers, numbered = max(1, len(first)), enumerate(chain(first, source), 1)
    accumulators = {name: new_accumulator(min(threads // workers * workers, 16)) for name in names}
    done = 0
    with closing(run_showing(model, accumulators, partial(_run, accumulators), numbered, workers)) as runs:
        for (done, feed), is_wrong in runs:
            if is_wrong:
                _check(model, names, feed, done)
            if progress is not None:
                progress(done)
    if not done:
        raise DataError("There are no calibration data: give at least one batch.")
    return {name: accumulator.histogram() for name, accumulator in accumulators.items()}


def _run(accumulators: Mapping[str, Accumulator], session: ort.InferenceSession, item: tuple[int, Feed]) -> bool:
    """Run a feed, which comes with its number. True if a tensor was wrong, in this one or in one that ran meanwhile."""
    number, feed = item
    run_feed(session, feed, where=f"Batch {number}: ", what="the model with it")
    return any(accumulator.wrong for accumulator in accumulators.values())


def _check(model: ir.Model, names: Sequence[str], feed: Feed, number: int) -> None:
    """Raise CalibrationError if a tensor of this feed is wrong: it runs once more, alone."""
    accumulators = {name: new_accumulator(1) for name in names}
    for _ in run_showing(model, accumulators, partial(_run, accumulators), [(number, feed)], 1):
        pass
    for name, accumulator in accumulators.items():
        if accumulator.wrong:
            raise CalibrationError(f"Tensor {name} of batch {number}: {accumulator.wrong}")
