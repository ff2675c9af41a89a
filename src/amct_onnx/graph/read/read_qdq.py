"""Pass: a model with QuantizeLinear and DequantizeLinear becomes a float model and the factors that it held.

Before                                                After
x -> Q -> DQ -> Conv(DQ(int8 weight), DQ(int32 bias))   x -> Conv(weight, bias)           a QuantizedLayer
x -> Q -> DQ -> Add                                     x -> Identity "<DQ>" -> Add       a QuantizedTensor
x -> Q -> output                                        the same                          a QuantizedOutput
x -> Q -> Clip(-127, 127) -> DQ -> Conv                 x -> Clip(floats) -> Conv
x -> Q -> DQ -> Gemm(DQ(weight, one scale a column))    x -> Gemm(weight') -> Mul(one factor a column)
DQ(constant) -> Mul                                     constant -> Mul

A layer is quantized when both its activation and its weight, or the activations of a MatMul of two, lie on an int8
grid; an activation may come from the DequantizeLinear through operators that only move elements. The integers of its
weight are those of the model: int8, uint8 and narrower ones, as long as q - zero_point fits int8. What has no int8 form
stays as it is, with a reason, and computes what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import all_nodes, is_op, name_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_value, own_constant
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import WEIGHT_OPS, Layer, layer_of
from amct_onnx.graph.layers import candidates
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.qdq_grids import (
    GridConstant,
    activation_params,
    commutes,
    grid_constant,
    grid_of,
    is_dequantize,
    is_quantize,
)
from amct_onnx.graph.read.qdq_pairs import Reading, read_pairs, sweep
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.graph.weights import channel_rows
from amct_onnx.numerics.arrays import Array, Floats, Int32s
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.values.layers import Kept, LayerTraits, QuantizedLayer

# How far the scale of a stored int32 bias may be from scale_d * scale_w: a few units of the last place.
_SCALE_TOLERANCE = 1e-6
_OUT_OF_RANGE = "the product of its scales leaves the range of float32"
_INT8, _INT32 = np.iinfo(np.int8), np.iinfo(np.int32)
# A target's judgement of a layer; and why a layer whose constants are normalized cannot be lowered, None if it can.
Judge = Callable[[LayerTraits], LayerTraits]
Refuse = Callable[[ir.Node, QuantizedLayer], str | None]


def read_qdq(model: ir.Model, judge: Judge, refuse: Refuse) -> Reading:
    """Read and remove the quantization of `model`, in place. Every node of the model has a name of its own."""
    constants = _take_constants(model)
    _fold_constants(model)
    layers, kept, rescaled = _read_layers(model, constants, judge, refuse)
    reading = read_pairs(model, layers)
    return replace(reading, kept=(*kept, *reading.kept), rescaled=rescaled)


def has_qdq(model: ir.Model) -> bool:
    """Whether the model holds QuantizeLinear or DequantizeLinear, in any graph or function."""
    return any(is_quantize(node) or is_dequantize(node) for node in all_nodes(model))


_Constants = dict[tuple[str, int], GridConstant | str]


def _take_constants(model: ir.Model) -> _Constants:
    """Quantized weights and biases by node and input; each becomes a float32 initializer of its own layer."""
    names = ValueNames(model)
    found: _Constants = {}
    for node in list(model.graph):
        if not is_op(node, *WEIGHT_OPS):
            continue
        for index, kind in ((1, "weight"), (2, "bias")):
            value = optional_input(node, index)
            constant = grid_constant(value)
            if constant is None:
                continue
            found[name_of(node), index] = constant
            if isinstance(constant, GridConstant):
                own_constant(node, index, constant.values(), f"{node.name}.{kind}", names=names)
                sweep(value)
    return found


def _fold_constants(model: ir.Model) -> None:
    """Every other constant that is stored as integers becomes float32, rounded as the operator rounds it."""
    names = ValueNames(model)
    for node in list(model.graph):
        if not is_dequantize(node) or node.outputs[0].is_graph_output():
            continue
        old = node.outputs[0]
        constant = grid_constant(old)
        if not isinstance(constant, GridConstant):
            continue
        name = old.name or f"{node.name}.constant"
        new = add_initializer(model.graph, name, constant.values(), names=names)
        old.replace_all_uses_with(new)
        sweep(old)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A layer before normalization; `columns` is the weight of a Gemm or MatMul whose columns differ in scale.

    Ascend has one weight scale for such a layer. With s_d for the scale of the activation, y[c] = sum(q) * s_d * s[c]
    is (sum(q) * s_d * s) * (s[c] / s). The integers stay what they are, and s is the largest of all s[c], so that no
    intermediate value is larger than what the model computes. A Mul behind the layer has the ratios s[c] / s.
    """

    layer: QuantizedLayer
    columns: GridConstant | None = None


def _read_layers(
    model: ir.Model, constants: _Constants, judge: Judge, refuse: Refuse
) -> tuple[dict[str, QuantizedLayer], list[Kept], dict[str, str]]:
    nodes = index_graph(model).nodes
    drafts: dict[str, _Draft] = {}
    kept: list[Kept] = []
    for traits in map(judge, candidates(model)):
        draft = _draft(nodes[traits.name], traits, constants) if traits.name in nodes else None
        if isinstance(draft, str):
            kept.append(Kept(name=traits.name, op_type=traits.op_type, reason=draft))
        elif draft is not None:
            drafts[traits.name] = draft
    normalize_layers(model, drafts.keys())
    names = ValueNames(model)
    layers: dict[str, QuantizedLayer] = {}
    rescaled: dict[str, str] = {}
    for name, draft in drafts.items():
        node, columns = nodes[name], draft.columns
        before = [constant_value(value) for value in node.inputs[1:3]]
        if columns is not None:
            _use_one_scale(layer_of(node), columns, names)
        reason = refuse(node, draft.layer)
        if reason is not None:
            kept.append(Kept(name=name, op_type=node.op_type, reason=reason))
            if columns is not None:
                _restore(node, before, names)
            continue
        layers[name] = draft.layer
        if columns is not None:
            rescaled[name] = _multiply_columns(model, node, columns.scale / columns.scale.max(), names)
    return layers, kept, rescaled


def _draft(node: ir.Node, traits: LayerTraits, constants: _Constants) -> _Draft | str | None:
    """The factors of one layer, why it stays in float, or None where the model does not quantize it at all."""
    activation = _activation(node.inputs[0])
    weight = constants.get((traits.name, 1))
    if activation is None and weight is None:
        return None
    for part in (weight, activation):
        if isinstance(part, str):
            return part
    if traits.reason is not None:
        return traits.reason
    if activation is None or isinstance(activation, str):
        return "its activation is not quantized"
    if traits.two_operands:
        return _product(node, activation)
    if traits.symmetric_only and activation.zero_point.any():
        return "its activation has a zero point, and with this rank only symmetric activations work"
    if not traits.has_weight:
        return _Draft(layer=QuantizedLayer(name=traits.name, activation=activation, weight=None))
    if traits.op_type in RECURRENT_OPS:
        return f"a quantized {traits.op_type} cannot be converted"
    if not isinstance(weight, GridConstant):
        return "its weight is not quantized"
    if weight.steps.min() < _INT8.min or weight.steps.max() > _INT8.max:
        return "its weight is asymmetric or wider than int8: q - zero_point does not fit int8"
    bias = constants.get((traits.name, 2))
    return _with_weight(node, activation, weight, bias if isinstance(bias, GridConstant) else None)


def _product(node: ir.Node, activation: QParams) -> _Draft | str:
    """A MatMul of two activations."""
    second = _activation(node.inputs[1])
    if isinstance(second, str):
        return second
    if second is None:
        return "its second operand is not quantized"
    if activation.zero_point.any() or second.zero_point.any():
        return "an operand has a zero point, and a MatMul of two activations takes symmetric ones only"
    if not _in_range(activation.scale * second.scale):
        return _OUT_OF_RANGE
    return _Draft(layer=QuantizedLayer(name=name_of(node), activation=activation, weight=None, second=second))


def _in_range(grid: Floats) -> bool:
    return bool(np.isfinite(grid).all() and (grid > 0).all())


def _with_weight(
    node: ir.Node, activation: QParams, weight: GridConstant, bias: GridConstant | None
) -> _Draft | str | None:
    steps, scale = weight.steps, weight.scale
    if not np.isfinite(weight.values()).all():
        return "its weight is not finite"
    if node.op_type == "Gemm":
        if node.attributes.get_int("transB", 0):
            steps, scale = steps.T, scale.T
        alpha = np.float32(node.attributes.get_float("alpha", 1.0))
        if not alpha > 0:
            return f"its alpha is {alpha:g}"
        scale = scale * alpha
        bias = None if node.attributes.get_float("beta", 1.0) != 1.0 else bias
    columns = None
    if scale.min() == scale.max():
        scales, spec = scale.reshape(-1)[:1], QSpec()
    elif node.op_type in ("Gemm", "MatMul"):
        rows = scale.reshape(-1, scale.shape[-1])
        if (rows != rows[:1]).any():
            return "the scale of its weight changes along another axis than its columns"
        columns = GridConstant(steps=steps, scale=rows[0])
        scales, spec = columns.scale.max(keepdims=True), QSpec()
    else:
        rows = channel_rows(scale, node)
        if (rows != rows[:, :1]).any():
            return "the scale of its weight changes along another axis than its output channels"
        scales, spec = rows[:, 0], QSpec(channel_axis=0)
    params = QParams(scale=scales, zero_point=np.zeros(scales.shape, np.int32), spec=spec)
    grid = activation.scale * (scales if columns is None else columns.scale)
    if not _in_range(grid):
        return _OUT_OF_RANGE
    known = None if bias is None else _bias_integers(bias, grid)
    layer = QuantizedLayer(name=name_of(node), activation=activation, weight=params, bias=known)
    return _Draft(layer=layer, columns=columns)


def _bias_integers(bias: GridConstant, grid: Floats) -> Int32s | None:
    """The integers of a bias that lies on the grid of its layer's sums, otherwise None."""
    steps, scale = bias.steps.reshape(-1), bias.scale.reshape(-1)
    if grid.size not in (1, steps.size) or (np.abs(scale / grid.astype(np.float64) - 1) > _SCALE_TOLERANCE).any():
        return None
    if steps.size == 0 or steps.min() < _INT32.min or steps.max() > _INT32.max:
        return None
    return steps.astype(np.int32)


def _activation(value: ir.Value | None) -> QParams | str | None:
    """The int8 grid that a tensor lies on, None for a float tensor."""
    while value is not None:
        node = value.producer()
        if node is None or (not is_dequantize(node) and not commutes(node)):
            return None
        if is_dequantize(node):
            return activation_params(grid_of(node))
        value = node.inputs[0]
    return None


def _use_one_scale(layer: Layer, columns: GridConstant, names: ValueNames) -> None:
    largest, bias = columns.scale.max(), layer.bias
    layer.replace_weight(columns.steps.astype(np.float32) * largest, names=names)
    if bias is not None:
        layer.replace_bias((bias / (columns.scale / largest)).astype(np.float32), names=names)


def _restore(node: ir.Node, arrays: list[Array | None], names: ValueNames) -> None:
    for index, array in enumerate(arrays, start=1):
        if array is not None:
            own_constant(node, index, array, f"{node.name}.constant{index}", names=names)


def _multiply_columns(model: ir.Model, node: ir.Node, ratios: Floats, names: ValueNames) -> str:
    """Put a Mul by `ratios` behind a layer, and give its name."""
    inner, name = node.outputs[0], names.node(f"{node.name}.columns")
    ratio = add_initializer(model.graph, f"{name}.factor", ratios, names=names)
    result = ir.val(names.new(f"{name}.output0"), type=inner.type, shape=inner.shape)
    if inner.is_graph_output():
        result.name, inner.name = inner.name, result.name
    inner.replace_all_uses_with(result, replace_graph_outputs=True)
    # The constant first: see targets/simulation.py.
    model.graph.insert_after(node, ir.node("Mul", [ratio, inner], name=name, outputs=[result]))
    return name
