"""The integer layers of a deploy model, one function each: int8 layer in, standard integer operators out.

Used by `lift_deploy`. An int8 tensor travels as uint8, `u = q + 128`, with the zero point `offset + 128`; a weight
as `w + 128` with zero point 128. The integers that the operators compute are the same, and the reason is ONNX
Runtime: its kernels for uint8 times int8 add pairs of products in int16 on x86 CPUs without VNNI, and saturate
there; those for uint8 times uint8 do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import graph_of, input_of, label_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_value
from amct_onnx.graph.layer_view import constant_input
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.tensors import array_of, deferred
from amct_onnx.numerics.arrays import Array, Int8s, Int32s

_INT8_TO_UINT8 = np.uint8(0x80)
WEIGHT_ZERO_POINT = 128
_END = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized tensor: `value` is uint8 and stands for the integers `value - zero_point`; `scale` is 1/scale_d.

    With `low`, the low byte of an int16 tensor, `value` is the high one: 2^8 (value - zero_point) plus what `low` is.
    """

    value: ir.Value
    zero_point: int
    scale: float
    low: Quantized | None = None


def unsupported(node: ir.Node, reason: str) -> ModelError:
    """The error for a node that has no integer form here: which node, why, and what remains to do."""
    name = node.name or (f"with output {node.outputs[0].name}" if node.outputs else "without a name")
    return ModelError(
        f"cannot run this deploy model: node {name} ({node.op_type}): {reason}. "
        "Evaluate the fake-quant model of the same save_model call instead."
    )


class Emitter:
    """Writes new nodes in front of an anchor node, with value names that are new in the whole model.

    Constants become initializers of the main graph, where every subgraph sees them.
    """

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._imports = model.opset_imports
        self._names = ValueNames(model)
        self._anchor: ir.Node  # `at` gives it
        self._weights: dict[tuple[ir.Value, str], ir.Value] = {}
        self.opset = default_opset(model) or 1

    def at(self, node: ir.Node) -> None:
        """Write the next nodes in front of `node`."""
        self._anchor = node

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] = MappingProxyType({}),
        *,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Value:
        """One new node, of the default domain or of version 1 of another; its first output."""
        base = f"{label_of(self._anchor)}.{op_type}"
        attrs = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, op_type, inputs, attrs, num_outputs=outputs, name=self._names.node(base))
        if domain:
            self._imports.setdefault(domain, 1)
        for value in node.outputs:
            value.name = self._names.new(f"{base}.output{value.index()}")
        graph_of(self._anchor).insert_before(self._anchor, node)
        return node.outputs[0]

    def constant(self, array: Array | np.generic, hint: str) -> ir.Value:
        """A new initializer of the main graph."""
        return add_initializer(self._graph, f"{label_of(self._anchor)}.{hint}", array, names=self._names)

    def ints(self, values: Sequence[int], hint: str) -> ir.Value:
        """An int64 vector, as shapes, axes and pads are."""
        return self.constant(np.asarray(values, np.int64), hint)

    def zero_point(self, zero_point: int) -> ir.Value:
        return self.constant(np.uint8(zero_point), "zero_point")

    def weight(
        self, node: ir.Node, index: int, layout: str, arrange: Callable[[Array], Array] = np.asarray
    ) -> ir.Value:
        """Input `index` of a layer, a constant of int8, as uint8; made once for all that read it in the same layout.

        `arrange` gives the array of that layout.
        """
        key = input_of(node, index), layout
        if key not in self._weights:
            tensor = constant_input(node, index)

            def compute() -> Array:
                unsigned: Array = np.ascontiguousarray(arrange(array_of(tensor))).view(np.uint8) ^ _INT8_TO_UINT8
                return unsigned

            shifted = deferred(compute, np.uint8, arrange(array_of(tensor)).shape)
            name = f"{label_of(self._anchor)}.weight"
            self._weights[key] = add_initializer(self._graph, name, shifted, names=self._names)
        return self._weights[key]

    def unsqueeze(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        if self.opset < 13:  # the axes moved from the attribute to an input
            return self.op("Unsqueeze", [value], {"axes": list(axes)})
        return self.op("Unsqueeze", [value, self.ints(axes, "axes")])


def conv(emit: Emitter, node: ir.Node, x: Quantized, *, bias: bool = True) -> ir.Value:
    """Conv (any rank, grouped, any padding) -> ConvInteger (+ Add of the int32 bias).

    ConvInteger pads with its input's zero point, so padding is the integer 0.
    """
    weight = _int8_weight(node)
    right = emit.weight(node, 1, "plain")
    product = _product(emit, "ConvInteger", (x.value, x.zero_point), (right, WEIGHT_ZERO_POINT), node.attributes)
    return _add_channel_bias(emit, node, product, weight.ndim) if bias else product


def conv_transpose(emit: Emitter, node: ir.Node, x: Quantized, *, bias: bool = True) -> ir.Value:
    """ConvTranspose -> ConvInteger over the input with zeros between its elements, kernel turned round.

    Before: y[o] = sum over i, j with i * stride + j * dilation - pad_begin = o of x[i] * w[j].
    After: z = x with stride - 1 zeros after each element; y = z padded, convolved with w mirrored. The stuffed zeros
    and the padding are the zero point. Where a pad comes out negative the stuffed input is cropped instead.
    """
    weight = _int8_weight(node)
    rank = weight.ndim - 2
    group = node.attributes.get_int("group", 1)
    strides = _spatial(node, "strides", [1] * rank)
    dilations = _spatial(node, "dilations", [1] * rank)
    extra = _spatial(node, "output_padding", [0] * rank)
    # The kernel's reach: how far beyond its own position one input element writes.
    reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations, strict=True)]

    out_shape = [int(n) for n in node.attributes.get_ints("output_shape", [])]
    if out_shape and len(out_shape) not in (rank, rank + 2):
        raise unsupported(node, f"output_shape {out_shape} does not fit {rank} spatial axes")
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    begin, end = _transpose_pads(node, rank, auto_pad, reach, strides, extra)
    if out_shape:  # compute everything, cut at run time: the pads depend on the input's size
        begin, end = [0] * rank, [0] * rank
    before = [r - b for r, b in zip(reach, begin, strict=True)]
    after = [r - e + p - s + 1 for r, e, p, s in zip(reach, end, extra, strides, strict=True)]

    value = _stuff(emit, x, strides)
    if min(before + after) < 0:
        value = _pad_and_crop(emit, value, x.zero_point, before, after)
        before, after = [0] * rank, [0] * rank
    right = emit.weight(node, 1, f"transposed in {group} groups", lambda w: _turned(w, group))
    attributes = {"group": group, "dilations": dilations, "pads": before + after}
    product = _product(emit, "ConvInteger", (value, x.zero_point), (right, WEIGHT_ZERO_POINT), attributes)
    if out_shape:
        product = _cut(emit, product, out_shape[-rank:], centre_low=auto_pad == "SAME_UPPER")
    return _add_channel_bias(emit, node, product, weight.ndim) if bias else product


def gemm(emit: Emitter, node: ir.Node, a: Quantized, b: Quantized | None = None, *, bias: bool = True) -> ir.Value:
    """Gemm with alpha = beta = 1 -> MatMulInteger (+ Add of the int32 bias)."""
    for name in ("alpha", "beta"):
        factor = node.attributes.get_float(name, 1.0)
        if factor != 1.0:
            raise unsupported(node, f"{name} is {factor:g}, and an int8 Gemm has 1")
    if node.attributes.get_int("transA", 0):
        raise unsupported(node, "transA is set")
    turn = bool(node.attributes.get_int("transB", 0))
    if b is None:
        _int8_weight(node)
        right = emit.weight(node, 1, "turned", np.transpose) if turn else emit.weight(node, 1, "plain")
        zero_point = WEIGHT_ZERO_POINT
    else:
        right = emit.op("Transpose", [b.value], {"perm": [1, 0]}) if turn else b.value
        zero_point = b.zero_point
    product = _product(emit, "MatMulInteger", (a.value, a.zero_point), (right, zero_point))
    constant = optional_input(node, 2) if bias else None
    if constant is None:
        return product
    return emit.op("Add", [product, emit.constant(_int32_bias(node, constant), "bias")])


def matmul(emit: Emitter, node: ir.Node, a: Quantized | None, b: Quantized | None) -> ir.Value:
    """MatMul of two quantized tensors, or of one and an int8 constant on either side -> MatMulInteger."""
    sides = []
    for index, side in enumerate((a, b)):
        if side is None:
            _int8_weight(node, index)
            sides.append((emit.weight(node, index, "plain"), WEIGHT_ZERO_POINT))
        else:
            sides.append((side.value, side.zero_point))
    return _product(emit, "MatMulInteger", sides[0], sides[1])


def pool(emit: Emitter, node: ir.Node, x: Quantized) -> ir.Value:
    """AveragePool -> the same pooling of the integers in float32: their sums are exact, the mean is not an integer."""
    plain = emit.op("Cast", [x.value], {"to": int(ir.DataType.FLOAT)})
    integers = emit.op("Sub", [plain, emit.constant(np.float32(x.zero_point), "zero_point")])
    return emit.op(node.op_type, [integers], node.attributes)


def _product(
    emit: Emitter,
    op_type: str,
    a: tuple[ir.Value, int],
    b: tuple[ir.Value, int],
    attributes: Mapping[str, Any] = MappingProxyType({}),
) -> ir.Value:
    """An operator on integers, each operand with its zero point."""
    return emit.op(op_type, [a[0], b[0], emit.zero_point(a[1]), emit.zero_point(b[1])], attributes)


def _int8_weight(node: ir.Node, index: int = 1) -> Int8s:
    value = optional_input(node, index)
    if value is None:
        raise unsupported(node, f"input {index} is missing")
    return _constant_of(node, value, np.dtype(np.int8), f"its other input is int8, so {value.name}")


def _int32_bias(node: ir.Node, bias: ir.Value) -> Int32s:
    return _constant_of(node, bias, np.dtype(np.int32), f"its bias {bias.name}")


def _constant_of(node: ir.Node, value: ir.Value, dtype: np.dtype[Any], subject: str) -> Array:
    array = constant_value(value)
    if array is None or array.dtype != dtype:
        found = "not constant" if array is None else str(array.dtype)
        raise unsupported(node, f"{subject} must be an {dtype} constant and is {found}")
    return array


def _add_channel_bias(emit: Emitter, node: ir.Node, product: ir.Value, rank: int) -> ir.Value:
    bias = optional_input(node, 2)
    if bias is None:
        return product
    array = _int32_bias(node, bias).reshape(-1, *[1] * (rank - 2))
    return emit.op("Add", [product, emit.constant(array, "bias")])


def _spatial(node: ir.Node, name: str, default: list[int]) -> list[int]:
    values = [int(n) for n in node.attributes.get_ints(name, default)]
    if len(values) != len(default):
        raise unsupported(node, f"{name} has {len(values)} entries and needs {len(default)}")
    return values


def _transpose_pads(
    node: ir.Node, rank: int, auto_pad: str, reach: list[int], strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """What a ConvTranspose cuts off its full output: at the begin and at the end of each spatial axis."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # The output is input * stride long; a kernel smaller than its stride leaves nothing to cut.
        totals = [max(0, r + 1 + p - s) for r, p, s in zip(reach, extra, strides, strict=True)]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    if auto_pad not in ("NOTSET", "VALID"):
        raise unsupported(node, f"auto_pad {auto_pad} is unknown")
    pads = _spatial(node, "pads", [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
    return pads[:rank], pads[rank:]


def _stuff(emit: Emitter, x: Quantized, strides: list[int]) -> ir.Value:
    """[N, C, D1, ...] -> [N, C, D1 * s1, ...]: each element followed by s - 1 zero points. Any size at run time."""
    wide = [axis for axis, stride in enumerate(strides, start=2) if stride > 1]
    if not wide:
        return x.value
    slots = [axis + 1 + earlier for earlier, axis in enumerate(wide)]
    split = emit.unsqueeze(x.value, slots)
    rank = 2 + len(strides) + len(wide)
    ends = [0] * rank
    for slot, axis in zip(slots, wide, strict=True):
        ends[slot] = strides[axis - 2] - 1
    pads = emit.ints([0] * rank + ends, "pads")
    filled = emit.op("Pad", [split, pads, emit.zero_point(x.zero_point)], {"mode": "constant"})
    shape = emit.op("Mul", [emit.op("Shape", [x.value]), emit.ints([1, 1, *strides], "strides")])
    return emit.op("Reshape", [filled, shape])


def _turned(weight: Int8s, group: int) -> Int8s:
    """ConvTranspose weight [C, M/g, ...] -> weight [M, C/g, ...] of the convolution, mirrored in space."""
    grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:]).swapaxes(1, 2)
    turned = grouped.reshape(-1, weight.shape[0] // group, *weight.shape[2:])
    return np.flip(turned, axis=tuple(range(2, weight.ndim)))


def _pad_and_crop(emit: Emitter, value: ir.Value, zero_point: int, before: list[int], after: list[int]) -> ir.Value:
    """Pads of either sign: padding first, since a Pad that crops a whole axis goes wrong in ONNX Runtime 1.23."""
    rank = len(before)
    pads = emit.ints([0, 0, *(max(0, b) for b in before), 0, 0, *(max(0, a) for a in after)], "pads")
    padded = emit.op("Pad", [value, pads, emit.zero_point(zero_point)], {"mode": "constant"})
    starts = emit.ints([max(0, -b) for b in before], "starts")
    ends = emit.ints([a if a < 0 else _END for a in after], "ends")
    return emit.op("Slice", [padded, starts, ends, emit.ints(list(range(2, 2 + rank)), "axes")])


def _cut(emit: Emitter, full: ir.Value, size: list[int], *, centre_low: bool) -> ir.Value:
    """[N, M, F1, ...] -> [N, M, size...], out of the middle; an odd rest is cut at the end if `centre_low`.

    Where `size` is larger than the full output, zeros follow, as ONNX Runtime has it. The Reshape only tells the shape.
    """
    rank = len(size)
    shape = emit.op("Slice", [emit.op("Shape", [full]), emit.ints([2], "from"), emit.ints([2 + rank], "to")])
    rest = emit.op("Sub", [shape, emit.ints(size, "size")])
    larger = emit.op("Greater", [rest, emit.ints([0], "zero")])
    larger = emit.op("Cast", [larger], {"to": int(ir.DataType.INT64)})
    difference, rest = rest, emit.op("Mul", [rest, larger])
    more = emit.op("Sub", [rest, difference])
    pads = emit.op("Concat", [emit.ints([0] * (rank + 4), "before"), more], {"axis": 0})
    full = emit.op("Pad", [full, pads, emit.constant(np.int32(0), "nothing")], {"mode": "constant"})
    if not centre_low:
        rest = emit.op("Add", [rest, emit.ints([1], "one")])
    start = emit.op("Div", [rest, emit.ints([2], "two")])
    stop = emit.op("Add", [start, emit.ints(size, "size")])
    middle = emit.op("Slice", [full, start, stop, emit.ints(list(range(2, 2 + rank)), "axes")])
    return emit.op("Reshape", [middle, emit.ints([0, 0, *size], "shape")])
