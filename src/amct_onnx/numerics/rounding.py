"""The one rounding rule: q = clip(round_half_even(x / scale) + zero_point) (amct_formats.md: Rounding and scales)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amct_onnx.numerics.arrays import Array, Doubles, Floats, Reals
from amct_onnx.numerics.blocks import blocks
from amct_onnx.numerics.grid import QParams


def _along_axis(values: Doubles, params: QParams, ndim: int) -> Doubles:
    axis = params.spec.channel_axis
    if axis is None or values.size == 1:
        return values.reshape(())
    shape = [1] * ndim
    shape[axis] = values.size
    return values.reshape(shape)


def quantize(x: npt.ArrayLike, params: QParams, dtype: npt.DTypeLike = np.int32) -> Array:
    """Integers of `x`, same shape, within [qmin, qmax], which `dtype` must hold.

    Raises ValueError for NaN, which has no integer.
    """
    array = np.asarray(x)
    scale = _along_axis(params.scale.astype(np.float64), params, array.ndim)
    zero_point = _along_axis(params.zero_point.astype(np.float64), params, array.ndim)
    integers = np.empty(array.shape, dtype)
    for block in blocks(array.shape):
        q = np.asarray(array[block].astype(np.float64) / _part(scale, block))
        np.rint(q, out=q)
        if zero_point.any():
            q += _part(zero_point, block)
        if q.size and np.isnan(q.min()):
            raise ValueError("the array holds NaN")
        integers[block] = np.clip(q, params.spec.qmin, params.spec.qmax, out=q)
    return integers


def dequantize(q: npt.ArrayLike, params: QParams) -> Floats:
    """float32 values of the integers `q`, same shape."""
    array = np.asarray(q)
    scale = _along_axis(params.scale.astype(np.float64), params, array.ndim).astype(np.float32)
    zero_point = _along_axis(params.zero_point.astype(np.float64), params, array.ndim)
    steps = (array - zero_point if zero_point.any() else array).astype(np.float32)
    steps *= scale
    return steps


def _part(values: Doubles, block: tuple[slice, ...]) -> Doubles:
    """The entries of a scale or zero point, shaped to broadcast, that belong to a block of the array."""
    return values[tuple(s if n > 1 else slice(None) for s, n in zip(block, values.shape, strict=False))]


# A float32 weight that was quantized with a scale lies on its grid up to float32 rounding.
_GRID_TOLERANCE = 1e-3


def is_on_grid(rows: Reals, params: QParams) -> bool:
    """Whether each row of `rows` [C, n] is what `fake_quantize` gave for it, up to the rounding of its dtype."""
    scale = params.scale.reshape(-1, 1)
    parts = ((rows[block], scale[block[0]] if scale.size > 1 else scale) for block in blocks(rows.shape))
    return all(_part_on_grid(part, of_part, params) for part, of_part in parts)


def _part_on_grid(part: Reals, scale: Floats, params: QParams) -> bool:
    ratio = part / scale
    integers = np.rint(ratio)
    if part.dtype == np.float16:  # its rounding is coarse beside the tolerance, but rounding again gives the same
        near = ((integers * scale).astype(np.float16) == part).all()
    else:
        ratio -= integers
        near = max(ratio.max(), -ratio.min()) <= _GRID_TOLERANCE
    return bool(near and integers.max() <= params.spec.qmax and integers.min() >= params.spec.qmin)


def fake_quantize(x: npt.ArrayLike, params: QParams) -> Floats:
    """`x` rounded to its quantization grid, float32, same shape."""
    narrow = params.spec.bits <= 8
    return dequantize(quantize(x, params, np.int8 if narrow else np.int16), params)
