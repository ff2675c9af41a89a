"""A quantized model as a float model and its roundings, in units that can be left in float.

A unit is a node with what its kernel rounds: its constants and the tensors that it makes, perhaps behind operators that
only move elements. What comes from elsewhere (the model's inputs, a float node) and is quantized is a unit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.graph.tensors import shape_of
from amct_onnx.numerics.arrays import Array
from amct_onnx.values.roundings import Roundings

# Multiplications in the time of writing one element and reading it again: bandwidth bounds what is no product.
_PER_ELEMENT = 16


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
class Units:
    """`model` is the float model that the units round; `constants` the quantized ones, by node and input."""

    model: ir.Model
    units: tuple[Unit, ...]
    constants: Mapping[str, Mapping[int, Array]]


def operations(model: ir.Model, nodes: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What `nodes` of a model cost, in multiplications, where its tensors have these shapes."""
    return sum(_operations(node, shapes) for node in model.graph if node.name in nodes)


def _operations(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    def shape(value: ir.Value | None) -> tuple[int, ...]:
        tensor = constant_tensor(value)
        return shapes.get((value and value.name) or "", ()) if tensor is None else shape_of(tensor)

    result = math.prod(shape(node.outputs[0]))
    written = _PER_ELEMENT * result
    if node.op_type not in WEIGHT_OPS:
        return written
    weight = shape(node.inputs[1])
    if node.op_type == "ConvTranspose":
        return written + math.prod(shape(node.inputs[0])) * math.prod(weight[1:])
    return written + result * (math.prod(weight[1:]) if node.op_type == "Conv" else weight[-2])
