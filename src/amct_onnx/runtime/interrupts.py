"""Ctrl-C and SIGTERM while ONNX Runtime runs a model with operators of ours."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_signals() -> Iterator[None]:
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
