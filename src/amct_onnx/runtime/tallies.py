"""The tensors that are counted in this process: what a node `Tally` shows goes to the tally of its number."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from amct_onnx.core.stats.histogram import DyadicHistogram
from amct_onnx.errors import CalibrationError


class Tally:
    """The histogram of one tensor, which may be shown from several threads at once.

    What is wrong with a batch is kept in `error`; such a batch is not counted.
    """

    def __init__(self) -> None:
        self.histogram, self.error = DyadicHistogram.empty(), ""
        self.batches = 0
        self._lock = threading.Lock()

    def add(self, x: npt.NDArray[np.float32]) -> None:
        """Count the elements of `x`, which is valid during the call only. Never raises, but for Ctrl-C."""
        with self._lock:
            try:
                self.histogram = self.histogram.add(x)
                self.batches += 1
            except CalibrationError as error:
                self.error = str(error)
            except Exception as error:  # an exception that leaves an operator ends the process
                self.error = f"{type(error).__name__}: {error}"


_running: dict[int, Tally] = {}
_numbers = itertools.count(1)


@contextmanager
def tallying(names: Sequence[str]) -> Iterator[dict[str, tuple[int, Tally]]]:
    """A new tally, with its number, for each name; nodes of these numbers fill them while the block runs."""
    tallies = {name: (next(_numbers), Tally()) for name in names}
    _running.update(tallies.values())
    try:
        yield tallies
    finally:
        for number, _ in tallies.values():
            del _running[number]


def show(x: npt.NDArray[np.float32], attributes: Mapping[str, Any]) -> None:
    """Body of the operator; a number that is not in use is ignored."""
    tally = _running.get(int(attributes["input_index"]))
    if tally is not None:
        tally.add(x)
