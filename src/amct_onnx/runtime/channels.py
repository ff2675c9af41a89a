"""The largest magnitude of each channel of tensors, over a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.runtime.session import QUIET, SessionError, one_line, open_session

Floats = npt.NDArray[np.float32]
Feed = Mapping[str, npt.NDArray[Any]]


def channel_maxima(
    model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feed], *, axis: int = 1
) -> dict[str, Floats]:
    """float32[C] for each of `tensors` of the main graph, by name; those that hold NaN or Inf are left out.

    axis: where the channels are, from the end if negative.

    `model` stays as it is. Raises CalibrationError or DataError where ONNX Runtime cannot run it.
    """
    view = model.clone()
    values = {value.name: value for node in view.graph for value in node.outputs}
    known = {value.name for value in view.graph.outputs}
    view.graph.outputs.extend(values[name] for name in tensors if name not in known)
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    try:
        session = open_session(view, None, options)
    except SessionError as error:
        raise CalibrationError(f"ONNX Runtime cannot run the model for calibration: {error}") from error
    maxima: dict[str, Floats] = {}
    for feed in feeds:
        try:
            found = session.run(list(tensors), dict(feed))
        except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
            raise DataError(f"ONNX Runtime cannot run the model with a sample: {one_line(reason)}") from reason
        for name, array in zip(tensors, found, strict=True):
            axes = tuple(other for other in range(array.ndim) if other != axis % array.ndim)
            largest = np.maximum(array.max(axis=axes), -array.min(axis=axes))
            maxima[name] = np.maximum(maxima[name], largest) if name in maxima else largest
    return {name: largest for name, largest in maxima.items() if np.isfinite(largest).all()}
