"""The grid of a table of which rows are looked up, as embeddings: one scale, one for each row, or one for each column.

One scale costs nothing when the table is used, so it is taken wherever it is good enough. Rows of very different size
need a scale each, and so do columns. What counts is the error beside the size of a row, since each is used alone, and
of a column, since what comes behind may weigh them alike. A few may be worse, and zeros are always right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Floats
from amct_onnx.numerics.blocks import row_parts
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize

LEAST = 30.0  # dB of a table above its noise, and
LEAST_PART = 20.0  # of its rows and columns; below, it stays in float
_ENOUGH, _ENOUGH_PART = 33.0, 30.0  # dB above which nothing is gained for the network by more scales
_SHARE = 0.01  # of the rows and columns, which may be worse
_LONG = 16  # elements of a row or column whose error says something
_ELEMENTS = 1 << 18

Solver = Callable[[Floats, QSpec], QParams]  # of a weight as rows with one scale each


def solve_table(rows: Floats, spec: QSpec, solve: Solver, *, axes: Sequence[int | None] = (None, 0, 1)) -> QParams:
    """QParams of a table [rows, columns] whose rows are looked up, symmetric, with one of `axes` as its channel axis.

    spec: of which the channel axis does not count. axes: in the order in which they are tried, until one is enough.
    Raises ValueError where int8 would leave too little of the table, and like `solve`.
    """
    best: tuple[float, float, QParams] | None = None
    for axis in axes:
        of_rows = QSpec(bits=spec.bits, channel_axis=0, least_scale=spec.least_scale, most_scale=spec.most_scale)
        view = rows.reshape(1, -1) if axis is None else rows if axis == 0 else rows.T
        found = solve(view, of_rows)
        own = QSpec(bits=spec.bits, channel_axis=axis, least_scale=spec.least_scale, most_scale=spec.most_scale)
        params = QParams(scale=found.scale, zero_point=found.zero_point, spec=own)
        whole, worst = _decibels(rows, params)
        if best is None or (worst, whole) > best[:2]:
            best = worst, whole, params
        if worst >= _ENOUGH_PART and whole >= _ENOUGH:
            break
    assert best is not None  # there is one axis at least
    worst, whole, params = best
    if whole < LEAST or worst < LEAST_PART:
        raise ValueError(f"int8 would leave its table {whole:.1f} dB above the noise, and parts of it {worst:.1f} dB")
    return params


def _decibels(rows: Floats, params: QParams) -> tuple[float, float]:
    """How far the whole table is above its noise, and how far its rows and columns are, but for a small share."""
    power, noise = [np.zeros(size) for size in rows.shape], [np.zeros(size) for size in rows.shape]
    by_row = params.spec.channel_axis == 0
    for part in row_parts(len(rows), rows.shape[1], _ELEMENTS):
        own = slice(None) if not by_row else part
        grid = QParams(scale=params.scale[own], zero_point=params.zero_point[own], spec=params.spec)
        exact = np.square(rows[part], dtype=np.float64)
        error = np.square(rows[part] - fake_quantize(rows[part], grid), dtype=np.float64)
        for sums, squares in ((power, exact), (noise, error)):
            sums[0][part] = squares.sum(axis=1)
            sums[1] += squares.sum(axis=0)
    total, lost = float(power[0].sum()), float(noise[0].sum())
    whole = float(10 * np.log10(total / lost)) if lost > 0 else np.inf
    lengths = rows.shape[::-1]
    parts = zip(power, noise, lengths, strict=True)
    return whole, min((_worst(sizes, errors) for sizes, errors, length in parts if length >= _LONG), default=np.inf)


def _worst(power: Doubles, noise: Doubles) -> float:
    some = (power > 0) & (noise > 0)
    if not some.any():
        return np.inf
    found = np.sort(10 * np.log10(power[some] / noise[some]))
    return float(found[int(_SHARE * found.size)])
