"""Give each layer that will be quantized its own plain constants, in the form that integer operators take.

Before                                        After
Conv(x, Transpose(w), b) sharing w or b       Conv(x, w', b') with initializers of its own
Gemm(x, w, c; alpha, beta, transA, transB)    [Transpose(x) ->] Gemm(x, w', c') with alpha = beta = 1, no transposition
                                              and a bias of shape [N]

The float function stays the same up to the rounding of alpha * w and beta * c.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.constants import ValueNames, constant_tensor, constant_value, own_constant
from amct_onnx.graph.layers import WEIGHT_OPS, float_attribute, int_attribute
from amct_onnx.graph.recurrent import BIAS, RECURRENCE, RECURRENT_OPS, WEIGHT
from amct_onnx.graph.tensors import Array, array_of, deferred, shape_of


def normalize_layers(model: ir.Model, layers: Collection[str]) -> None:
    """Normalize the layers named in `layers`, in place. Idempotent."""
    names = ValueNames(model)
    for node in list(model.graph):
        if node.name in layers and node.op_type in RECURRENT_OPS:
            for index in (WEIGHT, RECURRENCE, BIAS):
                _own(node, index, names)
        if node.name in layers and node.op_type in WEIGHT_OPS:
            if node.op_type == "Gemm":
                _normalize_gemm(model.graph, node, names)
            else:
                _own(node, 1, names)
                if node.op_type != "MatMul":
                    _own(node, 2, names)


def _own(node: ir.Node, index: int, names: ValueNames) -> None:
    tensor = constant_tensor(node.inputs[index]) if index < len(node.inputs) else None
    if tensor is not None:
        own_constant(node, index, tensor, f"{node.name}.constant{index}", names=names)


def _normalize_gemm(graph: ir.Graph, node: ir.Node, names: ValueNames) -> None:
    weight = gemm_weight(node)
    own_constant(node, 1, weight, f"{node.name}.weight", names=names)
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        scaled = (bias.reshape(-1) * np.float32(float_attribute(node, "beta", 1.0))).astype(bias.dtype, copy=False)
        row = np.broadcast_to(scaled, (shape_of(weight)[1],))
        own_constant(node, 2, np.ascontiguousarray(row), f"{node.name}.bias", names=names)
    if int_attribute(node, "transA", 0):
        _transpose_input(graph, node, names)
    for name, value in (("alpha", 1.0), ("beta", 1.0)):
        node.attributes[name] = ir.AttrFloat32(name, value)
    for name in ("transA", "transB"):
        node.attributes.pop(name, None)


def gemm_weight(node: ir.Node) -> ir.TensorProtocol:
    """alpha * B, turned where transB says so."""
    weight = constant_tensor(node.inputs[1])
    assert weight is not None  # a candidate's weight is constant
    turned, alpha = bool(int_attribute(node, "transB", 0)), np.float32(float_attribute(node, "alpha", 1.0))
    if not turned and alpha == 1:
        return weight
    shape = shape_of(weight)

    def compute() -> Array:
        array = array_of(weight)
        scaled: Array = np.multiply(array.T if turned else array, alpha, order="C")
        return scaled

    return deferred(compute, weight.dtype.numpy(), shape[::-1] if turned else shape)


def _transpose_input(graph: ir.Graph, node: ir.Node, names: ValueNames) -> None:
    source = node.inputs[0]
    assert source is not None  # Gemm's first input is required
    transpose = ir.node(
        "Transpose",
        [source],
        {"perm": [1, 0]},
        name=f"{node.name}.transpose",
        outputs=[ir.val(names.new(f"{node.name}.transpose.output0"), type=source.type)],
    )
    graph.insert_before(node, transpose)
    node.replace_input_with(0, transpose.outputs[0])
