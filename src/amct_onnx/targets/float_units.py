"""A quantized model as a float model and its roundings, in units that can be left in float.

A unit is a node with what its kernel rounds: its constants and the tensors that it makes, perhaps behind operators that
only move elements. What comes from elsewhere (the model's inputs, a float node) and is quantized is a unit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import WEIGHT_OPS, Layer, as_layer
from amct_onnx.graph.tensors import shape_of
from amct_onnx.numerics.arrays import Array
from amct_onnx.values.prices import Price, Prices, Work
from amct_onnx.values.roundings import Roundings

# Multiplications in the time of writing one element and reading it again: bandwidth bounds what is no product.
_PER_ELEMENT = 16
_IMAGE = 4  # dimensions of the weight of a convolution of images


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """`nodes` go to float together, the first one gives the name and type; none for a tensor from elsewhere.

    constants, tensors: the two kinds of its roundings. last: the tensor behind all of them that others read, "" where
    there is nothing but constants. holders: the units that want `tensors` quantized: these are in float where all of
    them are. reads: the units whose tensors it reads. follows: it goes to float as soon as one of these tensors does.
    """

    name: str
    op_type: str
    nodes: tuple[str, ...]
    constants: Roundings
    tensors: Roundings
    last: str
    holders: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    follows: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Units(HoldsGraphs):
    """`model` is the float model that the units round; `constants` the quantized ones, by node and input."""

    model: ir.Model
    units: tuple[Unit, ...]
    constants: Mapping[str, Mapping[int, Array]]


def float_price(model: ir.Model, nodes: Sequence[str], shapes: Mapping[str, tuple[int, ...]], prices: Prices) -> float:
    """What `nodes` take longer in float than in int8, in nanoseconds, where somebody has measured it; what they give is
    quantized again behind them, at the most."""
    total = 0.0
    for node in model.graph:
        if node.name in nodes:
            outputs = math.prod(_shape(node.outputs[0], shapes))
            price = _price(node, outputs, shapes, prices)
            total += max(price.in_float - price.in_int8, 0.0) + prices.cut * outputs
    return total


def whole_price(
    model: ir.Model, nodes: Collection[str], shapes: Mapping[str, tuple[int, ...]], prices: Prices
) -> float:
    """What a model takes with `nodes` in int8 and its other layers in float, in nanoseconds."""
    total = 0.0
    for node in model.graph:
        if node.name in nodes or node.op_type in WEIGHT_OPS:
            price = _price(node, math.prod(_shape(node.outputs[0], shapes)), shapes, prices)
            total += price.in_int8 if node.name in nodes else price.in_float
    return total


def _price(node: ir.Node, outputs: int, shapes: Mapping[str, tuple[int, ...]], prices: Prices) -> Price:
    if node.op_type not in WEIGHT_OPS:
        each = prices.elementwise.get(node.op_type) or Price(in_float=prices.moved, in_int8=prices.moved)
        return Price(in_float=outputs * each.in_float, in_int8=outputs * each.in_int8)
    layer = as_layer(node)
    if layer is not None:
        return prices.of(work_of(layer, outputs))
    products, weight = _operations(node, shapes) - _PER_ELEMENT * outputs, _shape(node.inputs[1], shapes)
    terms = max(1, products // max(1, outputs))
    return prices.of(Work(outputs=outputs, terms=terms, channels=weight[-1], inputs=max(1, weight[-2])))


def work_of(layer: Layer, outputs: float) -> Work:
    """What a layer does to make so many elements."""
    channels, groups = layer.output_channels, layer.groups
    return Work(
        outputs=outputs,
        terms=math.prod(layer.shape) // max(1, channels),
        channels=channels,
        inputs=max(1, layer.input_channels // groups),
        groups=groups,
        flat=len(layer.shape) != _IMAGE,
    )


def operations(model: ir.Model, nodes: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What `nodes` of a model cost, in multiplications, where its tensors have these shapes."""
    return sum(_operations(node, shapes) for node in model.graph if node.name in nodes)


def operations_by_node(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The same of each node of the main graph, by name."""
    return {node.name: _operations(node, shapes) for node in model.graph if node.name}


def _shape(value: ir.Value | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    tensor = constant_tensor(value)
    return shapes.get((value and value.name) or "", ()) if tensor is None else shape_of(tensor)


def _operations(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    result = math.prod(_shape(node.outputs[0], shapes))
    written = _PER_ELEMENT * result
    if node.op_type not in WEIGHT_OPS:
        return written
    weight = _shape(node.inputs[1], shapes)
    if node.op_type == "ConvTranspose":
        return written + math.prod(_shape(node.inputs[0], shapes)) * math.prod(weight[1:])
    return written + result * (math.prod(weight[1:]) if node.op_type == "Conv" else weight[-2])
