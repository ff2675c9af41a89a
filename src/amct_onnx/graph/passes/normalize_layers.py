"""Give each layer that will be quantized its own plain constants, in the form that integer operators take.

Before                                        After
Conv(x, Transpose(w), b) sharing w or b       Conv(x, w', b') with initializers of its own
Gemm(x, w, c; alpha, beta, transA, transB)    [Transpose(x) ->] Gemm(x, w', c') with alpha = beta = 1, no transposition
                                              and a bias of shape [N]

The float function stays the same up to the rounding of alpha * w and beta * c.
"""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import optional_input
from amct_onnx.graph.constants import ValueNames, constant_tensor, own_constant
from amct_onnx.graph.layer_view import Layer, layer_of
from amct_onnx.graph.recurrent import BIAS, RECURRENCE, WEIGHT
from amct_onnx.graph.tensors import Computed, array_of, deferred, shape_of
from amct_onnx.numerics.arrays import Array

_RECURRENT = (WEIGHT, RECURRENCE, BIAS)
# The inputs that are taken over as they are; a Gemm computes its own.
_CONSTANTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "MatMul": (1,), "LSTM": _RECURRENT, "GRU": _RECURRENT}
# What was made of weights, as long as somebody has it: what is known of one by its tensor need not be found again.
# Each holds the weight that it was made of, whose id is no other's meanwhile.
_computed = WeakValueDictionary[tuple[int, bool, float], Computed]()


def normalize_layers(model: ir.Model, layers: Collection[str]) -> None:
    """Normalize the layers named in `layers`, in place. Idempotent."""
    names = ValueNames(model)
    for node in list(model.graph):
        if node.name not in layers:
            continue
        if node.op_type == "Gemm":
            _normalize_gemm(model.graph, layer_of(node), names)
        for index in _CONSTANTS.get(node.op_type, ()):
            tensor = constant_tensor(optional_input(node, index))
            if tensor is not None:
                own_constant(node, index, tensor, f"{node.name}.constant{index}", names=names)


def turn_inputs(model: ir.Model, layers: Collection[str]) -> None:
    """Of the same, only what makes another tensor the input of a layer: the Transpose for transA. In place."""
    names = ValueNames(model)
    for node in list(model.graph):
        if node.name in layers and node.op_type == "Gemm":
            _turn_input(model.graph, layer_of(node), names)


def _normalize_gemm(graph: ir.Graph, gemm: Layer, names: ValueNames) -> None:
    attributes, weight, bias = gemm.node.attributes, gemm_weight(gemm), gemm.bias
    gemm.replace_weight(weight, names=names)
    if bias is not None:
        scaled = (bias.reshape(-1) * np.float32(attributes.get_float("beta", 1.0))).astype(bias.dtype, copy=False)
        row = np.broadcast_to(scaled, (shape_of(weight)[1],))
        gemm.replace_bias(np.ascontiguousarray(row), names=names)
    _turn_input(graph, gemm, names)
    for name, value in (("alpha", 1.0), ("beta", 1.0)):
        attributes[name] = ir.AttrFloat32(name, value)
    attributes.pop("transB", None)


def gemm_weight(gemm: Layer) -> ir.TensorProtocol:
    """The matrix [inputs, outputs] that a Gemm multiplies with: alpha * B, turned where transB says so."""
    weight, turned = gemm.weight, gemm.weight_is_turned
    alpha = np.float32(gemm.node.attributes.get_float("alpha", 1.0))
    if not turned and alpha == 1:
        return weight
    key, shape = (id(weight), turned, float(alpha)), shape_of(weight)
    if (known := _computed.get(key)) is not None:
        return known

    def compute() -> Array:
        array = array_of(weight)
        scaled: Array = np.multiply(array.T if turned else array, alpha, order="C")
        return scaled

    made = deferred(compute, weight.dtype.numpy(), shape[::-1] if turned else shape)
    if isinstance(made, Computed):
        _computed[key] = made
    return made


def _turn_input(graph: ir.Graph, gemm: Layer, names: ValueNames) -> None:
    turned = gemm.node.attributes.pop("transA", None)
    if turned is None or not turned.as_int():
        return
    name, source = f"{gemm.name}.transpose", gemm.input
    output = ir.val(names.new(f"{name}.output0"), type=source.type)
    turn = ir.node("Transpose", [source], {"perm": [1, 0]}, name=names.node(name), outputs=[output])
    graph.insert_before(gemm.node, turn)
    gemm.node.replace_input_with(0, output)
