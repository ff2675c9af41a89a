"""The uint64 parameter of an `AscendDequant` node: scale, shift and weight offset in one word per channel.

Layout, from the least significant bit (amct_formats.md: Deploy model):

    bits  0-31   float32 bits of `scale_d * scale_w`
    bits 32-39   shift N, unsigned: the accumulator is divided by 2**N before it is scaled
    bits 40-47   offset of the weight, int8 in two's complement
    bits 48-63   zero
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amct_onnx.numerics.arrays import Floats, Int32s, Int64s

_SHIFT_AT = np.uint64(32)
_OFFSET_AT = np.uint64(40)
_LOW_32 = np.uint64(0xFFFF_FFFF)
_LOW_8 = np.uint64(0xFF)


@dataclass(frozen=True, kw_only=True)
class DequantParam:
    """The unpacked parameter: three read-only arrays of one shape, [1] (per tensor) or [C] (per channel).

    `scale` float32, `shift` int32 in 0..255, `offset_w` int32 in -128..127.
    """

    scale: Floats
    shift: Int32s
    offset_w: Int32s


def pack_dequant(scale: npt.ArrayLike, shift: npt.ArrayLike = 0, offset_w: npt.ArrayLike = 0) -> npt.NDArray[np.uint64]:
    """Pack float32 scales of shape [C] (or []) with shifts and weight offsets that broadcast to them: uint64[C].

    A scalar scale gives a parameter of shape [1]. The float32 bits are kept as they are.
    Raises ValueError if a shift is not in 0..255, an offset not in -128..127, or the shapes do not agree.
    """
    scales = np.atleast_1d(np.asarray(scale, dtype=np.float32))
    if scales.ndim != 1:
        raise ValueError(f"scale must have shape [C], got {list(scales.shape)}")
    shifts = _small_integers("shift", shift, 0, 255, scales.shape)
    offsets = _small_integers("offset_w", offset_w, -128, 127, scales.shape)
    bits = np.ascontiguousarray(scales).view(np.uint32).astype(np.uint64)
    high: npt.NDArray[np.uint64] = (shifts.astype(np.uint64) << _SHIFT_AT) | (
        (offsets & 0xFF).astype(np.uint64) << _OFFSET_AT
    )
    return bits | high


def unpack_dequant(param: npt.ArrayLike) -> DequantParam:
    """Unpack uint64 of shape [C] (or []). The inverse of `pack_dequant`; bits 48-63 are ignored.

    Raises ValueError if the array is not uint64 or has more than one axis.
    """
    words = np.atleast_1d(np.asarray(param))
    if words.dtype != np.uint64 or words.ndim != 1:
        raise ValueError(f"a dequant parameter is uint64 of shape [C], got {words.dtype} {list(words.shape)}")
    scale = (words & _LOW_32).astype(np.uint32).view(np.float32)
    shift = ((words >> _SHIFT_AT) & _LOW_8).astype(np.int32)
    offset = ((words >> _OFFSET_AT) & _LOW_8).astype(np.uint8).view(np.int8).astype(np.int32)
    for array in (scale, shift, offset):
        array.setflags(write=False)
    return DequantParam(scale=scale, shift=shift, offset_w=offset)


def _small_integers(name: str, values: npt.ArrayLike, low: int, high: int, shape: tuple[int, ...]) -> Int64s:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    if array.size and (array.min() < low or array.max() > high):
        raise ValueError(f"{name} must be in {low}..{high}, got {int(array.min())}..{int(array.max())}")
    return np.broadcast_to(array.astype(np.int64), shape)
