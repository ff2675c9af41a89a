"""Write an AscendQuant of a deploy model in standard operators: x -> integers in uint8, or in two uint8 for int16.

INT8:   x -> Mul -> QuantizeLinear -> u                         q = u - 128
INT16:  x -> Mul -> Round -> Add -> Clip -> v                   q = v - 2^15, v = 2^8 high + low
        v -> Mul(2^-8) -> Floor -> high,  v - 2^8 high -> low

Integer operators of ONNX take int8 at most. A layer is linear, so layer(q - offset) is 2^8 layer(high - zh) +
layer(low - zl), where zh and zl are the bytes of offset + 2^15: int32 sums of products of bytes, padding included.

With `half`, x, the product and the sum with the offset are rounded to float16 (amct_formats.md: FORCE_FP16_QUANT).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.read.lift_ops import Emitter, Quantized, unsupported
from amct_onnx.numerics.grid import half_precision_scale

# Each ONNX Runtime lacks a kernel for the newest QuantizeLinear; its own one, of the same meaning, does not age.
_LAST_QUANTIZE_LINEAR = 21


def quantize(emit: Emitter, x: ir.Value, scale: float, offset: int, *, bits: int, half: bool) -> Quantized:
    """q = clip(round_half_even(x * scale) + offset) for `bits` of 8 or 16; `x` is float32.

    QuantizeLinear divides by its scale, and x / scale_d differs from x * (1 / scale_d) in the last bit. So Mul has the
    scale, and QuantizeLinear divides by one: what it then does is round half to even, add and saturate.
    """
    middle = 1 << (bits - 1)
    shift = offset + middle
    if half:
        factor = emit.constant(half_precision_scale(scale).reshape(()), "scale")
        scaled = through_half(emit, emit.op("Mul", [through_half(emit, x), factor]))
        scaled = through_half(emit, emit.op("Add", [scaled, emit.constant(np.float32(offset), "offset")]))
        shift = middle  # what is rounded has the offset already
    else:
        scaled = emit.op("Mul", [x, emit.constant(np.float32(scale), "scale")])
    if bits == 8:
        one = emit.constant(np.float32(1), "one")
        domain = "" if emit.opset <= _LAST_QUANTIZE_LINEAR else "com.microsoft"
        value = emit.op("QuantizeLinear", [scaled, one, emit.zero_point(shift)], domain=domain)
        return Quantized(value=value, zero_point=offset + middle, scale=scale)
    moved = emit.op("Add", [emit.op("Round", [scaled]), emit.constant(np.float32(shift), "shift")])
    low_end, high_end = (emit.constant(np.float32(end), "end") for end in (0, 2 * middle - 1))
    moved = emit.op("Clip", [moved, low_end, high_end])
    high = emit.op("Floor", [emit.op("Mul", [moved, emit.constant(np.float32(2**-8), "down")])])
    low = emit.op("Sub", [moved, emit.op("Mul", [high, emit.constant(np.float32(2**8), "up")])])
    high_zero, low_zero = divmod(offset + middle, 2**8)
    high, low = (emit.op("Cast", [part], {"to": int(ir.DataType.UINT8)}) for part in (high, low))
    return Quantized(
        value=high, zero_point=high_zero, scale=scale, low=Quantized(value=low, zero_point=low_zero, scale=scale)
    )


def through_half(emit: Emitter, x: ir.Value) -> ir.Value:
    """float32 `x` rounded to float16, as float32."""
    half = emit.op("Cast", [x], {"to": int(ir.DataType.FLOAT16)})
    return emit.op("Cast", [half], {"to": int(ir.DataType.FLOAT)})


# Attributes of the Ascend operators


def scale_of(node: ir.Node) -> float:
    scale = _number(node, "scale")
    if not (np.isfinite(scale) and scale > 0):
        raise unsupported(node, f"its scale {scale:g} is not a positive number")
    return scale


def offset_of(node: ir.Node, bits: int = 8) -> int:
    offset, end = _number(node, "offset"), 1 << (bits - 1)
    if not (-end <= offset < end and offset == int(offset)):
        raise unsupported(node, f"its offset {offset:g} is not an integer of {-end}..{end - 1}")
    return int(offset)


def refuse_flags(node: ir.Node, *names: str) -> None:
    for name in names:
        if name in node.attributes and node.attributes[name].value:
            raise unsupported(node, f"its attribute {name} is set")


def _number(node: ir.Node, name: str) -> float:
    value = node.attributes[name].value if name in node.attributes else 0.0
    if not isinstance(value, (int, float)):
        raise unsupported(node, f"its attribute {name} is not a number")
    return float(value)
