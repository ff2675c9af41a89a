"""Run a calibration model with the batches of data folders."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amct_onnx.data.raw_folders import BatchFiles
from amct_onnx.errors import CalibrationError
from amct_onnx.observe.calibration import check
from amct_onnx.observe.operators import session_options
from amct_onnx.run.session import open_session, quiet, run_feed


def run_batches(model_path: str, batches: BatchFiles, record_path: str) -> Iterator[int]:
    """Run every batch through the calibration model at `model_path`, which reports to `record_path`.

    Yields the number of batches that are done, after each. Raises CalibrationError if the model cannot be opened, and
    DataError with the files of a batch that it refuses.
    """
    options, cannot = quiet(session_options()), "open the calibration model"
    session = open_session(model_path, options, cannot=cannot, error=CalibrationError)
    for index, files in enumerate(batches.files):
        arrays = batches.read(index)
        with _deferred_signals():
            run_feed(session, arrays, where=f"{', '.join(map(str, files))}: ", what="the model with this batch")
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
