"""Pass: a deploy model (Ascend operators, layers on int8) becomes a standard model that computes the same integers.

Before:  x -> AscendQuant -> Conv(int8 weight, int32 bias) -> AscendDequant(uint64 parameter) -> y
After:   x -> Mul -> QuantizeLinear -> ConvInteger -> Add(int32) -> Cast -> Mul -> y

Nothing but the model is needed. Each quantized tensor is followed from its AscendQuant to its consumers, through the
operators that only move elements, and into subgraphs. Semantics: amct_formats.md: Rounding and scales, Fake-quant
model, Deploy model.

Requires: default opset 11 or newer. Ensures: no Ascend operator is left, names and types of the graph inputs and
outputs are unchanged. A second run finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import all_nodes, bodies_of, graph_of, is_op, is_standard, maker_of, optional_input
from amct_onnx.graph.constants import constant_value, lift_ir3
from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.read import lift_ops as ops
from amct_onnx.graph.read.lift_ops import Emitter, Quantized, unsupported
from amct_onnx.graph.read.lift_quant import offset_of, quantize, refuse_flags, scale_of, through_half
from amct_onnx.numerics.arrays import Reals
from amct_onnx.numerics.packing import unpack_dequant

# Metadata of a deploy model whose chip quantizes in float16; nothing else in the file says so.
PRECISION_KEY = "amct_onnx.fakequant_precision_mode"
_MINIMUM_OPSET = 11
_FLOAT = int(ir.DataType.FLOAT)
# Operators that move, repeat or drop elements of input 0 and do not look at them.
_RESHAPE = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DepthToSpace", "SpaceToDepth", "Transpose")
_MOVES = frozenset((*_RESHAPE, "Slice", "Split", "Gather", "Expand", "Tile"))
_POOLS = ("AveragePool", "GlobalAveragePool")
_INT16_READER = "it reads an int16 tensor, which only Conv, ConvTranspose and Gemm with constant weights do here"
_LINEAR: dict[str, Callable[..., ir.Value]] = {
    "Conv": ops.conv,
    "ConvTranspose": ops.conv_transpose,
    "Gemm": ops.gemm,
}
_LAYERS = (*_LINEAR, "MatMul", *_POOLS)


def has_ascend_operators(model: ir.Model) -> bool:
    """Whether the model holds operators of a deploy model: Ascend* in the default domain, also in subgraphs."""
    return any(_is_ascend(node) for node in all_nodes(model))


def lift_deploy(model: ir.Model) -> None:
    """Replace the Ascend operators and the int8 layers of `model`, in place.

    Raises ModelError that names the node and the reason for whatever has no exact integer form in ONNX. The model is
    then half changed and must be dropped.
    """
    if not has_ascend_operators(model):
        return
    if any(_is_ascend(node) for function in model.functions.values() for node in function.all_nodes()):
        InlinePass()(model)
    lift_ir3(model)
    emit = Emitter(model)
    if emit.opset < _MINIMUM_OPSET:
        raise ModelError(
            f"cannot run this deploy model: it has opset {emit.opset}, and the integer operators need "
            f"{_MINIMUM_OPSET} or newer. Convert the float model to opset {_MINIMUM_OPSET} and quantize again."
        )
    model.graph.sort()
    _Lifter(model, emit).run()
    name_nodes(model)  # ONNX Runtime refuses two nodes of one name in a graph


def _is_ascend(node: ir.Node) -> bool:
    return is_standard(node) and node.op_type.startswith("Ascend")


class _Lifter:
    """One walk over a model. `_quantized` maps each int8 value of the file to the uint8 value that replaces it."""

    def __init__(self, model: ir.Model, emit: Emitter) -> None:
        self._model = model
        self._emit = emit
        self._half = model.metadata_props.get(PRECISION_KEY) == "FORCE_FP16_QUANT"
        self._quantized: dict[ir.Value, Quantized] = {}
        self._ranks: dict[ir.Value, int] = {}
        self._replaced: list[ir.Node] = []
        self._ascend: dict[str, Callable[[ir.Node], None]] = {
            "AscendQuant": self._lift_quant,
            "AscendDequant": self._lift_dequant,
            "AscendAntiQuant": self._lift_anti_quant,
        }

    def run(self) -> None:
        self._forget_types()
        self._walk(self._model.graph)
        self._restore_int8()
        for node in reversed(self._replaced):
            graph_of(node).remove(node, safe=True)
        self._drop_unused_initializers()

    def _walk(self, graph: ir.Graph) -> None:
        for node in list(graph):
            for body in bodies_of(node):
                self._walk(body)
            self._lift(node)

    def _lift(self, node: ir.Node) -> None:
        self._emit.at(node)
        if _is_ascend(node):
            if node.op_type not in self._ascend:
                raise unsupported(node, "this operator is unknown here")
            self._ascend[node.op_type](node)
            return
        standard = is_standard(node)
        if standard and node.op_type in _LAYERS:
            self._lift_layer(node)
            return
        touched = [index for index, value in enumerate(node.inputs) if value in self._quantized]
        if not touched or (standard and node.op_type in ("Loop", "Scan")):
            return  # a body declares int8 for what it is given: `_restore_int8` provides it
        if not standard or (touched != [0] and node.op_type != "Concat"):
            raise unsupported(node, "it reads an int8 tensor in a way that has no integer form here")
        self._lift_between(node)

    # The Ascend operators

    def _lift_quant(self, node: ir.Node) -> None:
        kind = node.attributes["dst_type"].value if "dst_type" in node.attributes else "INT8"
        bits = {"INT8": 8, "INT16": 16}.get(kind.strip()) if isinstance(kind, str) else None
        if bits is None or node.attributes.get_int("quant_bit", bits) != bits:
            raise unsupported(node, f"it quantizes to {kind}, and only INT8 and INT16 are supported")
        refuse_flags(node, "sqrt_mode")
        scale, offset, x = scale_of(node), offset_of(node, bits), self._float32(self._data(node))
        quantized = quantize(self._emit, x, scale, offset, bits=bits, half=self._half)
        self._quantized[node.outputs[0]] = quantized
        self._replaced.append(node)

    def _lift_dequant(self, node: ir.Node) -> None:
        """y = float32(v) * s, per tensor or along axis 1; with a shift N, clip(floor(v / 2^N), int16) * 2^N for v."""
        v = self._data(node)
        if v in self._quantized:
            raise unsupported(node, "its input is the int8 output of an AscendQuant and not the result of a layer")
        refuse_flags(node, "sqrt_mode", "relu_flag")
        packed = constant_value(optional_input(node, 1))
        if packed is None or packed.dtype != np.uint64 or packed.ndim > 1:
            raise unsupported(node, "its second input must be a uint64 constant of shape [1] or [C]")
        param = unpack_dequant(packed)
        if param.offset_w.any():
            raise unsupported(node, f"the weight offset {int(param.offset_w[param.offset_w != 0][0])} is not 0")
        if not param.shift.any():
            y = self._emit.op("Cast", [v], {"to": _FLOAT})
            y = self._emit.op("Mul", [y, self._per_channel(v, param.scale, "scale")])
        else:
            # In float64, where every int32 is exact, the quotient and its floor are too. One channel with a shift
            # puts all channels into the range of int16 (amct_formats.md: Deploy model).
            power = np.exp2(param.shift.astype(np.float64))
            y = self._emit.op("Cast", [v], {"to": int(ir.DataType.DOUBLE)})
            y = self._emit.op("Floor", [self._emit.op("Mul", [y, self._per_channel(v, 1 / power, "power")])])
            y = self._emit.op("Max", [y, self._emit.constant(np.float64(-32768), "low")])
            y = self._emit.op("Min", [y, self._emit.constant(np.float64(32767), "high")])
            y = self._emit.op("Cast", [y], {"to": _FLOAT})
            factor = param.scale * power.astype(np.float32)
            y = self._emit.op("Mul", [y, self._per_channel(v, factor, "scale")])
        self._replace(node, self._to_dtype(node, through_half(self._emit, y) if self._half else y))

    def _lift_anti_quant(self, node: ir.Node) -> None:
        """y = (q - offset) * scale in float32. Its input may also be an int8 tensor of unknown origin."""
        refuse_flags(node, "sqrt_mode")
        offset, scale = offset_of(node), scale_of(node)
        x = self._data(node)
        known = self._quantized.get(x)
        if known and known.low:
            raise unsupported(node, _INT16_READER)
        value = known.value if known else x
        plain = self._emit.op("Cast", [value], {"to": _FLOAT})
        zero = self._emit.constant(np.float32(offset + 128 if known else offset), "offset")
        scaled = self._emit.op(
            "Mul", [self._emit.op("Sub", [plain, zero]), self._emit.constant(np.float32(scale), "scale")]
        )
        self._replace(node, self._to_dtype(node, scaled))

    # Layers

    def _lift_layer(self, node: ir.Node) -> None:
        a = self._quantized.get(self._data(node))
        second = optional_input(node, 1)
        b, weight = None if second is None else self._quantized.get(second), constant_value(second)
        if a is None and (b is None or node.op_type != "MatMul"):
            if b is not None or (weight is not None and weight.dtype == np.int8):
                raise unsupported(node, "its weight is int8 and its input is not the output of an AscendQuant")
            return  # a float layer
        if any(x is not None and x.low is not None for x in (a, b)):
            result = self._lift_wide(node, a, b)
        elif node.op_type == "MatMul":
            result = ops.matmul(self._emit, node, a, b)
        elif a is None:
            raise AssertionError("only MatMul takes int8 data on its right side alone")
        elif node.op_type == "Gemm":
            result = ops.gemm(self._emit, node, a, b)
        elif node.op_type in _POOLS:
            result = ops.pool(self._emit, node, a)
            if "kernel_shape" in node.attributes:
                self._ranks[result] = 2 + len(node.attributes.get_ints("kernel_shape"))
        else:
            result = _LINEAR[node.op_type](self._emit, node, a)
        if node.op_type == "Gemm" or (weight is not None and node.op_type != "MatMul"):
            self._ranks[result] = 2 if weight is None else weight.ndim
        self._replace(node, result)

    def _lift_wide(self, node: ir.Node, a: Quantized | None, b: Quantized | None) -> ir.Value:
        """A layer on int16: 2^8 times the layer on the high bytes, plus the layer on the low ones with the bias."""
        if node.op_type not in _LINEAR or a is None or a.low is None or b is not None:
            raise unsupported(node, _INT16_READER)
        layer = _LINEAR[node.op_type]
        high = self._emit.op("Mul", [layer(self._emit, node, a, bias=False), self._emit.constant(np.int32(256), "up")])
        return self._emit.op("Add", [high, layer(self._emit, node, a.low)])

    # What may stand between an AscendQuant and its layer

    def _lift_between(self, node: ir.Node) -> None:
        if any(value in self._quantized and self._quantized[value].low for value in node.inputs if value is not None):
            raise unsupported(node, _INT16_READER)
        if node.op_type in _MOVES:
            x = self._quantized[self._data(node)]
            first = self._emit.op(node.op_type, [x.value, *node.inputs[1:]], node.attributes, outputs=len(node.outputs))
            self._set_quantized(node, list(maker_of(first).outputs), x)
        elif node.op_type == "Concat":
            self._lift_concat(node)
        elif node.op_type == "Pad":
            self._lift_pad(node)
        elif node.op_type in ("MaxPool", "Relu"):
            self._lift_monotone(node)
        elif node.op_type in ("Shape", "Size"):
            x = self._quantized[self._data(node)]
            self._replace(node, self._emit.op(node.op_type, [x.value], node.attributes))
        else:
            raise unsupported(node, "it reads an int8 tensor and has no integer form here")

    def _lift_concat(self, node: ir.Node) -> None:
        parts = [self._quantized.get(value) for value in node.inputs if value is not None]
        known = [part for part in parts if part is not None]
        if len(known) != len(parts) or len({(part.scale, part.zero_point) for part in known}) > 1:
            raise unsupported(node, "it joins tensors that are not quantized with the same scale and offset")
        value = self._emit.op("Concat", [part.value for part in known], node.attributes)
        self._set_quantized(node, [value], known[0])

    def _lift_pad(self, node: ir.Node) -> None:
        """A pad of zero is the integer 0 of q - offset: the zero point."""
        x = self._quantized[self._data(node)]
        inputs = [x.value, *node.inputs[1:]]
        if node.attributes.get_string("mode", "constant") == "constant":
            given = optional_input(node, 2)
            fill = constant_value(given)
            if given is not None and (fill is None or fill.size != 1 or fill.item() != 0):
                raise unsupported(node, "it pads an int8 tensor with something else than the constant 0")
            inputs[2:3] = [self._emit.zero_point(x.zero_point)]
        value = self._emit.op("Pad", inputs, node.attributes)
        self._set_quantized(node, [value], x)

    def _lift_monotone(self, node: ir.Node) -> None:
        """MaxPool and Relu: through float32, since before opset 12 they know no uint8. The values stay exact."""
        x = self._quantized[self._data(node)]
        plain = self._emit.op("Cast", [x.value], {"to": _FLOAT})
        if node.op_type == "Relu":
            largest = self._emit.op("Max", [plain, self._emit.constant(np.float32(x.zero_point), "zero")])
        else:
            count = len(node.outputs)
            largest = self._emit.op("MaxPool", [plain], node.attributes, outputs=count)
            if count > 1:
                self._take_place(node.outputs[1], maker_of(largest).outputs[1])
        value = self._emit.op("Cast", [largest], {"to": int(ir.DataType.UINT8)})
        self._set_quantized(node, [value], x)

    # Shared parts

    def _set_quantized(self, node: ir.Node, values: list[ir.Value], like: Quantized) -> None:
        for old, new in zip(node.outputs, values, strict=False):
            self._quantized[old] = Quantized(value=new, zero_point=like.zero_point, scale=like.scale)
        self._replaced.append(node)

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let `value` stand for the only output of `node`."""
        self._take_place(node.outputs[0], value)
        self._replaced.append(node)

    def _take_place(self, old: ir.Value, new: ir.Value) -> None:
        """Users, graph outputs, name and type of `old` pass to `new`."""
        name, old.name = old.name, None
        new.name, new.type, new.shape = name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def _data(self, node: ir.Node) -> ir.Value:
        value = optional_input(node, 0)
        if value is None:
            raise unsupported(node, "it has no input")
        return value

    def _float32(self, x: ir.Value) -> ir.Value:
        """x as float32. A Cast is written unless the type is certain; ONNX Runtime drops one that does nothing."""
        if x.dtype == ir.DataType.FLOAT and (x.is_graph_input() or x.is_initializer()):
            return x
        return self._emit.op("Cast", [x], {"to": _FLOAT})

    def _to_dtype(self, node: ir.Node, y: ir.Value) -> ir.Value:
        """The attribute dtype counts as the Ascend graph engine does: 0 is float32, 1 is float16."""
        dtype = node.attributes.get_int("dtype", 0)
        if dtype not in (0, 1):
            raise unsupported(node, f"its dtype {dtype} is neither 0 (float32) nor 1 (float16)")
        return self._emit.op("Cast", [y], {"to": int(ir.DataType.FLOAT16)}) if dtype else y

    def _per_channel(self, v: ir.Value, array: Reals, hint: str) -> ir.Value:
        """A constant that multiplies `v` along axis 1: [] for one entry, else [C, 1, ...] for the rank of `v`."""
        if array.size == 1:
            return self._emit.constant(array.reshape(()), hint)
        rank = self._rank(v)
        if rank is not None:
            return self._emit.constant(array.reshape(-1, *[1] * (rank - 2)), hint)
        # The rank is known at run time only, after a Reshape for instance: build the shape [C, 1, ...] there.
        rank_at_run = self._emit.op("Shape", [self._emit.op("Shape", [v])])
        count = self._emit.op("Sub", [rank_at_run, self._emit.ints([2], "two")])
        one = ir.tensor(np.array([1], np.int64))
        ones = self._emit.op("ConstantOfShape", [count], {"value": one})
        shape = self._emit.op("Concat", [self._emit.ints([array.size], "channels"), ones], {"axis": 0})
        return self._emit.op("Reshape", [self._emit.constant(array, hint), shape])

    def _rank(self, v: ir.Value) -> int | None:
        """The rank of a layer's result, also behind the Add of an int32 bias."""
        waiting = [v]
        while waiting:
            v = waiting.pop()
            if v in self._ranks:
                return self._ranks[v]
            node = v.producer()
            if is_op(node, "Add", "Identity"):
                waiting += [x for x in reversed(node.inputs) if x is not None]
        return None

    def _forget_types(self) -> None:
        """Drop what the file says of tensors inside: it may be stale, and the runtime infers it anyway."""
        for node in self._model.graph.all_nodes():
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None

    def _restore_int8(self) -> None:
        """Make the int8 tensor itself where a graph output or the body of a loop needs it: q = u - 128."""
        leaving = set(self._replaced)
        for old, x in self._quantized.items():
            if not old.is_graph_output() and all(use.node in leaving for use in old.uses()):
                continue
            maker = maker_of(old)
            if x.low is not None:
                raise unsupported(maker, "its int16 tensor leaves the model or enters a loop, and has no form here")
            self._emit.at(maker)
            plain = self._emit.op("Cast", [x.value], {"to": int(ir.DataType.INT32)})
            shifted = self._emit.op("Sub", [plain, self._emit.constant(np.int32(128), "middle")])
            self._take_place(old, self._emit.op("Cast", [shifted], {"to": int(ir.DataType.INT8)}))

    def _drop_unused_initializers(self) -> None:
        for graph in self._model.graphs():
            for name, value in list(graph.initializers.items()):
                if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                    del graph.initializers[name]
