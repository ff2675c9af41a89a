"""Scales of weights by least squares: the one of each row that leaves the least error of rounding and clipping.

The scale of the extremes (ARQ) is the start, and all others are ratios of it. Going down in coarse steps, a row is done
when its clipping alone costs more than the best scale so far: a smaller scale clips more. Its clipping is at least its
error minus n * s^2 / 4, the most that rounding can cost. Around the best coarse ratio the error of a long row is
smooth, so halving the distance finds the least. That of a short row is jagged, so many ratios are tried there.

The search runs in float32, for speed. A row takes its new scale only where that is better by more than rounding in
float32 can pretend; so no row is worse than with ARQ. Sums are numpy's, without BLAS: threads have no say.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Floats, Indices
from amct_onnx.numerics.blocks import blocks, row_parts
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.weights.arq import solve_arq

_ELEMENTS = 1 << 16  # of a part: three arrays of them stay in the cache
_COARSE = 0.85
_MOST_COARSE = 60  # down to a ratio of 6e-5
_HALVINGS = 3
_APART = 1 / 250  # ratios tried around the best
_LEAST_TRIED, _MOST_TRIED, _TRIED_ELEMENTS = 6, 64, 1 << 11
_SMOOTH_BITS = 6  # up to so many, trying more ratios of a long row gains nothing
_SUMS = 1e-4  # relative error of the root of a sum of squares in float32
_QUOTIENT = 2.0**-21  # relative error of w / s from four roundings in float32, with room


def solve_weight_mse(rows: Floats, spec: QSpec) -> QParams:
    """Symmetric QParams of a weight [C, n]: per row, or for all rows if the spec is per tensor.

    Minimizes the sum of (w - w_q)^2. A row of zeros gets scale 1. Raises ValueError like `solve_arq`.
    """
    params = solve_arq(rows, spec)
    table = rows.reshape(params.scale.size, -1)
    scale = params.scale.copy()
    for part in row_parts(len(table), table.shape[1], _ELEMENTS):
        scale[part] = _Search(table[part], params.scale[part], spec).best()
    return QParams(scale=scale, zero_point=params.zero_point, spec=spec)


class _Search:
    """Ratios to `scale` [R] for rows float32[R, n]; errors are float64[R] in units of scale^2."""

    def __init__(self, rows: Floats, scale: Floats, spec: QSpec) -> None:
        self._scale, self._spec = scale, spec
        self._steps = np.divide(rows, scale[:, None])
        self._least = spec.least_scale / scale.astype(np.float64)  # ratios of legal scales
        self._most = spec.most_scale / scale.astype(np.float64)
        size = max(self._steps[block].size for block in blocks(rows.shape))
        self._rooms = np.empty((2, size), np.float32)  # new arrays of this size would come from the system each time
        self._ratio = np.ones(scale.size)
        self._start = self._errors(self._steps, self._ratio)
        self._error = self._start.copy()

    def best(self) -> Floats:
        """The scales: float32[R]."""
        # ARQ rounds to zeros only what is zero or too small for a legal scale.
        largest = np.maximum(self._steps.max(axis=1), -self._steps.min(axis=1))
        rows = np.flatnonzero((self._start > 0) & (largest > 0.5))
        if rows.size:
            self._descend(rows)
            self._refine(slice(None) if rows.size == self._scale.size else rows)
        unsure = _QUOTIENT * np.sqrt(_sums(self._steps))
        better = np.sqrt(self._error) * (1 + _SUMS) + unsure < np.sqrt(self._start) * (1 - _SUMS) - unsure
        found = np.clip((self._scale * self._ratio).astype(np.float32), self._spec.least_scale, self._spec.most_scale)
        return np.where(better, found, self._scale)

    def _descend(self, rows: Indices) -> None:
        steps, length = self._steps[rows], self._steps.shape[1]
        for power in range(1, _MOST_COARSE):
            ratio = np.full(rows.size, _COARSE**power)
            error = self._try(rows, steps, ratio)
            on = error - 0.25 * length * ratio**2 < self._error[rows]
            on &= ratio * _COARSE > self._least[rows]
            if not on.any():
                break
            if 2 * np.count_nonzero(on) <= rows.size:
                rows, steps = rows[on], steps[on]

    def _refine(self, rows: slice | Indices) -> None:
        steps = self._steps[rows]
        for halving in range(1, _HALVINGS + 1):
            middle = self._ratio[rows]
            for sign in (1, -1):
                self._try(rows, steps, middle * _COARSE ** (sign * 0.5**halving))
        least = _LEAST_TRIED if self._spec.bits > _SMOOTH_BITS else 0
        tried = max(least, min(_MOST_TRIED, _TRIED_ELEMENTS // steps.shape[1]))
        middle = self._ratio[rows]
        for step in range(tried):
            self._try(rows, steps, middle * (1 + _APART * (step - (tried - 1) / 2)))

    def _try(self, rows: slice | Indices, steps: Floats, ratio: Doubles) -> Doubles:
        """Errors of `steps` = self._steps[rows] at these ratios; the best are kept."""
        ratio = np.clip(ratio, self._least[rows], self._most[rows])
        error = self._errors(steps, ratio)
        best = self._error[rows]
        better = error < best
        self._error[rows] = np.where(better, error, best)
        self._ratio[rows] = np.where(better, ratio, self._ratio[rows])
        return error

    def _errors(self, steps: Floats, ratio: Doubles) -> Doubles:
        inverse = (1 / ratio).astype(np.float32)[:, None]
        total = np.zeros(ratio.size)
        for block in blocks(steps.shape):
            part = steps[block]
            exact, rounded = self._rooms[:, : part.size].reshape(2, *part.shape)
            np.multiply(part, inverse[block[0]], out=exact)
            np.rint(exact, out=rounded)
            np.clip(rounded, self._spec.qmin, self._spec.qmax, out=rounded)
            rounded -= exact
            total[block[0]] += _sums(rounded)
        return total * ratio**2


def _sums(values: Floats) -> Doubles:
    """The sum of squares of each row."""
    return np.asarray(np.einsum("ij,ij->i", values, values), np.float64)
