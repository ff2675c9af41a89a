"""Scale and zero point of one tensor, and the two rules that derive them from a range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amct_onnx.numerics.arrays import Floats, Int32s

FLT_EPSILON = float(np.finfo(np.float32).eps)
# The scales of files that have no bounds of their own. Any two of them have a ratio in float32, and so has the least
# range of a tensor: no float32 beyond the finest bin of a histogram needs a smaller one.
LEAST_SCALE, MOST_SCALE = 2.0**-120, 2.0**121


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """The integer grid of a tensor: signed two's complement, as every format here uses
    (amct_formats.md: Rounding and scales).

    `symmetric` fixes the zero point at 0. channel_axis: the axis of which each index has a scale of its own; None for
    one scale for the whole tensor. least_scale, most_scale: the bounds of scales, by default those of AMCT's records.
    Raises ValueError unless 2 <= bits <= 16.
    """

    bits: int = 8
    symmetric: bool = True
    channel_axis: int | None = None
    least_scale: float = FLT_EPSILON
    most_scale: float = 1 / FLT_EPSILON

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be within [2, 16], got {self.bits}")

    @property
    def qmin(self) -> int:
        """Lowest integer, -2^(bits-1)."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Highest integer, 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True, kw_only=True)
class QParams:
    """x ~ (q - zero_point) * scale, with one entry per channel or a single one.

    scale: float32[C], finite and > 0. zero_point: int32[C], within the spec's integers, 0 when symmetric.
    Both arrays are made read-only. Raises ValueError when the invariant does not hold.
    """

    scale: Floats
    zero_point: Int32s
    spec: QSpec

    def __post_init__(self) -> None:
        scale = np.atleast_1d(np.asarray(self.scale, np.float32)).copy()
        zero_point = np.atleast_1d(np.asarray(self.zero_point, np.int32)).copy()
        if scale.shape != zero_point.shape or scale.ndim != 1:
            raise ValueError(f"scale and zero point differ in shape: {scale.shape} and {zero_point.shape}")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("every scale must be finite and positive")
        if self.spec.symmetric and zero_point.any():
            raise ValueError("a symmetric tensor has zero point 0")
        if ((zero_point < self.spec.qmin) | (zero_point > self.spec.qmax)).any():
            raise ValueError(f"zero point outside [{self.spec.qmin}, {self.spec.qmax}]")
        for array in (scale, zero_point):
            array.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest value of the grid of a tensor with one scale."""
        scale, zero = float(self.scale[0]), int(self.zero_point[0])
        return scale * (self.spec.qmin - zero), scale * (self.spec.qmax - zero)


def legal_scale(scale: npt.ArrayLike, spec: QSpec) -> Floats:
    """AMCT's `process_scale` (amct_formats.md: Rounding and scales), elementwise: a scale below the bound becomes 1.

    Raises ValueError for NaN, Inf and scales above the other bound.
    """
    value = np.asarray(scale, np.float32)
    if not np.isfinite(value).all():
        raise ValueError("the scale is NaN or Inf")
    value = np.where(value < spec.least_scale, np.float32(1.0), value)
    if (value > spec.most_scale).any():
        raise ValueError(f"the scale exceeds {spec.most_scale:.7g}: the tensor is too large for int8")
    return value


_HALF_MIN, _HALF_MAX = 2.0**-14, 65504.0  # normal numbers of float16


def half_precision_scale(scale: npt.ArrayLike) -> Floats:
    """`scale` rounded to float16, or the square of a float16 (amct_formats.md: FORCE_FP16_QUANT).

    Outside the normal float16 numbers it is fp16(sqrt(s))^2, so that two multiplications in half precision apply it.
    """
    value = np.asarray(scale, np.float32)
    normal = (value >= _HALF_MIN) & (value <= _HALF_MAX)
    half = np.where(normal, value, 1.0).astype(np.float16).astype(np.float32)
    root = np.sqrt(value).astype(np.float16).astype(np.float32)
    return np.where(normal, half, root * root)


def truncated_scale(scale: npt.ArrayLike) -> Floats:
    """`scale` with the low 13 bits of its mantissa cleared: the s19 numbers in which chips dequantize
    (amct_formats.md: FORCE_FP16_QUANT).
    """
    bits: npt.NDArray[np.uint32] = np.asarray(scale, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32)


def asymmetric_from_range(low: float, high: float, spec: QSpec) -> QParams:
    """Grid over [low, high] with low <= 0 <= high: scale = (high-low)/(2^b-1) (amct_formats.md: IFMR, HFMG).

    An all-zero range gives scale 1 and the lowest zero point.
    """
    with np.errstate(over="ignore"):
        scale = legal_scale((np.float32(high) - np.float32(low)) / np.float32(spec.qmax - spec.qmin), spec)
    # C's round: half away from zero, and low <= 0.
    zero_point = np.floor(-np.float64(low) / np.float64(scale) + 0.5) + spec.qmin
    return QParams(scale=scale, zero_point=np.clip(zero_point, spec.qmin, spec.qmax).astype(np.int32), spec=spec)


def symmetric_from_range(low: npt.ArrayLike, high: npt.ArrayLike, spec: QSpec) -> QParams:
    """Grid through zero for [low, high], one range or one per channel (amct_formats.md: IFMR, HFMG, ARQ).

    The bound of larger magnitude decides: divided by 2^(b-1)-1 when positive, by 2^(b-1) when negative. Of two equal
    magnitudes it is the positive one, so that both ends fit.
    """
    lows, highs = np.atleast_1d(np.asarray(low, np.float32)), np.atleast_1d(np.asarray(high, np.float32))
    positive = highs >= -lows
    scale = np.where(positive, np.abs(highs) / np.float32(spec.qmax), np.abs(lows) / np.float32(-spec.qmin))
    return QParams(scale=legal_scale(scale, spec), zero_point=np.zeros(scale.shape, np.int32), spec=spec)
