"""Round the weight of a layer so that its outputs change least: GPTQ or AdaRound, in groups and in blocks of columns.

Both go by the second moments of the layer's inputs (hence the name) and see no data: Frantar et al., "OPTQ", 2022, see
`gptq.py`, and Nagel et al., "Up or Down?", 2020, see `adaround.py`. Long rows are cut into blocks of as many columns as
their moments are known together for. Where these functions take `learning`, it is the settings of AdaRound, and None
asks for GPTQ. Products are those of BLAS: for results that do not depend on the number of threads, give it one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from amct_onnx.numerics.arrays import Floats, Int8s, Uint8s
from amct_onnx.numerics.grid import QSpec
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.adaround import learn_rounding
from amct_onnx.numerics.weights.block_grid import BlockGrid
from amct_onnx.numerics.weights.gptq import solve_gptq_blocks, solve_gptq_groups

# Is called with the share of the work on a layer that was done since the last call; what it raises ends the work.
Advance = Callable[[float], None]

_NOISE = 1e-9  # of the mean square of inputs


def round_rows(
    rows: Floats, scale: Floats, spec: QSpec, moments: SecondMoments, learning: AdaRound | None, advance: Advance
) -> Int8s:
    """Integers int8[G, R, n] of `rows` [G, R, n]: G groups with columns of their own, R rows each.

    scale: float32[G, R], of a grid with at most 8 bits and zero point 0. moments: of G groups of blocks. Raises
    ValueError where a weight or a Gram matrix cannot be rounded.
    """
    if learning is None:
        return _gptq(rows, scale, spec, moments)
    return learn_rounding(rows, scale, spec, moments, learning, advance).integers.astype(np.int8)


def round_block_rows(
    rows: Floats, grid: BlockGrid, moments: SecondMoments, learning: AdaRound | None, advance: Advance
) -> Uint8s:
    """Integers uint8[C, n] of `rows` [C, n] on a grid with a scale and a zero point for each block of columns.

    The blocks of the grid and those of `moments` may differ. Raises ValueError as `round_rows` does.
    """
    if learning is None:
        return _gptq_on_block_grid(rows, grid, moments)
    scale, zero_point = grid.columns(rows.shape[1])
    spec = QSpec(bits=grid.bits)  # signed: half of the integers are below its zero
    shift = zero_point + spec.qmin
    found = learn_rounding(
        rows[None], scale[None].astype(np.float32), spec, moments, learning, advance, shift=shift[None]
    ).integers[0]
    return np.asarray(found - spec.qmin, np.uint8)


def covariances(moments: SecondMoments) -> SecondMoments:
    """The moments of columns without their means: what counts where a bias makes up for the mean of the error."""
    gram = moments.mean[:, :, None] * -moments.mean[:, None, :]
    gram += moments.gram
    # What is left of columns that do not vary is noise: it must not make the matrix indefinite.
    index = np.arange(gram.shape[1])
    gram[:, index, index] += _NOISE * np.einsum("ukk->uk", moments.gram).mean(axis=1, keepdims=True)
    return SecondMoments(columns=moments.columns, mean=np.zeros_like(moments.mean), gram=gram)


def shrunk(moments: SecondMoments) -> SecondMoments:
    """The moments with correlations as far towards none as so few columns leave them in doubt.

    It is the Oracle Approximating Shrinkage of Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation",
    2010.
    """
    spread = np.sqrt(np.einsum("ukk->uk", moments.gram))
    scale = spread[:, :, None] * spread[:, None, :]
    correlation = np.divide(moments.gram, scale, out=np.zeros_like(scale), where=scale > 0)
    squares = np.square(correlation).sum(axis=(1, 2))
    width = np.maximum((spread > 0).sum(axis=1), 2)  # of columns that are not always zero
    doubt = (moments.columns + 1 - 2 / width) * np.maximum(squares - width, np.finfo(np.float64).tiny)
    share = np.minimum(((1 - 2 / width) * squares + width**2) / doubt, 1.0)[:, None]
    gram = moments.gram * (1 - share[..., None])
    index = np.arange(gram.shape[1])
    gram[:, index, index] += share * spread**2
    return SecondMoments(columns=moments.columns, mean=moments.mean, gram=gram)


def _gptq(rows: Floats, scale: Floats, spec: QSpec, moments: SecondMoments) -> Int8s:
    groups, count, length = rows.shape
    units, width = moments.mean.shape
    blocks = units // groups
    filled = np.zeros((groups, count, blocks * width), np.float32)
    filled[..., :length] = rows
    cut = filled.reshape(groups, count, blocks, width).swapaxes(1, 2).reshape(units, count, width)
    found = solve_gptq_groups(cut, moments.gram, np.repeat(scale, blocks, axis=0), spec)
    joined = found.reshape(groups, blocks, count, width).swapaxes(1, 2).reshape(groups, count, -1)
    return np.ascontiguousarray(joined[..., :length])


def _gptq_on_block_grid(rows: Floats, grid: BlockGrid, moments: SecondMoments) -> Uint8s:
    count, length = rows.shape
    integers, width = np.empty((count, length), np.uint8), moments.mean.shape[1]
    for unit, gram in enumerate(moments.gram):
        part = slice(unit * width, min((unit + 1) * width, length))
        size = part.stop - part.start
        integers[:, part] = solve_gptq_blocks(rows[:, part], gram[:size, :size], grid, start=part.start)
    return integers
