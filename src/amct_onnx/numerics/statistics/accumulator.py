"""A histogram that grows in place: what counts a tensor while a model runs.

`CompiledAccumulator` counts with `_accumulator`, a small optional C extension that an operator can call without Python.
`NumpyAccumulator` gives the same numbers without it, more slowly. A test holds the two together.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any

import numpy as np

from amct_onnx.errors import CalibrationError
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.statistics.histogram import MAX_BINS, NOT_FINITE, DyadicHistogram

# The C module; None where there is none, and Python does its work.
compiled: Any
try:
    compiled = import_module("amct_onnx.numerics.statistics._accumulator")
except ImportError:  # built without a compiler
    compiled = None

_WRONG = {1: NOT_FINITE, 4: "there is no memory to count it"}


class NumpyAccumulator:
    """Counts arrays of any shape, from several threads at once. Once an array was wrong, the histogram is as well."""

    def __init__(self) -> None:
        self._histogram, self._wrong = DyadicHistogram.empty(), ""
        self._lock = threading.Lock()

    @property
    def wrong(self) -> str:
        """What was wrong with an array: it held NaN or Inf; "" if nothing was."""
        return self._wrong

    def add(self, x: Floats) -> None:
        """Count the elements of `x`, if it has some. It is valid during the call only.

        Raises no `Exception`: see `wrong`.
        """
        with self._lock:
            try:
                self._histogram = self._histogram.merge(DyadicHistogram.of(x))
            except CalibrationError as error:
                self._wrong = str(error)
            except Exception as error:  # an operator that adds may let nothing out
                self._wrong = f"{type(error).__name__}: {error}"

    def histogram(self) -> DyadicHistogram:
        """All that was counted: `not_finite` where an array held NaN or Inf. Nobody may add meanwhile."""
        return DyadicHistogram.not_finite() if self._wrong == NOT_FINITE else self._histogram

    def clear(self) -> None:
        """Begin again, with nothing counted. Nobody may add meanwhile."""
        self._histogram, self._wrong = DyadicHistogram.empty(), ""


class CompiledAccumulator:
    """Does the same in C, with a table for each of `parts` threads: 64 KiB of memory, and 192 KiB from 2^32 values on.

    `address` is what the C function of `compiled_functions` takes, valid as long as this object is.
    """

    def __init__(self, parts: int) -> None:
        self._parts, self._handle = parts, compiled.new(parts)
        self.address: int = compiled.address(self._handle)

    @property
    def wrong(self) -> str:
        flags = compiled.wrong(self._handle)
        return next((text for flag, text in _WRONG.items() if flags & flag), "")

    def add(self, x: Floats) -> None:
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        compiled.add(self._handle, flat.ctypes.data, flat.size)

    def histogram(self) -> DyadicHistogram:
        if self.wrong == NOT_FINITE:
            return DyadicHistogram.not_finite()
        result, counts = DyadicHistogram.empty(), np.empty(MAX_BINS, np.int64)
        for part in range(self._parts):
            table = compiled.read(self._handle, part, counts.ctypes.data)
            if table is not None:
                exponent, low, minimum, maximum = table
                result = result.merge(DyadicHistogram.of_bins(exponent, low, counts, minimum, maximum))
        return result

    def clear(self) -> None:
        compiled.clear(self._handle)


Accumulator = NumpyAccumulator | CompiledAccumulator


def compiled_functions() -> tuple[int, int]:
    """Addresses of the C functions that add to a CompiledAccumulator and that lend it threads; zeros without them."""
    return (0, 0) if compiled is None else (compiled.add_function, compiled.lend_function)


def new_accumulator(parts: int) -> Accumulator:
    """An accumulator that is fast with `parts` threads, 1 to 16."""
    return NumpyAccumulator() if compiled is None else CompiledAccumulator(parts)
