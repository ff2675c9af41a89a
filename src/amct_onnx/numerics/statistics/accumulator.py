"""A histogram that is added to in place: what counts a tensor while a model runs.

`CompiledTally` is counted by `_accumulator`, a small optional C extension, which an operator can call without Python.
`Tally` gives the same numbers without it, more slowly. A test holds the two together.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from amct_onnx.errors import CalibrationError
from amct_onnx.numerics.statistics.histogram import EMPTY, MAX_BINS, NOT_FINITE, DyadicHistogram

_tally: Any
try:
    _tally = import_module("amct_onnx.numerics.statistics._accumulator")
except ImportError:  # built without a compiler
    _tally = None

Floats = npt.NDArray[np.float32]
_WRONG = {1: NOT_FINITE, 2: EMPTY, 4: "there is no memory to count it"}


class Counter(Protocol):
    """Counts arrays of any shape, from several threads at once. Once an array was wrong, the histogram is as well."""

    def add(self, x: Floats) -> None:
        """Count the elements of `x`, which is valid during the call only. Never raises: see `wrong`."""

    @property
    def wrong(self) -> str:
        """What was wrong with an array: it was empty or held NaN or Inf; "" if nothing was."""

    def histogram(self) -> DyadicHistogram:
        """All that was counted. Nobody may add meanwhile."""


class Tally:
    """Counts with numpy."""

    def __init__(self) -> None:
        self._histogram, self._wrong = DyadicHistogram.empty(), ""
        self._lock = threading.Lock()

    @property
    def wrong(self) -> str:
        return self._wrong

    def add(self, x: Floats) -> None:
        with self._lock:
            try:
                self._histogram = self._histogram.add(x)
            except CalibrationError as error:
                self._wrong = str(error)
            except BaseException as error:  # one that leaves an operator ends the process
                self._wrong = f"{type(error).__name__}: {error}"

    def histogram(self) -> DyadicHistogram:
        return self._histogram


class CompiledTally:
    """Counts in C, with tables for `parts` threads at a time: at most 64 KiB each, and twice that from 2^32 values on.

    `address` is what `function` of the extension takes, valid as long as this object is.
    """

    def __init__(self, parts: int) -> None:
        self._parts, self._handle = parts, _tally.new(parts)
        self.address: int = _tally.address(self._handle)

    @property
    def wrong(self) -> str:
        flags = _tally.wrong(self._handle)
        return next((text for flag, text in _WRONG.items() if flags & flag), "")

    def add(self, x: Floats) -> None:
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        _tally.show(self._handle, flat.ctypes.data, flat.size)

    def histogram(self) -> DyadicHistogram:
        result, counts = DyadicHistogram.empty(), np.empty(MAX_BINS, np.int64)
        for part in range(self._parts):
            table = _tally.read(self._handle, part, counts.ctypes.data)
            if table is not None:
                exponent, low, minimum, maximum = table
                result = result.merge(DyadicHistogram.of_bins(exponent, low, counts, minimum, maximum))
        return result


def compiled_function() -> int:
    """Address of the C function that adds to a CompiledTally, 0 if there is none."""
    return 0 if _tally is None else int(_tally.function)


def new_tally(parts: int) -> Tally | CompiledTally:
    """A tally that is fast with `parts` threads, 1 to 16."""
    return Tally() if _tally is None else CompiledTally(parts)
