"""Counting in dyadic bins: compiled loop, NumPy twin and threads give one result; brute force is the oracle."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.numerics.statistics import counting

Result = tuple[np.ndarray[Any, np.dtype[np.int64]], float, float]

_VALUES = st.floats(width=32) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3e38, -3e38])
_ARRAYS = hnp.arrays(np.float32, st.integers(1, 60), elements=_VALUES | st.floats(-64, 64, width=32))
_EXPONENTS = st.integers(-120, 105) | st.integers(-4, 4)
_SIZES = st.sampled_from([0, 1, 2]) | st.integers(0, 300)
# The callers' bins stay below 2^23, where float32 has every integer.
_LOWS = st.integers(-100, 100) | st.sampled_from([-(2**23) + 1, 2**23 - 301])

# Each full 2^18 elements get a thread: three of them.
THREADED = counting._PER_THREAD * 3 + 7


@pytest.fixture(scope="module")
def compiled() -> None:
    """The tests that take this need `_counting`."""
    if counting._counting is None:
        reason = "built without a C compiler: there is no amct_onnx.numerics.statistics._counting"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def _oracle(x: np.ndarray, exponent: int, low: int, size: int) -> Result:
    """One element after the other, in exact arithmetic of Python's integers and doubles."""
    counts = np.zeros(size, np.int64)
    for value in x.tolist():
        if math.isfinite(value):
            index = math.trunc(math.ldexp(value, -exponent)) - low
            if 0 <= index < size:
                counts[index] += 1
    if np.isnan(x).any():
        return counts, math.inf, math.inf
    return counts, min(x.tolist()), max(x.tolist())


def _equal(a: Result, b: Result) -> None:
    assert a[0].dtype == b[0].dtype == np.int64
    np.testing.assert_array_equal(a[0], b[0])
    # Which of -0.0 and 0.0 is the smaller one is open; DyadicHistogram makes both 0.0.
    assert np.float64(a[1] + 0.0).tobytes() == np.float64(b[1] + 0.0).tobytes()
    assert np.float64(a[2] + 0.0).tobytes() == np.float64(b[2] + 0.0).tobytes()


@settings(max_examples=300)
@given(_ARRAYS, _EXPONENTS, _LOWS, _SIZES)
@example(np.array([np.nan], np.float32), 0, 0, 1)
@example(np.array([-np.nan, 1.0], np.float32), 0, 0, 2)
@example(np.array([-np.inf, np.inf], np.float32), 0, -1, 3)
@example(np.array([-0.5, 0.5, -1.0, 1.0], np.float32), 0, 0, 1)
def test_numpy_counts_as_brute_force_does(x: np.ndarray, exponent: int, low: int, size: int) -> None:
    _equal(counting._count_numpy(x, exponent, low, size), _oracle(x, exponent, low, size))


@pytest.mark.usefixtures("compiled")
@settings(max_examples=300)
@given(_ARRAYS, _EXPONENTS, _LOWS, _SIZES)
@example(np.array([np.nan], np.float32), 0, 0, 1)
@example(np.array([-np.nan, 1.0], np.float32), 0, 0, 2)
@example(np.array([-np.inf, np.inf], np.float32), 0, -1, 3)
@example(np.array([-0.5, 0.5, -1.0, 1.0], np.float32), 0, 0, 1)
def test_the_compiled_loop_equals_numpy(x: np.ndarray, exponent: int, low: int, size: int) -> None:
    _equal(counting._count_compiled(x, exponent, low, size), counting._count_numpy(x, exponent, low, size))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 1023, 1024, 1025, 2047, 4099, 65535, 65536, 65537, 200_001])
def test_blocks_and_lanes_of_all_lengths(n: int) -> None:
    """The C loop works in blocks of 1024 and lanes of 4, NumPy in chunks of 65536: lengths on both sides of each."""
    x = np.random.default_rng(n).normal(0, 300, n).astype(np.float32)
    x[:: max(1, n // 7)] = 0.0
    results = [count(x, -1, -500, 900) for count in (counting._count_compiled, counting._count_numpy)]
    _equal(*results)
    index = np.trunc(x.astype(np.float64) * 2) + 500
    np.testing.assert_array_equal(results[0][0], np.histogram(index, np.arange(901) - 0.5)[0])


@pytest.mark.parametrize("way", ["_count_compiled", "_count_numpy"])
@pytest.mark.parametrize("nan_at", [None, 0, THREADED // 2, THREADED - 1])
@pytest.mark.parametrize("size", [0, 700])
def test_threads_do_not_change_the_result(
    way: str, nan_at: int | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "_count_numpy":
        monkeypatch.setattr(counting, "_counting", None)
    elif counting._counting is None:
        pytest.skip("built without a C compiler")
    x = np.random.default_rng(1).normal(0, 100, THREADED).astype(np.float32)
    x[5], x[-5] = -1e30, 1e30
    if nan_at is not None:
        x[nan_at] = np.nan
    submitted = []
    pool = counting.ThreadPoolExecutor(3)
    submit = pool.submit
    monkeypatch.setattr(pool, "submit", lambda *args: submitted.append(args) or submit(*args))
    monkeypatch.setattr(counting, "_threads", lambda: 4)
    monkeypatch.setattr(counting, "_pool", lambda: pool)
    got = counting.count_values(x, 0, -350, size)
    pool.shutdown()
    assert len(submitted) == 2  # three parts, one of them in this thread
    want = getattr(counting, way)(x, 0, -350, size)
    if nan_at is not None:
        assert want[1] == math.inf
        assert got[2] == math.inf
        want = want[0], got[1], want[2]  # each part has its own minimum; the maximum is what tells of NaN
    _equal(got, want)


def test_without_the_extension_numpy_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_counting", None)
    x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    counts, minimum, maximum = counting.count_values(x, 0, -1, 3)
    assert counts.tolist() == [1, 2, 1]
    assert (minimum, maximum) == (-1.5, 2.5)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(("n", "size"), [(0, 1), (-1, 1), (2**32, 1), (1, -1)])
def test_the_compiled_loop_refuses_impossible_lengths(n: int, size: int) -> None:
    """Before it touches memory: the addresses here are not valid."""
    with pytest.raises(ValueError, match="between 1 and"):
        counting._counting.count(0, n, 1.0, 0, size, 0, 1, 0)
