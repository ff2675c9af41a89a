"""Grids with a scale and a zero point for each block of columns of a row, as weight-only quantization stores them.

Blocks are cut from rows of output channels; the last one may be shorter. Integers are unsigned, as in ONNX Runtime's
MatMulNBits. The grid of a block is that of the least squared error among some ranges, the widest of which holds all its
weights; sums are numpy's, without BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Floats, Uint8s
from amct_onnx.numerics.blocks import row_parts
from amct_onnx.numerics.grid import FLT_EPSILON

_SHRINKS = tuple(1 - 0.04 * i for i in range(13))
_ELEMENTS = 1 << 18  # of a part
_LEAST_HALF = np.float32(2.0**-24)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockGrid:
    """w ~ (q - zero_point) * scale, with q in [0, 2^bits).

    scale: float32[C, B], finite and > 0. zero_point: uint8[C, B], below 2^bits. block: columns of a block. Both arrays
    are made read-only. Raises ValueError where that does not hold.
    """

    scale: Floats
    zero_point: Uint8s
    block: int
    bits: int

    def __post_init__(self) -> None:
        scale, zero_point = np.array(self.scale, np.float32), np.array(self.zero_point, np.uint8)
        if scale.ndim != 2 or scale.shape != zero_point.shape:
            raise ValueError(f"scale and zero point differ in shape: {scale.shape} and {zero_point.shape}")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("every scale must be finite and positive")
        if zero_point.max(initial=0) > self.qmax:
            raise ValueError(f"zero point above {self.qmax}")
        for name, array in (("scale", scale), ("zero_point", zero_point)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def qmax(self) -> int:
        """The highest integer, 2^bits - 1."""
        return (1 << self.bits) - 1

    @property
    def is_symmetric(self) -> bool:
        """Whether all zero points are the middle, which needs not be stored."""
        return bool((self.zero_point == 1 << (self.bits - 1)).all())

    def in_float16(self) -> BlockGrid:
        """The grid with scales that float16 holds. Raises ValueError where one is too large."""
        scale = np.maximum(self.scale, _LEAST_HALF).astype(np.float16)
        return replace(self, scale=scale.astype(np.float32))

    def columns(self, length: int, start: int = 0) -> tuple[Doubles, Doubles]:
        """Scale and zero point of each weight of `length` columns from `start` on, float64[C, length]."""
        block = (np.arange(start, start + length)) // self.block
        return self.scale[:, block].astype(np.float64), self.zero_point[:, block].astype(np.float64)

    def quantize(self, rows: Floats) -> Uint8s:
        """The nearest integers of rows [C, n]."""
        scale, zero_point = self.columns(rows.shape[1])
        return np.clip(np.rint(rows / scale + zero_point), 0, self.qmax).astype(np.uint8)

    def dequantize(self, integers: Uint8s) -> Floats:
        """The weights float32[C, n] that integers [C, n] stand for, as ONNX Runtime computes them."""
        scale, zero_point = self.columns(integers.shape[1])
        return (integers.astype(np.float32) - zero_point.astype(np.float32)) * scale.astype(np.float32)


def solve_block_grid(rows: Floats, *, block: int, bits: int) -> BlockGrid:
    """The grid of least squared error for rows [C, n].

    A block of zeros gets scale 1. Raises ValueError for NaN or Inf.
    """
    if not np.isfinite(rows).all():
        raise ValueError("the weight holds NaN or Inf")
    count, length = rows.shape
    blocks = -(-length // block)
    filled = np.zeros((count, blocks * block), np.float32)
    filled[:, :length] = rows  # zeros behind them are exact on every grid
    cut = filled.reshape(-1, block)
    scale, zero_point = np.empty(len(cut), np.float32), np.empty(len(cut), np.uint8)
    for part in row_parts(len(cut), block, _ELEMENTS):
        scale[part], zero_point[part] = _search(cut[part], bits)
    return BlockGrid(
        scale=scale.reshape(count, blocks), zero_point=zero_point.reshape(count, blocks), block=block, bits=bits
    )


def _search(cut: Floats, bits: int) -> tuple[Floats, Uint8s]:
    """Scale and zero point of each of the blocks `cut` [R, block]."""
    qmax, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, high = np.minimum(cut.min(axis=1), 0), np.maximum(cut.max(axis=1), 0)
    widest = (high - low) / qmax
    widest = np.where(widest < FLT_EPSILON, np.float32(1), widest)
    best, zeros = widest.copy(), np.full(len(cut), middle, np.uint8)
    least = np.full(len(cut), np.inf)
    for shrink in _SHRINKS:
        scale = widest * np.float32(shrink)
        zero = np.clip(np.rint(-low * shrink / scale), 0, qmax)
        steps = cut / scale[:, None]
        error = np.rint(steps)
        np.clip(error, -zero[:, None], qmax - zero[:, None], out=error)
        error -= steps
        error *= error
        total = error.sum(axis=1, dtype=np.float64) * scale.astype(np.float64) ** 2
        better = total < least
        best, zeros = np.where(better, scale, best), np.where(better, zero.astype(np.uint8), zeros)
        least = np.minimum(total, least)
    return best.astype(np.float32), zeros
