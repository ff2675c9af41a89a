"""Counting in place: both accumulators give the histogram that merging gives, in whatever order arrays come."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.statistics import accumulator
from amct_onnx.numerics.statistics.accumulator import (
    Accumulator,
    CompiledAccumulator,
    NumpyAccumulator,
    compiled_functions,
)
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

_VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3e38])
_ARRAYS = hnp.arrays(
    np.float32, st.integers(1, 40), elements=_VALUES | st.floats(-64, 64, width=32) | st.floats(0, 1, width=32)
)
Make = Callable[[], Accumulator]


@pytest.fixture(params=["compiled", "numpy"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "numpy":
        return NumpyAccumulator
    if accumulator.compiled is None:
        reason = "built without a C compiler: there is no amct_onnx.numerics.statistics._accumulator"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return lambda: CompiledAccumulator(3)


def merged(arrays: list[np.ndarray]) -> DyadicHistogram:
    result = DyadicHistogram.empty()
    for array in arrays:
        result = result.merge(DyadicHistogram.of(array))
    return result


def counted(counter: Accumulator, arrays: list[np.ndarray]) -> DyadicHistogram:
    for array in arrays:
        counter.add(array)
    assert counter.wrong == ""
    return counter.histogram()


@pytest.mark.parametrize("before", [[], [1e30, -1.0], [np.nan], [np.inf, 2.0]])
def test_a_cleared_counter_counts_like_a_new_one(make: Make, before: list[float]) -> None:
    counter, array = make(), np.array([0.5, -3.25, 1e-3], np.float32)
    counter.add(np.array(before, np.float32))
    counter.clear()
    assert counter.histogram() == DyadicHistogram.empty()
    assert counted(counter, [array]) == merged([array])


@settings(max_examples=examples(300))
@given(st.lists(_ARRAYS, min_size=1, max_size=5))
@example([np.zeros(3, np.float32), np.array([1e-45], np.float32), np.array([-3e38, 3e38], np.float32)])
@example([np.array([1e6, 1e6 + 1], np.float32), np.array([1.1e6], np.float32), np.array([-5], np.float32)])
@example([np.array([-1.0], np.float32), np.array([-(2.0**-126)], np.float32), np.array([16384.0], np.float32)])
def test_the_sum_is_that_of_merged_histograms(arrays: list[np.ndarray]) -> None:
    assert counted(NumpyAccumulator(), arrays) == merged(arrays)
    if accumulator.compiled is not None:
        assert counted(CompiledAccumulator(1), arrays) == merged(arrays)


@pytest.mark.parametrize("n", [1, 7, 1023, 1024, 1025, 5000, 65535, 65536, 65537, 300_001])
def test_ranges_that_grow_within_an_array_and_between(make: Make, n: int) -> None:
    rng = np.random.default_rng(n)
    growing = (rng.normal(size=n) * np.geomspace(1e-3, 1e3, n)).astype(np.float32)
    rectified = np.maximum(rng.normal(0, 50, n), 0).astype(np.float32)
    shifted = rng.normal(1e5, 3, (n, 1)).astype(np.float32)
    arrays = [rectified, -rectified, growing, growing[::-1], shifted, growing * 1e6]
    assert counted(make(), arrays) == merged(arrays)


def test_threads_add_at_the_same_time(make: Make) -> None:
    arrays = [np.random.default_rng(i).normal(i, 10.0 ** (i % 4), 20_000).astype(np.float32) for i in range(8)]
    counter = make()
    threads = [threading.Thread(target=lambda x=x: [counter.add(x) for _ in range(5)]) for x in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.histogram() == merged(arrays * 5)


_TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
_RUN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, _TASK, ctypes.c_void_p, ctypes.c_size_t)


@contextmanager
def lent_threads() -> Iterator[list[int]]:
    """This thread counts on others, as in an operator of ONNX Runtime; the number of parts of each call is noted."""
    calls: list[int] = []

    def run(_: int, task: Callable[[int, int], None], data: int, count: int) -> int:
        calls.append(count)
        threads = [threading.Thread(target=task, args=(data, i)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1

    runner = ctypes.pointer(_RUN(run))  # a struct whose only member is the function
    lend = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compiled_functions()[1])
    lend(ctypes.cast(runner, ctypes.c_void_p))
    try:
        yield calls
    finally:
        lend(None)


@pytest.mark.parametrize("nan_at", [None, 0, 200_000, 400_006])
def test_threads_that_are_lent_do_not_change_the_result(nan_at: int | None) -> None:
    if accumulator.compiled is None:
        pytest.skip("built without a C compiler")
    x = np.random.default_rng(1).normal(0, 100, 400_007).astype(np.float32)  # each full 2^17 elements get a thread
    x[5], x[-5] = -1e30, 1e30
    if nan_at is not None:
        x[nan_at] = np.nan
    counter = CompiledAccumulator(4)
    with lent_threads() as calls:
        counter.add(x)
        counter.add(x[:1000])
    assert calls == [3]
    if nan_at is None:
        assert counter.histogram() == merged([x, x[:1000]])
    assert ("NaN or Inf" in counter.wrong) == (nan_at is not None)


@pytest.mark.parametrize("at", [0, 500, 2999])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_noted(make: Make, value: float, at: int) -> None:
    counter, x = make(), np.linspace(-1, 1, 3000, dtype=np.float32)
    counter.add(x)
    assert counter.wrong == ""
    x[at] = value
    counter.add(x)
    assert "NaN or Inf" in counter.wrong
    counter.add(np.ones(1, np.float32))
    assert "NaN or Inf" in counter.wrong
    first = make()
    first.add(x)
    assert "NaN or Inf" in first.wrong
    assert counter.histogram() == first.histogram() == DyadicHistogram.not_finite()


def test_an_empty_array_adds_nothing_and_nothing_is_the_empty_histogram(make: Make) -> None:
    nothing, some = np.zeros((0, 3), np.float32), np.arange(5, dtype=np.float32)
    assert counted(make(), []) == counted(make(), [nothing]) == DyadicHistogram.empty()
    assert counted(make(), [nothing, some, nothing]) == DyadicHistogram.of(some)


@pytest.mark.parametrize("parts", [0, -1, 17])
def test_impossible_numbers_of_threads(parts: int) -> None:
    if accumulator.compiled is None:
        pytest.skip("built without a C compiler")
    with pytest.raises(ValueError, match="between 1 and 16"):
        CompiledAccumulator(parts)
