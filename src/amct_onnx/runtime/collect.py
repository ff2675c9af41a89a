"""Statistics of tensors in one pass over the data: what ONNX Runtime computes is counted where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.core.stats.histogram import DyadicHistogram
from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.graph.passes.tallies import tally_model
from amct_onnx.runtime.interrupts import deferred_signals
from amct_onnx.runtime.observer_op import session_options
from amct_onnx.runtime.session import QUIET, SessionError, one_line, open_session
from amct_onnx.runtime.tallies import Tally, tallying

Feeds = Iterable[Mapping[str, npt.NDArray[Any]]]


def collect_statistics(
    model: ir.Model,
    names: Sequence[str],
    feeds: Feeds,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, DyadicHistogram]:
    """The histogram of each named tensor over all `feeds`, in the order of `names`.

    `model` is left as it is; `names` are float tensors of its main graph. Each of `feeds` has the inputs of one run, by
    name, and may have shapes of its own; `progress` is told how many are done, after each. The histograms do not depend
    on how the data is cut into feeds, nor on the number of threads.

    Raises ModelError for a name that is no float tensor of the model, CalibrationError if ONNX Runtime cannot run the
    model, or for a tensor that is empty or holds NaN or Inf, and DataError for a feed that is refused, or if there is
    none; the number of the feed, from 1 on, is named.
    """
    with tallying(names) as tallies:
        numbers = {name: number for name, (number, _) in tallies.items()}
        observed = tally_model(model, numbers)
        options = session_options()
        options.log_severity_level = QUIET
        try:
            session = open_session(observed, None, options)
        except SessionError as error:
            raise CalibrationError(f"ONNX Runtime cannot run the model for calibration: {error}") from error
        del observed
        count = 0
        for count, feed in enumerate(feeds, 1):
            _run(session, feed, count)
            _check({name: tally for name, (_, tally) in tallies.items()}, count)
            if progress is not None:
                progress(count)
    if not count:
        raise DataError("There are no calibration data: give at least one batch.")
    return {name: tally.histogram for name, (_, tally) in tallies.items()}


def _run(session: Any, feed: Mapping[str, npt.NDArray[Any]], number: int) -> None:
    try:
        with deferred_signals():
            session.run(None, dict(feed))
    except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
        text = f"Batch {number}: ONNX Runtime cannot run the model with it: {one_line(reason)}"
        raise DataError(text) from reason


def _check(tallies: Mapping[str, Tally], number: int) -> None:
    for name, tally in tallies.items():
        if tally.error:
            raise CalibrationError(f"Tensor {name} of batch {number}: {tally.error}")
        if tally.batches != number:
            raise CalibrationError(f"Tensor {name} of batch {number}: ONNX Runtime did not compute it")
