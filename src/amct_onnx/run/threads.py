"""Work on several threads, and numpy's BLAS library kept on one.

The threads of a BLAS library wait for each other in every product. On a machine that is busy with other things, such
as with ONNX Runtime's own threads, learning to round a small network then takes twenty times as long. Work that has
several parts runs them on threads of its own instead. Results are the same either way.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Items that are read ahead of those that run, where nobody says how many.
AHEAD = 2

_lock = threading.Lock()
_inside = 0
_limits: Any = None


def run_side_by_side(
    run: Callable[[Item], Outcome],
    items: Iterable[Item],
    workers: int,
    *,
    ahead: int = AHEAD,
    stop: threading.Event | None = None,
) -> Generator[tuple[Item, Future[Outcome]], None, None]:
    """Each of `items` and what becomes of `run` with it, in their order; `workers` run at a time, `ahead` wait.

    At the end, also that of an error or of Ctrl-C, what runs is waited for and what waits is dropped. `stop` is set
    before that: by it `run` may know that nobody wants what it computes.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="amct_onnx")
    waiting: deque[tuple[Item, Future[Outcome]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(run, item)))
            if len(waiting) >= workers + ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        if stop is not None:
            stop.set()
        pool.shutdown(cancel_futures=True)


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
