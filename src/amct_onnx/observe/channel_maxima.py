"""The largest magnitude of each channel of tensors, over a few samples."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from amct_onnx.engine.processors import processors
from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.observe.operators import MOST_WORKERS, run_showing
from amct_onnx.run.session import run_feed

Name = TypeVar("Name", bound=Hashable)


class ChannelReader:
    """Reads one tensor where it lies, in whatever thread. axis: where its channels are, from the end if negative."""

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
    readers = {name: ChannelReader(axis) for name in tensors}
    for _ in run_showing(model, readers, run_feed, feeds, min(processors(), MOST_WORKERS)):
        pass
    return finite_maxima(readers)


def finite_maxima(readers: Mapping[Name, ChannelReader]) -> dict[Name, Floats]:
    """What readers have found so far, without those that have seen nothing, or NaN or Inf."""
    found = {name: reader.largest for name, reader in readers.items() if reader.largest is not None}
    return {name: largest for name, largest in found.items() if np.isfinite(largest).all()}
