"""GPTQ: round the columns of a weight one after the other, and let those to come make up for the error.

Frantar et al., "OPTQ: Accurate Quantization for Generative Pre-trained Transformers", 2022. For a row w with integers
q of scale s, let u = w / s - q; the squared error of the output is s^2 u G u^T, with G the Gram matrix of the layer's
input columns. OPTQ rounds w_k after it has moved w_k to the best place for the errors before it, which it reads off a
Cholesky factor of the inverse of G. Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With Guarantees",
2023, show that the same integers come of G = R D R^T itself, with R of unit diagonal and zeros below it:

    q_k = round(w_k / s + sum over j < k of u_j R_jk).

So no inverse is needed, and u_j is the plain error of column j.

Where blocks of columns have scales of their own (`block_grid.py`), the same is done in units of weights.

Rounding to nearest may be better for a row, for instance where values are clipped; then the row keeps it. Products are
those of BLAS: for results that do not depend on the number of threads, it must be given one. Weights of groups and
their matrices are float32, where damping keeps the smallest eigenvalue far above what that rounds; a matrix that has no
factor there is factorized in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from amct_onnx.numerics.arrays import Bools, Doubles, Floats, Int8s, Reals, Uint8s
from amct_onnx.numerics.blocks import row_parts
from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.weights.block_grid import BlockGrid

# Values of some columns (positions in the order of rounding), [G, R] or [G, n, R], on the grid.
_ToGrid = Callable[[int | slice, Reals], Reals]

_BLOCK = 32  # columns
_CHUNK = 1 << 19  # weights rounded at a time
_GROUP_CHUNK = 1 << 20  # entries of Gram matrices at a time, where there are groups


def solve_gptq_groups(
    rows: Floats, gram: Doubles, scale: Floats, spec: QSpec, *, damping: float = 0.01, block: int = _BLOCK
) -> Int8s:
    """Integers [G, R, n] of `rows` [G, R, n] of G groups, each with a Gram matrix of its own, such as a depthwise Conv.

    gram: [G, n, n]. scale: [G, R]. Columns are rounded in the order of their index. A column that is always zero is
    rounded to nearest. damping: what is added to the diagonal of gram, as a share of its mean. block: how many columns
    are rounded before the next hear of it; it changes the time, and the result by rounding of float32 only.

    Raises ValueError where shapes do not fit, values are not finite, the grid has more than 8 bits, or gram with its
    damping is not positive definite.
    """
    _check(rows, gram, scale, spec)
    groups, count, length = rows.shape
    result = np.empty(rows.shape, np.int8)
    for some_groups in row_parts(groups, length**2, _GROUP_CHUNK):
        solver = _Solver(gram[some_groups], damping, block, np.float32, by_diagonal=False)
        for some_rows in row_parts(count, length * len(solver.order), _CHUNK):
            part = some_groups, some_rows
            steps = np.divide(rows[part], scale[part][..., None], dtype=np.float32)
            result[part] = solver.solve(steps.swapaxes(1, 2), partial(_to_integers, spec)).swapaxes(1, 2)
    return result


def solve_gptq_blocks(
    rows: Floats, gram: Doubles, grid: BlockGrid, *, start: int = 0, damping: float = 0.01, block: int = _BLOCK
) -> Uint8s:
    """Integers uint8[C, n] of `rows` [C, n] on a grid with a scale for each block of columns.

    gram: [n, n]. start: the column of the grid that the first one of `rows` is. Columns of larger mean square are
    rounded first (the paper's act-order). The rest is that of `solve_gptq_groups`.

    Raises ValueError where shapes do not fit, values are not finite or gram with its damping is not positive definite.
    """
    count, length = rows.shape
    if gram.shape != (length, length) or len(grid.scale) != count or start + length > grid.scale.shape[1] * grid.block:
        raise ValueError(f"rows of shape {rows.shape} fit no Gram matrix of shape {gram.shape} or no such grid")
    if not (np.isfinite(rows).all() and np.isfinite(gram).all()):
        raise ValueError("the rows or the Gram matrix hold NaN or Inf")
    solver = _Solver(gram[None], damping, block, np.float64, by_diagonal=True)
    result = np.empty(rows.shape, np.uint8)
    scales, zero_points = grid.columns(length, start)
    for part in row_parts(count, length, _CHUNK):
        scale, zero_point = (array[part].T[solver.order[0]][None] for array in (scales, zero_points))

        def to_grid(k: int | slice, values: Reals, scale: Doubles = scale, zero_point: Doubles = zero_point) -> Reals:
            zero = zero_point[:, k]
            steps: Reals = np.clip(np.rint(values / scale[:, k]), -zero, grid.qmax - zero)
            return steps * scale[:, k]

        moved = solver.solve(rows[part].T.astype(np.float64)[None], to_grid)[0]
        result[part] = np.rint(moved.T / scales[part] + zero_points[part]).astype(np.uint8)
    return result


def _to_integers(spec: QSpec, k: int | slice, steps: Reals) -> Reals:
    rounded: Reals = np.rint(steps)
    np.maximum(rounded, spec.qmin, out=rounded)  # of one column np.clip takes several times as long
    np.minimum(rounded, spec.qmax, out=rounded)
    return rounded


def _check(rows: Floats, gram: Doubles, scale: Floats, spec: QSpec) -> None:
    if rows.size == 0 or gram.shape != (rows.shape[0], rows.shape[2], rows.shape[2]):
        raise ValueError(f"rows of shape {rows.shape} do not fit a Gram matrix of shape {gram.shape}")
    if scale.shape != rows.shape[:2]:
        raise ValueError(f"{scale.size} scales do not fit rows of shape {rows.shape}")
    if spec.bits > 8:
        raise ValueError("the grid must have zero point 0 and at most 8 bits")
    if not (np.isfinite(rows).all() and np.isfinite(gram).all()):
        raise ValueError("the rows or the Gram matrix hold NaN or Inf")


class _Solver:
    """Rounds rows of some groups. `order` [G, n]: the columns of each group in the order in which they are rounded."""

    def __init__(self, gram: Doubles, damping: float, block: int, dtype: npt.DTypeLike, *, by_diagonal: bool) -> None:
        diagonal = np.diagonal(gram, axis1=1, axis2=2)
        mean = diagonal.mean(axis=1)
        alive = mean > 0
        # In units of their mean, so that all matrices of the stack are of the same size.
        scaled = gram / np.where(alive, mean, 1.0)[:, None, None]
        if by_diagonal:
            self.order = np.argsort(-diagonal, axis=1, kind="stable")
            scaled = np.take_along_axis(scaled, self.order[:, None, :], axis=2)
            scaled = np.take_along_axis(scaled, self.order[:, :, None], axis=1)
        else:
            self.order = np.broadcast_to(np.arange(diagonal.shape[1]), diagonal.shape)
        self._by_diagonal, self._block, self._gram = by_diagonal, block, scaled.astype(dtype, copy=False)
        try:
            self._factor = _unit_factor(_damped(self._gram, alive, damping))
        except np.linalg.LinAlgError:
            try:
                self._factor = _unit_factor(_damped(scaled, alive, damping)).astype(dtype)
            except np.linalg.LinAlgError as error:
                raise ValueError("the Gram matrix is not positive definite: use more damping") from error

    def solve(self, columns: Reals, to_grid: _ToGrid) -> Reals:
        """Columns [G, n, R] of rows, rounded to the grid."""
        if self._by_diagonal:
            columns = np.take_along_axis(columns, self.order[..., None], axis=1)
        nearest = to_grid(slice(None), columns)
        moved = _feed_forward(columns, self._factor, to_grid, self._block)
        # v G v - u G u = (v + u) G (v - u), with the errors u of nearest and v of moved.
        gain = (self._gram @ (moved + nearest - 2 * columns)) * (nearest - moved)
        chosen: Reals = np.where(gain.sum(axis=1, keepdims=True) > 0, moved, nearest)
        if self._by_diagonal:
            in_order, chosen = chosen, np.empty_like(chosen)
            np.put_along_axis(chosen, self.order[..., None], in_order, axis=1)
        return chosen


def _damped(gram: Reals, alive: Bools, damping: float) -> Reals:
    """Matrices whose diagonals have mean 1, with larger diagonals; those that are not `alive` become the identity."""
    damped = np.where(alive[:, None, None], gram, 0).astype(gram.dtype, copy=False)
    index = np.arange(gram.shape[1])
    damped[:, index, index] += np.where(damped[:, index, index] == 0, 1.0, damping).astype(gram.dtype)
    return damped


def _unit_factor(matrix: Reals) -> Reals:
    """The transpose of R in matrix = R D R^T: unit diagonal, zeros above it. Raises LinAlgError where there is none."""
    turned = np.linalg.cholesky(matrix[:, ::-1, ::-1])  # of the reversed matrix, so R is this reversed
    turned /= np.diagonal(turned, axis1=1, axis2=2)[:, None]
    return np.ascontiguousarray(turned[:, ::-1, ::-1].swapaxes(1, 2))


def _feed_forward(columns: Reals, factor: Reals, to_grid: _ToGrid, block: int) -> Reals:
    """Columns [G, n, R] rounded one after the other; `factor` is that of `_unit_factor`."""
    found, errors = np.empty_like(columns), np.empty_like(columns)
    length = columns.shape[1]
    for start in range(0, length, block):
        end = min(start + block, length)
        wanted = columns[:, start:end] + factor[:, start:end, :start] @ errors[:, :start]
        for k in range(start, end):
            column = wanted[:, k - start]
            if k > start:
                column += (factor[:, k, None, start:k] @ errors[:, start:k])[:, 0]
            found[:, k] = to_grid(k, column)
            np.subtract(columns[:, k], found[:, k], out=errors[:, k])
    return found
