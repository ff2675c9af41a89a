"""Counting float32 values in dyadic bins: the inner loop of calibration.

`_counting` is a small optional C extension; `_count_numpy` gives the same numbers without it, more slowly. A test
holds the two together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

_counting: Any
try:
    _counting = import_module("amct_onnx.numerics.statistics._counting")
except ImportError:  # built without a compiler
    _counting = None

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

# Chunks of this many elements keep the passes of `_count_numpy` in the second-level cache.
_CHUNK = 1 << 16
# Below this size a second thread costs more than it saves.
_PER_THREAD = 1 << 17


def count_values(x: Floats, exponent: int, low: int, size: int) -> tuple[Counts, float, float]:
    """Counts int64[size] of trunc(x / 2^exponent) - low, and the extremes of `x`, in one pass.

    `x`: contiguous float32[n], n >= 1. Values outside the bins are not counted: the caller sees them in the extremes,
    of which the maximum is inf when `x` holds NaN. With size 0 only the extremes are found.
    """
    parts = max(1, min(_threads(), x.size // _PER_THREAD))
    if _counting is not None and (parts == 1 or _lent.runner):
        return _count_compiled(x, exponent, low, size, parts)
    count = _count_numpy if _counting is None else _count_compiled
    pieces = np.array_split(x, parts)
    others = [_pool().submit(count, piece, exponent, low, size) for piece in pieces[1:]]
    results = [count(pieces[0], exponent, low, size), *(other.result() for other in others)]
    counts: Counts = np.sum([result[0] for result in results], axis=0, dtype=np.int64)
    return counts, min(r[1] for r in results), max(r[2] for r in results)


class _Lent(threading.local):
    """Threads that the caller of this thread lends, as the address of a Runner of `_counting.c`; 0 for none."""

    runner = 0


_lent = _Lent()


@contextmanager
def threads_of(runner: int) -> Iterator[None]:
    """Count on the threads of `runner` (an address, valid meanwhile) in this thread."""
    _lent.runner = runner
    try:
        yield
    finally:
        _lent.runner = 0


def _count_compiled(x: Floats, exponent: int, low: int, size: int, parts: int = 1) -> tuple[Counts, float, float]:
    counts = np.zeros((parts, size), np.int64)
    addresses = x.ctypes.data, counts.ctypes.data
    minimum, maximum = _counting.count(
        addresses[0], x.size, 2.0**-exponent, low, size, addresses[1], parts, _lent.runner
    )
    return counts[0] if parts == 1 else counts.sum(axis=0), minimum, maximum


def _count_numpy(x: Floats, exponent: int, low: int, size: int) -> tuple[Counts, float, float]:
    minimum, maximum = float(x.min()), float(x.max())
    if np.isnan(minimum):
        minimum = maximum = np.inf
    counts = np.zeros(size + 2, np.int64)
    if size:
        factor = np.float32(2.0**-exponent)
        floats, integers = np.empty(min(_CHUNK, x.size), np.float32), np.empty(min(_CHUNK, x.size), np.intp)
        for start in range(0, x.size, _CHUNK):
            chunk = x[start : start + _CHUNK]
            f, i = floats[: chunk.size], integers[: chunk.size]
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(chunk, factor, out=f)
            np.fmax(f, np.float32(low - 1), out=f)  # NaN becomes the bin before the first
            np.fmin(f, np.float32(low + size), out=f)
            np.copyto(i, f, casting="unsafe")
            np.subtract(i, low - 1, out=i)
            counts += np.bincount(i, minlength=size + 2)
    return counts[1 : size + 1], minimum, maximum


@cache
def _threads() -> int:
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, _threads() - 1), thread_name_prefix="amct_count")
