"""Run a calibration model with the batches of data folders."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnxruntime as ort

from amct_onnx.data.raw_folders import BatchFiles
from amct_onnx.errors import CalibrationError, DataError
from amct_onnx.observe.calibration import check
from amct_onnx.observe.operators import session_options
from amct_onnx.run.session import QUIET, one_line


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
            with _deferred_signals():
                session.run(None, arrays)
        except Exception as reason:
            names = ", ".join(map(str, files))
            text = f"{names}: ONNX Runtime cannot run the model with this batch: {one_line(reason)}"
            raise DataError(text) from reason
        check(os.path.realpath(record_path))
        yield index + 1


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block: a Python handler could otherwise raise inside an operator."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[tuple[int, Any]] = []
    handlers = {waiting: signal.getsignal(waiting) for waiting in (signal.SIGINT, signal.SIGTERM)}
    deferred = {waiting: handler for waiting, handler in handlers.items() if callable(handler)}
    for waiting in deferred:
        signal.signal(waiting, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        for waiting, handler in deferred.items():
            signal.signal(waiting, handler)
    for number, frame in arrived[:1]:
        deferred[signal.Signals(number)](number, frame)
