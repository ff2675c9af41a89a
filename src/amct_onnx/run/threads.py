"""Keep numpy's BLAS library on one thread while many small matrices are multiplied.

The threads of a BLAS library wait for each other in every product. On a machine that is busy with other things, such
as with ONNX Runtime's own threads, learning to round a small network then takes twenty times as long. Work that has
several parts runs them on threads of its own instead. Results are the same either way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

_lock = threading.Lock()
_inside = 0
_limits: Any = None


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS has one thread in the whole process until the last of the blocks that run at the same time has ended."""
    global _inside, _limits  # noqa: PLW0603  the setting belongs to the process
    with _lock:
        if _inside == 0:
            _limits = _libraries().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limits.restore_original_limits()


@cache
def _libraries() -> Any:
    """The native libraries that this process has loaded. Finding them takes milliseconds, and numpy's stays."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
