"""The largest magnitude of each channel of tensors, over a few samples."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.graph.instrument.shown_tensors import show_tensors
from amct_onnx.observe.histograms import MOST_WORKERS, run_batch
from amct_onnx.observe.operators import session_options
from amct_onnx.observe.shown_tensors import showing
from amct_onnx.run.session import QUIET, SessionError, one_line, open_session
from amct_onnx.run.threads import processors, run_side_by_side

Floats = npt.NDArray[np.float32]
Feed = Mapping[str, npt.NDArray[Any]]


class _Reader:
    """Reads one tensor where it lies, in whatever thread."""

    def __init__(self, axis: int) -> None:
        self._axis, self._lock = axis, threading.Lock()
        self.largest: Floats | None = None

    def add(self, x: Floats) -> None:
        if not x.size or not x.ndim:
            return
        axes = tuple(other for other in range(x.ndim) if other != self._axis % x.ndim)
        largest = np.maximum(x.max(axis=axes), -x.min(axis=axes))
        with self._lock:
            if self.largest is None:
                self.largest = largest
            elif self.largest.shape == largest.shape:
                self.largest = np.maximum(self.largest, largest)
            else:
                self.largest = np.full(1, np.nan, np.float32)  # the number of channels is not fixed


def channel_maxima(
    model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feed], *, axis: int = 1
) -> dict[str, Floats]:
    """float32[C] for each of `tensors` of the main graph, by name; those that hold NaN or Inf are left out.

    axis: where the channels are, from the end if negative.

    `model` stays as it is. Raises CalibrationError or DataError where ONNX Runtime cannot run it.
    """
    readers = {name: _Reader(axis) for name in tensors}
    workers = min(processors(), MOST_WORKERS)
    options = session_options()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = max(1, processors() // workers)
    with showing(readers) as numbers:
        try:
            session = open_session(show_tensors(model, numbers), None, options)
        except SessionError as error:
            raise CalibrationError(f"ONNX Runtime cannot run the model for calibration: {error}") from error
        with closing(run_side_by_side(partial(run_batch, session), feeds, workers)) as runs:
            for _, running in runs:
                try:
                    running.result()
                except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
                    raise DataError(f"ONNX Runtime cannot run the model with a sample: {one_line(reason)}") from reason
        del session, runs
    found = {name: reader.largest for name, reader in readers.items() if reader.largest is not None}
    return {name: largest for name, largest in found.items() if np.isfinite(largest).all()}
