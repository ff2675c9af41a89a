"""Makes the next items of a generator in a background thread while the caller uses the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """`items` in their order, made by one thread that is at most `depth` items ahead of the caller. No item is None.

    An error of `items` is raised here. When iteration ends, is abandoned or is interrupted, the thread finishes the
    item that it is making, closes `items`, and ends before this generator does.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="amct_onnx data") as thread:
        made = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := made.popleft().result()) is not None:
                made.append(thread.submit(next, items, None))
                yield item
                del item  # a batch that was used is freed before the next one is waited for
        finally:
            for waiting in made:
                waiting.cancel()
            thread.submit(items.close)
