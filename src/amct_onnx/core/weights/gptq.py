"""GPTQ: round the columns of a weight one after the other, and let those to come make up for the error.

Frantar et al., "OPTQ: Accurate Quantization for Generative Pre-trained Transformers", 2022. For a row w with integers
q of scale s, let u = w / s - q; the squared error of the output is s^2 u G u^T, with G the Gram matrix of the layer's
input columns. OPTQ rounds w_k after it has moved w_k to the best place for the errors before it, which it reads off a
Cholesky factor of the inverse of G. Chee et al., "QuIP: 2-Bit Quantization of Large Language Models With Guarantees",
2023, show that the same integers come of G = R D R^T itself, with R of unit diagonal and zeros below it:

    q_k = round(w_k / s + sum over j < k of u_j R_jk).

So no inverse is needed, and u_j is the plain error of column j.

Rounding to nearest may be better for a row, for instance where values are clipped; then the row keeps it. Results do
not depend on the number of threads: large products are those of `core/products`, all else is elementwise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amct_onnx.core.products import precise_product
from amct_onnx.core.qparams import QParams

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_CHUNK = 1 << 20  # weights rounded at a time


def solve_gptq(
    rows: Floats,
    gram: Doubles,
    params: QParams,
    *,
    damping: float = 0.01,
    block: int = 128,
    by_diagonal: bool = False,
) -> npt.NDArray[np.int8]:
    """Integers [C, n] of `rows` [C, n] on the grid of `params`, one scale for each row or for all.

    gram: [n, n] = E[x x^T] of the columns that meet the rows; of a grouped Conv, rows and gram of one group. A column
    that is always zero is rounded to nearest. damping: what is added to the diagonal of gram, as a share of its mean.
    block: how many columns are rounded before the others hear of it; it changes the time, and the result by rounding of
    float64 only. by_diagonal: columns of larger mean square first, not those of lower index (the paper's act-order).

    Raises ValueError where shapes do not fit, values are not finite, the grid is not that of symmetric int8, or gram
    with its damping is not positive definite.
    """
    _check(rows, gram, params)
    diagonal = np.diagonal(gram)
    order = np.argsort(-diagonal, kind="stable") if by_diagonal else np.arange(diagonal.size)
    gram = gram[np.ix_(order, order)]
    factor = _unit_factor(_damped(gram, damping), block)
    scale = np.broadcast_to(params.scale.astype(np.float64), rows.shape[:1])[:, None]
    result = np.empty(rows.shape, np.int8)
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        steps = (rows[part].astype(np.float64) / scale[part]).T[order]
        nearest = np.clip(np.rint(steps), params.spec.qmin, params.spec.qmax)
        moved = _feed_forward(steps, factor, params, block)
        # v G v - u G u = (v + u) G (v - u), with the errors u of nearest and v of moved.
        gain = precise_product(gram, moved + nearest - 2 * steps) * (nearest - moved)
        better = gain.sum(axis=0) > 0
        result[part, order] = np.where(better, moved, nearest).T
    return result


def _check(rows: Floats, gram: Doubles, params: QParams) -> None:
    if rows.ndim != 2 or rows.size == 0 or gram.shape != (rows.shape[1], rows.shape[1]):
        raise ValueError(f"rows of shape {rows.shape} do not fit a Gram matrix of shape {gram.shape}")
    if params.scale.size not in (1, rows.shape[0]):
        raise ValueError(f"{params.scale.size} scales do not fit {rows.shape[0]} rows")
    if params.zero_point.any() or params.spec.bits > 8:
        raise ValueError("the grid must have zero point 0 and at most 8 bits")
    if not (np.isfinite(rows).all() and np.isfinite(gram).all()):
        raise ValueError("the rows or the Gram matrix hold NaN or Inf")


def _damped(gram: Doubles, damping: float) -> Doubles:
    """gram with a larger diagonal, in units of its mean."""
    diagonal = np.diagonal(gram)
    mean = float(diagonal.mean())
    if mean <= 0:
        return np.eye(diagonal.size)
    damped: Doubles = gram / mean
    damped[np.diag_indices_from(damped)] += np.where(diagonal == 0, 1.0, damping)
    return damped


def _unit_factor(matrix: Doubles, block: int) -> Doubles:
    """R of matrix = R D R^T: unit diagonal, zeros below it. It is L of L D L^T for the reversed matrix, reversed."""
    work = matrix[::-1, ::-1].copy()
    size = work.shape[0]
    for start in range(0, size, block):
        panel = work[start:, start : start + block].T.copy()  # transposed: a column lies in one piece
        width = panel.shape[0]
        roots = np.sqrt(_eliminate(panel))
        work[start:, start : start + block] = panel.T
        rest = panel[:, width:] * roots[:, None]
        if rest.size:
            work[start + width :, start + width :] -= precise_product(rest.T, rest)
    factor: Doubles = np.tril(work)[::-1, ::-1]
    return factor


def _eliminate(panel: Doubles) -> Doubles:
    """Columns of L into `panel` [width, m], which holds as many columns of a symmetric matrix; the diagonal of D."""
    pivots = np.empty(panel.shape[0])
    for k in range(panel.shape[0]):
        pivots[k] = pivot = panel[k, k]
        if not pivot > 0:
            raise ValueError("the Gram matrix is not positive definite: use more damping")
        below = panel[k, k + 1 : panel.shape[0]].copy()
        panel[k, k:] /= pivot
        panel[k + 1 :, k:] -= below[:, None] * panel[k, k:]
    return pivots


def _feed_forward(steps: Doubles, factor: Doubles, params: QParams, block: int) -> Doubles:
    """Integers of columns [n, C], in units of the scales."""
    wanted, integers = steps.copy(), np.empty_like(steps)
    for start in range(0, steps.shape[0], block):
        end = min(start + block, steps.shape[0])
        for k in range(start, end):
            integers[k] = np.clip(np.rint(wanted[k]), params.spec.qmin, params.spec.qmax)
            wanted[k + 1 : end] += factor[k, k + 1 : end, None] * (steps[k] - integers[k])
        if end < steps.shape[0]:
            wanted[end:] += precise_product(factor[start:end, end:].T, steps[start:end] - integers[start:end])
    return integers
