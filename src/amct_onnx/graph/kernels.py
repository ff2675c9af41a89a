"""What a graph that ONNX Runtime has optimised computes in integers, what in floats, and why it stayed in floats.

The optimised graph has no types of its intermediate values, so they are derived here. Which operators have an integer
kernel was found by experiment with ONNX Runtime 1.32 on x86, for opsets 13 to 21. It is used for explanations only:
whether a node is an integer kernel is decided by the types that it reads and writes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from amct_onnx.graph.access import is_op
from amct_onnx.graph.constants import constant_tensor, constant_value
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.qdq_grids import grid_of, is_dequantize, is_quantize
from amct_onnx.graph.source_nodes import SourceNodes
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.weights.pairs import overflows


class FloatReason(str, Enum):
    """Why a node is computed in floats; the value completes "1 node ..."."""

    NO_KERNEL = "without an integer kernel in ONNX Runtime"
    NOT_QUANTIZED = "without any quantization around"
    WEIGHT_ONLY = "with an integer weight and a float input"
    WEIGHT = "with a weight that is computed at run time"
    CONSTANT = "with a constant that is not quantized"
    INPUT = "with an input that is not quantized"
    OUTPUT = "with an output that is not quantized"
    READERS = "with a float output that others than its quantization read"
    ACTIVATION = "with an activation that the range of its quantization does not cover"
    SCALES = "with another scale or zero point behind than in front, where the kernel needs the same"
    OPSET = "of an opset that defines the operator for floats only"
    INT8 = "with int8 around: ONNX Runtime on x86 fuses it for a single reader only, uint8 for all"
    UNKNOWN = "that ONNX Runtime did not fuse"

    def clause(self, count: int) -> str:
        """The reason as a headline for `count` nodes."""
        return f"{count} {'node' if count == 1 else 'nodes'} {self.value}"


@dataclass(frozen=True, kw_only=True)
class FloatNode:
    """A node that is computed in floats; `name` is that in the file of the model, `op_type` that of the kernel."""

    name: str
    op_type: str
    reason: FloatReason


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels of one optimised graph, subgraphs included.

    `integer` and `floating` count nodes by operator, most frequent first. `conversions` counts QuantizeLinear and
    DequantizeLinear; `inner_conversions` are those that neither read a graph input nor write a graph output. `slow`
    names integer kernels that are slower than their float forms. `saturable`: an AVX2 kernel may saturate.
    """

    integer: Mapping[str, int]
    floating: Mapping[str, int]
    stayed_float: tuple[FloatNode, ...]
    conversions: Mapping[str, int]
    inner_conversions: int
    slow: tuple[str, ...]
    saturable: bool


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_INTEGERS = _BYTES | {ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4}
# They move elements or change how they are stored; ONNX Runtime adds and removes them as it likes.
_LAYOUT = frozenset(
    {*("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "ReorderInput", "ReorderOutput")}
)
_NO_COMPUTATION = _LAYOUT | {
    *("Cast", "CastLike", "Constant", "ConstantOfShape", "Dropout", "If", "Loop", "Scan", "Shape", "Size"),
}
_DYNAMIC = "DynamicQuantizeLinear"
# Weights are dequantized inside; the activation is a float.
_WEIGHT_ONLY = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"})

# Operators that become an integer kernel, with the inputs that must come from a DequantizeLinear (None: all of them).
_DATA: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Conv", "Gemm", "MatMul", "Add", "Mul"), (0, 1)),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"), (0,)),
    "Concat": None,
    "Where": (1, 2),
}
# They may also write floats.
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})
# They run on bytes if scale and zero point are the same on both sides.
_SAME_GRID = frozenset(
    {
        *("MaxPool", "ReduceMax", "ReduceMin", "Resize", "Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace"),
        *_LAYOUT,
    }
)
# The first opset in which it takes bytes; older ones take floats only.
_OPSET = {"MaxPool": 12}
_INTERPOLATING = ("linear", "cubic")


def read_kernels(model: ir.Model, source: SourceNodes) -> Kernels:
    """The kernels of `model`, which ONNX Runtime wrote after it had optimised the model with the nodes `source`.

    Weights are read only to see whether products saturate, and at most until the first that does.
    """
    nodes = list(model.graph.all_nodes())
    types = _Types(nodes, default_opset(model))
    integer: Counter[str] = Counter()
    conversions: Counter[str] = Counter()
    stayed: list[FloatNode] = []
    inner = 0
    saturable = False
    slow: dict[str, None] = {}
    for node in nodes:
        if is_quantize(node) or is_dequantize(node) or node.op_type == _DYNAMIC:
            conversions[node.op_type] += 1
            inner += not _at_border(node)
        elif node.op_type in _NO_COMPUTATION:
            continue
        elif types.touches(node, _INTEGERS) and node.op_type not in _WEIGHT_ONLY:
            integer[node.op_type] += 1
            saturable = saturable or _is_saturable(node, types)
            if slow_kernel := _slow_kernel(node):
                slow[slow_kernel] = None
        elif types.touches(node, _FLOATS):
            reason = _reason(node, types)
            stayed.append(FloatNode(name=source.name_of(node), op_type=node.op_type, reason=reason))
    return Kernels(
        integer=dict(integer.most_common()),
        floating=dict(Counter(node.op_type for node in stayed).most_common()),
        stayed_float=tuple(stayed),
        conversions=dict(conversions.most_common()),
        inner_conversions=inner,
        slow=tuple(slow),
        saturable=saturable,
    )


def _at_border(node: ir.Node) -> bool:
    source = _source(node.inputs[0])
    from_outside = source is not None and source.is_graph_input() and is_quantize(node)
    return from_outside or (is_dequantize(node) and any(reader is None for reader in _readers(node.outputs[0])))


# --- types of values


class _Types:
    """Types of the values of an optimised graph, as far as they can be derived; None where they cannot."""

    def __init__(self, nodes: list[ir.Node], opset: int) -> None:
        self.opset = opset
        self._known: dict[ir.Value, ir.DataType | None] = {}
        for node in nodes:
            for index, value in enumerate(node.outputs):
                self._known[value] = value.dtype or self._derive(node, index)

    def of(self, value: ir.Value | None) -> ir.DataType | None:
        if value is None:
            return None
        if value.const_value is not None:
            return value.const_value.dtype
        return self._known.get(value, value.dtype)

    def touches(self, node: ir.Node, types: frozenset[ir.DataType]) -> bool:
        """Whether the node reads or writes a value of one of the types."""
        return any(self.of(value) in types for value in (*node.inputs, *node.outputs))

    def _derive(self, node: ir.Node, index: int) -> ir.DataType | None:
        kind = node.op_type
        given = [self.of(value) for value in node.inputs]
        if fixed := _FIXED.get((kind, index)) or _FIXED.get((kind, -1)):
            return fixed
        if is_quantize(node):
            declared = node.attributes.get_int("output_dtype", 0)
            return _at(given, 2) or ir.DataType(declared or ir.DataType.UINT8)
        if kind == "Cast":
            return ir.DataType(node.attributes.get_int("to"))
        if kind == "QGemm":
            return _at(given, 8) or ir.DataType.FLOAT
        if kind.startswith("QLinear"):
            return next((dtype for dtype in reversed(given) if dtype in _BYTES), None)
        if kind in _TYPED_BY:
            return _at(given, _TYPED_BY[kind])
        if kind in ("If", "Loop", "Scan"):
            return self._of_subgraph(node, index)
        return next((dtype for dtype in given if dtype is not None), None)

    def _of_subgraph(self, node: ir.Node, index: int) -> ir.DataType | None:
        name = "then_branch" if node.op_type == "If" else "body"
        outputs = node.attributes[name].as_graph().outputs
        skipped = 1 if node.op_type == "Loop" else 0  # the condition
        return self.of(outputs[index + skipped]) if index + skipped < len(outputs) else None


def _at(types: list[ir.DataType | None], index: int) -> ir.DataType | None:
    return types[index] if index < len(types) else None


# Operators whose output type does not follow that of their first input: (operator, output or -1 for all) -> type.
_FIXED: dict[tuple[str, int], ir.DataType] = {
    **{(kind, -1): ir.DataType.INT64 for kind in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin", "NonMaxSuppression")},
    **{(kind, -1): ir.DataType.BOOL for kind in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN")},
    **{(kind, -1): ir.DataType.INT32 for kind in ("ConvInteger", "MatMulInteger")},
    **{(kind, -1): ir.DataType.FLOAT for kind in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention")},
    (_DYNAMIC, 0): ir.DataType.UINT8,
    (_DYNAMIC, 1): ir.DataType.FLOAT,
    (_DYNAMIC, 2): ir.DataType.UINT8,
    ("TopK", 1): ir.DataType.INT64,
}
# The input whose type the output has, where that is not the first one.
_TYPED_BY = {
    **dict.fromkeys(("DequantizeLinear", "CastLike", "Where"), 1),
    **dict.fromkeys(("OneHot", "EmbedLayerNormalization", "GatherBlockQuantized"), 2),
}


# --- kernels that are not right


def wrong_kernel(node: ir.Node) -> str | None:
    """Why the integer kernel of ONNX Runtime does not compute what a node computes; None for one that does.

    Found by comparing optimised models with the same models as they are, for all attributes of all operators of the
    targets (tests/e2e/test_kernel_values.py).
    """
    if not is_op(node, "AveragePool"):
        return None
    attributes = node.attributes
    if attributes.get_int("ceil_mode", 0) and attributes.get_int("count_include_pad", 0):
        return "the integer kernel of ONNX Runtime counts too much where its last window hangs over the edge"
    if any(size != 1 for size in attributes.get_ints("dilations", ())):
        return "ONNX Runtime has no integer kernel for its dilations"
    return None


def slow_kernel(node: ir.Node) -> str | None:
    """Why the integer kernel of ONNX Runtime takes longer than the one of floats, with the conversions around that.

    None for one that does not. Measured with `benchmarks/patterns.py`: 2 to 9 times, where windows are small.
    """
    window = math.prod(node.attributes.get_ints("kernel_shape", ())) if is_op(node, "AveragePool") else _LARGE
    return "ONNX Runtime takes longer for small windows of integers than of floats" if window < _LARGE else None


_LARGE = 25


# --- reasons


def _reason(node: ir.Node, types: _Types) -> FloatReason:
    """The first reason, of those that the graph shows, why a float node is no integer kernel."""
    kind = node.op_type.removeprefix("Fused")
    if node.op_type in _WEIGHT_ONLY:
        return FloatReason.WEIGHT_ONLY
    if (kind not in _DATA and kind not in _SAME_GRID) or node.attributes.get_string("mode") in _INTERPOLATING:
        return FloatReason.NO_KERNEL
    where = _DATA.get(kind, (0,))
    data = node.inputs if where is None else [node.inputs[i] for i in where if i < len(node.inputs)]
    sources = [_producer(value) for value in data]
    from_bytes = [is_dequantize(source) for source in sources]
    readers = [reader for value in node.outputs for reader in _readers(value)]
    behind = [reader for reader in readers if is_quantize(reader)]
    if not from_bytes[0] and not behind:
        return FloatReason.NOT_QUANTIZED
    if not all(from_bytes):
        return _input_reason(kind, data, from_bytes)
    if node.op_type.startswith("Fused") or "activation" in node.attributes:
        return FloatReason.ACTIVATION
    if kind not in _FLOAT_OUTPUT and not behind:
        return FloatReason.OUTPUT
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if kind == "Gemm" and not behind and constant_tensor(bias) is not None:
        return FloatReason.CONSTANT
    if behind and len(readers) > len(node.outputs):
        return FloatReason.READERS
    first = sources[0]
    assert first is not None  # it is a DequantizeLinear
    if kind in _SAME_GRID and any(not _same_grid(first, reader) for reader in behind if reader is not None):
        return FloatReason.SCALES
    if types.opset < _OPSET.get(kind, 0):
        return FloatReason.OPSET
    around = [source.inputs[0] for source in sources if source is not None]
    around += [reader.outputs[0] for reader in behind if reader is not None]
    if any(types.of(value) == ir.DataType.INT8 and constant_tensor(value) is None for value in around):
        return FloatReason.INT8
    return FloatReason.UNKNOWN


def _input_reason(kind: str, data: Sequence[ir.Value | None], from_bytes: Sequence[bool]) -> FloatReason:
    floats = (value for value, good in zip(data, from_bytes, strict=True) if not good)
    if any(constant_tensor(value) is not None for value in floats):
        return FloatReason.CONSTANT
    return FloatReason.WEIGHT if kind == "Conv" and from_bytes[0] else FloatReason.INPUT


def _same_grid(dequantize: ir.Node, quantize: ir.Node) -> bool:
    ours, theirs = grid_of(dequantize), grid_of(quantize)
    return isinstance(ours, str) or isinstance(theirs, str) or ours.same_as(theirs)


def _source(value: ir.Value | None) -> ir.Value | None:
    """The value that `value` is, but for its layout."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _LAYOUT:
        value = node.inputs[0]
    return value


def _producer(value: ir.Value | None) -> ir.Node | None:
    source = _source(value)
    return None if source is None else source.producer()


def _readers(value: ir.Value) -> Iterator[ir.Node | None]:
    """The nodes that read `value`, also after a change of layout; None for a graph output."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            yield None
        for node in value.consumers():
            if node.op_type in _LAYOUT:
                waiting.append(node.outputs[0])
            else:
                yield node


# --- what makes integers slow or wrong


def _slow_kernel(node: ir.Node) -> str:
    """The name of a kernel that is slower in integers, "" for another."""
    if node.op_type == "QLinearConv":
        return "depthwise QLinearConv" if _is_depthwise(node) else ""
    return node.op_type if node.op_type in ("MaxPool", "QLinearAveragePool", "QLinearSoftmax") else ""


def _is_depthwise(node: ir.Node) -> bool:
    tensor = constant_tensor(node.inputs[3])
    groups = node.attributes.get_int("group", 1)
    return groups > 1 and tensor is not None and tensor.shape[0] == groups


# Where the inputs are: activation and weight.
_OPERANDS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (0, 3)),
    **dict.fromkeys(("MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"), (0, 1)),
}


def _is_saturable(node: ir.Node, types: _Types) -> bool:
    """Whether two neighbouring products of a uint8 by an int8 may leave 16 bits."""
    places = _OPERANDS.get(node.op_type)
    if places is None or (node.op_type == "QLinearConv" and _is_depthwise(node)):
        return False
    activation, weight = (node.inputs[place] for place in places)
    if types.of(weight) != ir.DataType.INT8 or types.of(activation) == ir.DataType.INT8:
        return False
    array = constant_value(weight)
    return array is None or array.ndim < 2 or overflows(kernel_rows(array, node))
