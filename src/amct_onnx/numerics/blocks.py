"""Large arrays in parts, so that what is computed from them needs no temporary array of their size."""

from __future__ import annotations

import math
from collections.abc import Iterator

# Elements of a part: a few MiB in float64, which also stays in the cache of a CPU.
_ELEMENTS = 1 << 18


def row_parts(count: int, length: int, elements: int) -> Iterator[slice]:
    """Slices of `count` rows of this length, with about `elements` elements each, and at least one row."""
    step = max(1, elements // max(length, 1))
    for start in range(0, count, step):
        yield slice(start, start + step)


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Index expressions that cut an array of `shape` into parts along its longest axis; one for a small array.

    They are disjoint and cover everything, so an elementwise result does not depend on the cut.
    """
    size = math.prod(shape)
    whole = tuple(slice(None) for _ in shape)
    if size <= _ELEMENTS:
        yield whole
        return
    axis = max(range(len(shape)), key=lambda k: shape[k])
    step = max(1, _ELEMENTS * shape[axis] // size)
    for start in range(0, shape[axis], step):
        yield (*whole[:axis], slice(start, start + step), *whole[axis + 1 :])
