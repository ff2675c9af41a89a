"""Comparing the outputs of layers before and after quantization while the user's session runs.

Each observer shows a layer's two outputs of one batch, joined on axis 0. Nothing of them is kept: the user's measure
makes a number of them at once. The measure is an object of this process, so the batches must run in it too.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from amct_onnx.errors import CalibrationError
from amct_onnx.numerics.arrays import Floats
from amct_onnx.values.answers import to_number

COMPARE = "Compare"
Measure = Callable[[Floats, Floats], Any]


class Comparisons:
    """What one model's comparisons gave so far; batches beyond `batch_num` are ignored.

    The arrays that the measure gets are valid during its call only.
    """

    def __init__(self, measure: Measure, batch_num: int) -> None:
        self._measure, self._batch_num = measure, batch_num
        self._values: dict[str, list[float]] = {}
        self._error: tuple[str, BaseException] | None = None
        self._lock = threading.Lock()

    def add(self, layer: str, joined: Floats) -> None:
        """Compare one batch of one layer; what goes wrong is kept for `means`."""
        with self._lock:
            if not joined.size:  # nothing to compare in this batch
                return
            values = self._values.setdefault(layer, [])
            if self._error is not None or len(values) >= self._batch_num:
                return
            try:
                half = joined.shape[0] // 2
                values.append(to_number(self._measure(joined[:half], joined[half:]), "compare()"))
            except BaseException as error:  # an exception that leaves an operator ends the process
                self._error = layer, error

    def batches(self, layer: str) -> int:
        """How many batches of a layer were compared."""
        return len(self._values.get(layer, ()))

    def means(self) -> dict[str, float]:
        """The mean of each layer over its batches.

        Raises CalibrationError with the layer whose comparison failed; interrupts and exits pass unchanged.
        """
        if self._error is not None:
            layer, error = self._error
            if not isinstance(error, Exception):
                raise error
            text = f'Comparing the outputs of layer "{layer}" failed: {type(error).__name__}: {error}'
            raise CalibrationError(text) from error
        return {layer: math.fsum(values) / len(values) for layer, values in self._values.items()}


_running: dict[str, Comparisons] = {}


@contextmanager
def comparing(key: str, measure: Measure, batch_num: int) -> Iterator[Comparisons]:
    """While the block runs, observers whose record_file_path is `key` are compared by `measure`."""
    comparisons = _running[key] = Comparisons(measure, batch_num)
    try:
        yield comparisons
    finally:
        del _running[key]


def show(joined: Floats, attributes: Mapping[str, Any]) -> None:
    """Body of the operator; in a process that compares nothing, nothing happens."""
    comparisons = _running.get(str(attributes["record_file_path"]))
    if comparisons is not None:
        comparisons.add(json.loads(attributes["object_layers"])[0], joined)
