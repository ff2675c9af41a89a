"""Run a calibration model with the batches of data folders."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnxruntime as ort

from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.runtime.calibration import check
from amct_onnx.runtime.data import BatchFiles
from amct_onnx.runtime.interrupts import deferred_signals
from amct_onnx.runtime.observer_op import session_options
from amct_onnx.runtime.session import QUIET, one_line


def feed(model_path: str, batches: BatchFiles, record_path: str) -> Iterator[int]:
    """Run every batch through the calibration model at `model_path`, which reports to `record_path`.

    Yields the number of batches that are done, after each. Raises CalibrationError if the model cannot be opened, and
    DataError with the files of a batch that it refuses.
    """
    options = session_options()
    options.log_severity_level = QUIET
    try:
        session = ort.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
    except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
        raise CalibrationError(f"ONNX Runtime cannot open the calibration model: {one_line(reason)}") from reason
    for index, files in enumerate(batches.files):
        arrays = batches.read(index)
        try:
            with deferred_signals():
                session.run(None, arrays)
        except Exception as reason:
            names = ", ".join(map(str, files))
            text = f"{names}: ONNX Runtime cannot run the model with this batch: {one_line(reason)}"
            raise DataError(text) from reason
        check(os.path.realpath(record_path))
        yield index + 1
