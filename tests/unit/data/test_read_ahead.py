"""Items from a background thread: the same items, and no thread that stays."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.data.read_ahead import read_ahead


def threads() -> int:
    return sum(thread.name.startswith("amct_onnx data") for thread in threading.enumerate())


@given(st.lists(st.integers()), st.integers(1, 4))
def test_items_are_the_same_in_the_same_order(items: list[int], depth: int) -> None:
    assert list(read_ahead((item for item in items), depth)) == items
    assert threads() == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_at_most_depth_items_are_ahead(depth: int) -> None:
    made: list[int] = []
    waiting = threading.Event()

    def items() -> Generator[int, None, None]:
        for index in range(10):
            made.append(index)
            if len(made) == 1 + depth:
                waiting.set()
            yield index

    ahead = read_ahead(items(), depth)
    assert next(ahead) == 0
    assert waiting.wait(10)
    assert len(made) == 1 + depth
    assert list(ahead) == list(range(1, 10))


def test_an_error_arrives_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise KeyError("broken")

    got = []
    with pytest.raises(KeyError, match="broken"):
        got.extend(read_ahead(items(), 2))
    ahead = read_ahead(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(KeyError):
        next(ahead)
    assert threads() == 0


def test_abandoned_iteration_ends_the_thread_and_closes_the_items() -> None:
    closed = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    for item in read_ahead(items(), 2):
        if item == 3:
            break
    gc.collect()
    assert threads() == 0
    assert closed == ["amct_onnx data_0"]


def test_ctrl_c_while_waiting_for_an_item_stops_at_once() -> None:
    used, never = threading.Event(), threading.Event()

    def items() -> Generator[int, None, None]:
        yield 0
        used.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        never.wait(0.5)  # an image that takes long
        yield 1

    ahead = read_ahead(items(), 2)

    def go_on() -> int:
        used.set()
        return next(ahead)

    assert next(ahead) == 0
    with pytest.raises(KeyboardInterrupt):
        go_on()
    assert threads() == 0
