"""The largest magnitude of each channel of tensors, over a few samples."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import onnx_ir as ir

from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.observe.histograms import MOST_WORKERS
from amct_onnx.observe.operators import open_showing
from amct_onnx.observe.shown_tensors import showing
from amct_onnx.run.session import run_feed
from amct_onnx.run.threads import processors, run_side_by_side


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
    with showing(readers) as numbers:
        session = open_showing(model, numbers, threads=max(1, processors() // workers))
        with closing(run_side_by_side(partial(run_feed, session), feeds, workers)) as runs:
            for _, running in runs:
                running.result()
        del session, runs
    found = {name: reader.largest for name, reader in readers.items() if reader.largest is not None}
    return {name: largest for name, largest in found.items() if np.isfinite(largest).all()}
