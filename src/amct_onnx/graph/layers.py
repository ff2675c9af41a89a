"""Find the nodes that could be quantized, say what the graph tells of each, and why it cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import is_op, is_standard, name_of, optional_input
from amct_onnx.graph.constants import constant_branches, constant_tensor, is_constant, is_overridable, why_variable
from amct_onnx.graph.layer_view import WEIGHT_OPS, input_channels
from amct_onnx.graph.recurrent import RECURRENT_OPS, recurrent_reason, recurrent_shape
from amct_onnx.graph.tensors import shape_of
from amct_onnx.graph.weights import channel_count
from amct_onnx.values.layers import LayerTraits

OBSERVER_DOMAIN = "amct.customop"
# Types that AMCT quantizes at all; a node of such a type may still be unsuitable.
LAYER_OPS = (*WEIGHT_OPS, "AveragePool", *RECURRENT_OPS)
# Reasons that hold for a layer of any type.
INSIDE, CONSTANT = "it is inside a subgraph", "its data is constant"
# Types that users know as layers too, and no target has in integers.
_OTHER_LAYERS = frozenset({"RNN", "Attention", "DeformConv", "Einsum"})
# Domains of the operators that ONNX Runtime puts in the place of layers when it optimises a model, and their types.
_FUSED_DOMAINS = ("com.microsoft", "com.ms.")
_FUSED_LAYERS = ("Conv", "MatMul", "Gemm", "Attention", "QLinear", "LSTM", "GRU")
_QUANTIZED_OPS = frozenset(
    {
        *("AscendQuant", "AscendDequant", "AscendAntiQuant", "ConvInteger", "MatMulInteger", "QLinearConv"),
        *("QLinearMatMul", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }
)


def default_opset(model: ir.Model | ir.Function) -> int:
    """Version of the default domain, which has two names and need not be the first import; 0 if it is not imported."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))


def quantized_nodes(model: ir.Model) -> list[ir.Node]:
    """Nodes that show that a model has been quantized or prepared for calibration already."""
    nodes = (node for graph in model.graphs() for node in graph)
    return [n for n in nodes if n.domain == OBSERVER_DOMAIN or (n.op_type in _QUANTIZED_OPS and is_standard(n))]


def candidates(model: ir.Model) -> Iterator[LayerTraits]:
    """Traits of every node of a layer type, in graph order, those in subgraphs included."""
    constants = constant_branches(model)
    for node in model.graph.all_nodes():
        reason = None if node.graph is model.graph else INSIDE
        if node.op_type in LAYER_OPS and is_standard(node):
            operands = node.inputs[: 2 if node.op_type in ("MatMul", "Gemm") else 1]
            if all(value in constants or is_constant(value) for value in operands):
                reason = reason or CONSTANT
            yield _traits(node, reason)
        elif node.op_type in _OTHER_LAYERS and is_standard(node):
            yield LayerTraits(name=name_of(node), op_type=node.op_type, reason=reason or "no target has it in integers")
        elif node.domain.startswith(_FUSED_DOMAINS) and any(kind in node.op_type for kind in _FUSED_LAYERS):
            text = f"it is an operator of {node.domain}: quantize the model before it is optimised"
            yield LayerTraits(name=name_of(node), op_type=node.op_type, reason=text)


def _traits(node: ir.Node, reason: str | None) -> LayerTraits:
    name, op_type = name_of(node), node.op_type
    if op_type == "AveragePool":
        return LayerTraits(name=name, op_type=op_type, reason=reason or _pool_reason(node))
    if is_product(node):
        return LayerTraits(name=name, op_type=op_type, reason=reason or _product_reason(node), two_operands=True)
    if op_type in RECURRENT_OPS:
        return _recurrent_traits(node, reason)
    shape, weight_reason = _weight_shape(node)
    reason = reason or weight_reason or _bias_reason(node)
    if op_type == "Gemm":
        reason = reason or _gemm_reason(node)
    if op_type == "ConvTranspose":
        reason = reason or _size_reason(node)
    return LayerTraits(
        name=name,
        op_type=op_type,
        reason=reason,
        channels=channel_count(shape, node) if len(shape) > 1 else 1,
        input_channels=input_channels(node, shape) if len(shape) > 1 else 1,
        weight_rank=len(shape),
        dilated=any(size != 1 for size in node.attributes.get_ints("dilations", ())),
        half=is_half(node),
    )


def is_half(node: ir.Node) -> bool:
    """Whether a node with a constant weight computes in float16: its input, weight and output have one type."""
    weight = constant_tensor(optional_input(node, 1))
    return weight is not None and weight.dtype == ir.DataType.FLOAT16


def _recurrent_traits(node: ir.Node, reason: str | None) -> LayerTraits:
    shape = recurrent_shape(node)
    return LayerTraits(
        name=name_of(node),
        op_type=node.op_type,
        reason=reason or recurrent_reason(node),
        channels=shape[1] if len(shape) == 3 else 1,
        input_channels=shape[-1] if shape else 1,
        weight_rank=len(shape),
        half=is_half(node),
    )


def _weight_shape(node: ir.Node) -> tuple[tuple[int, ...], str | None]:
    weight = constant_tensor(optional_input(node, 1))
    if weight is None:
        if node.op_type == "MatMul" and constant_tensor(optional_input(node, 0)) is not None:
            return (), "its constant operand is the first one, and a weight must be the second"
        return (), f"its weight {why_variable(optional_input(node, 1))}"
    shape, dtype = shape_of(weight), weight.dtype.numpy()
    if dtype not in (np.float32, np.float16):
        return shape, f"its weight is {dtype}, and only float32 and float16 are supported"
    return shape, None if weight.size else "its weight is empty"


def _bias_reason(node: ir.Node) -> str | None:
    bias = optional_input(node, 2)
    if node.op_type == "MatMul" or bias is None:
        return None
    return None if constant_tensor(bias) is not None else f"its bias {why_variable(bias)}"


def _pool_reason(node: ir.Node) -> str | None:
    kernel = node.attributes.get("kernel_shape")
    if kernel is None or len(kernel.as_ints()) != 2:
        return "its input does not have 4 dimensions"
    return _dtype_reason(node.inputs[0], "its input")


def is_product(node: ir.Node) -> bool:
    """A MatMul of two activations."""
    return node.op_type == "MatMul" and not any(constant_tensor(v) or is_overridable(v) for v in node.inputs)


def _product_reason(node: ir.Node) -> str | None:
    """Why a MatMul of two activations cannot be quantized."""
    for value in node.inputs:
        if (reason := _dtype_reason(value, "its input")) is not None:
            return reason
        if value is not None and value.shape is not None and len(value.shape) < 2:
            return "its operands must have 2 dimensions or more"
    return None


def tensor_reason(node: ir.Node, index: int, graph: ir.Graph) -> str | None:
    """Why input `index` of `node` cannot be quantized and restored in front of it, None if it can."""
    if node.graph is not graph:
        return INSIDE
    value = optional_input(node, index)
    if value is None:
        return f"it has no input {index}"
    if constant_tensor(value) is not None:
        return f"its input {index} is a constant"
    return _dtype_reason(value, f"its input {index}")


def _dtype_reason(value: ir.Value | None, subject: str) -> str | None:
    dtype = _element_type(value)
    return None if dtype in (None, ir.DataType.FLOAT) else f"{subject} is {dtype}, and only float32 is supported"


def _element_type(value: ir.Value | None) -> ir.DataType | None:
    """dtype of `value`, that of the data it comes from where the file does not say; None if nothing tells."""
    while value is not None and value.dtype is None:
        producer = value.producer()
        if producer is None or not producer.inputs:
            return None
        if is_op(producer, "Cast"):
            return ir.DataType(producer.attributes.get_int("to", 0))
        # A weight is in the file with its type; the activation beside it has the same.
        weight = optional_input(producer, 1) if producer.op_type in WEIGHT_OPS else None
        value = weight if weight is not None and weight.dtype is not None else producer.inputs[0]
    return None if value is None else value.dtype


def _size_reason(node: ir.Node) -> str | None:
    """Shapes of such a layer cannot be inferred, and ONNX Runtime refuses what is put behind it."""
    sizes, data = node.attributes.get_ints("output_shape", ()), node.inputs[0]
    if not sizes or data is None or data.shape is None:
        return None
    known = [(out, size) for out, size in zip(sizes[::-1], data.shape[::-1], strict=False) if isinstance(size, int)]
    return "its output_shape is smaller than its input" if any(out < size for out, size in known) else None


def _gemm_reason(node: ir.Node) -> str | None:
    bias = constant_tensor(optional_input(node, 2))
    if bias is not None and len(bias.shape) == 2 and shape_of(bias)[0] > 1:
        return "its bias differs from row to row"
    return None
