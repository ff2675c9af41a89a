"""Makes the next items of a generator in a background thread while the caller uses the one before."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """`items` in their order, made by one thread that is at most `depth` items ahead of the caller.

    An error of `items` is raised here. When iteration ends, is abandoned or is interrupted, the thread finishes the
    item that it is making, closes `items`, and ends before this generator does.
    """
    done: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()  # None: that was the last one
    slots = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while slots.acquire() and not stopped.is_set():
                done.put((next(items),))
        except StopIteration:
            done.put(None)
        except BaseException as reason:
            done.put(reason)
        finally:
            items.close()

    thread = threading.Thread(target=work, name="amct_onnx data", daemon=True)
    thread.start()
    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            slots.release()
            yield item[0]
            del item  # a batch that was used is freed before the next one is waited for
    finally:
        stopped.set()
        slots.release()
        thread.join()
