"""SmoothQuant: divide the channels of what matrix products read, and multiply their weights with the same factors.

Before                                   After
LayerNormalization(x, g, b) -> MatMul    LayerNormalization(x, g / f, b / f) -> MatMul(w * f)
Add(Mul(x, g), b) -> MatMul              Add(Mul(x, g / f), b / f) -> MatMul(w * f)
y -> MatMul(w), y -> Add                 y -> Mul(1 / f) -> MatMul(w * f), y -> Add

The constants in front are changed where all readers of the tensor are the products: a normalization in front of them
(pre-LN). Behind a normalization that a residual sum reads as well (post-LN), and behind an activation such as GELU, a
Mul is needed, one for all products that read the tensor. The float function stays the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, name_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_tensor, constant_value, own_constant
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.weights import scaled_by_input_channel
from amct_onnx.numerics.arrays import Floats


@dataclass(frozen=True, kw_only=True)
class ProductInput:
    """A tensor float32[..., channels] that these MatMul and Gemm with a weight of two dimensions read as input 0."""

    layers: tuple[str, ...]
    channels: int


def product_inputs(model: ir.Model) -> dict[str, ProductInput]:
    """The tensors of the main graph whose channels can be scaled, by name; others may read them too."""
    found: dict[str, ProductInput] = {}
    for node in model.graph:
        layer = as_layer(node) if is_op(node, "MatMul", "Gemm") else None
        if layer is None or node.attributes.get_int("transA", 0) != 0 or constant_tensor(layer.input) is not None:
            continue
        if layer.weight.dtype != ir.DataType.FLOAT or len(layer.shape) != 2 or not layer.input_channels:
            continue
        source, channels = name_of(layer.input), layer.input_channels
        earlier = found.get(source, ProductInput(layers=(), channels=channels))
        if earlier.channels == channels:
            found[source] = ProductInput(layers=(*earlier.layers, layer.name), channels=channels)
    return found


def smooth_inputs(model: ir.Model, factors: Mapping[str, Floats]) -> dict[str, str]:
    """Scale tensors of `product_inputs`, in place; `factors` float32[C] > 0, by name.

    Returns for each the name of the tensor that holds x / f now: itself, or that behind a new Mul. Raises KeyError for
    a tensor that is no such input, ValueError for factors of another number of channels.
    """
    inputs = product_inputs(model)
    for name, wanted in factors.items():
        if wanted.shape != (inputs[name].channels,):
            raise ValueError(f"{name} has {inputs[name].channels} channels, and factors of shape {wanted.shape}")
    normalize_layers(model, {layer for name in factors for layer in inputs[name].layers})
    names, index = ValueNames(model), index_graph(model)
    renamed = {}
    for name, wanted in factors.items():
        layers = [index.layer(layer) for layer in inputs[name].layers]
        for layer in layers:
            layer.replace_weight(scaled_by_input_channel(layer.weight, wanted, layer.node), names=names)
        renamed[name] = _divide(model.graph, layers, wanted, names)
    return renamed


def _divide(graph: ir.Graph, layers: Sequence[Layer], factors: Floats, names: ValueNames) -> str:
    """Make the layers read their input divided by `factors`; the name of what they read then."""
    source = layers[0].input
    if _folded(source, [layer.node for layer in layers], factors, names):
        return name_of(source)
    inverse = add_initializer(graph, f"{source.name}.smoothing", np.float32(1) / factors, names=names)
    output = ir.val(names.new(f"{source.name}.smoothed"), type=source.type, shape=source.shape)
    mul = ir.node("Mul", [source, inverse], name=names.node(f"{source.name}.smooth"), outputs=[output])
    graph.insert_before(layers[0].node, mul)
    for layer in layers:
        layer.node.replace_input_with(0, output)
    return name_of(output)


def _folded(source: ir.Value, layers: Sequence[ir.Node], factors: Floats, names: ValueNames) -> bool:
    """Whether the factors went into the constants of the node in front, or of two of them."""
    if source.is_graph_output() or {use.node for use in source.uses()} != set(layers):
        return False
    node = source.producer()
    if node is None:
        return False
    places = [(node, index) for index in (1, 2)] if is_op(node, "LayerNormalization") else _affine_places(node)
    places = [(owner, index) for owner, index in places if optional_input(owner, index) is not None]
    found = [constant_value(owner.inputs[index]) for owner, index in places]
    arrays = [array for array in found if array is not None and array.shape == factors.shape]
    if not arrays or len(arrays) != len(places):
        return False
    for (owner, index), array in zip(places, arrays, strict=True):
        own_constant(owner, index, array / factors, f"{owner.name}.scaled{index}", names=names)
    return True


def _affine_places(add: ir.Node) -> list[tuple[ir.Node, int]]:
    """Where the constants of Add(Mul(x, g), b) are, in any order of operands; nowhere for something else."""
    places: list[tuple[ir.Node, int]] = []
    node: ir.Node | None = add
    for op_type in ("Add", "Mul"):
        if not is_op(node, op_type):
            return []
        fixed = [i for i, value in enumerate(node.inputs) if constant_tensor(value) is not None]
        if len(fixed) != 1:
            return []
        places.append((node, fixed[0]))
        other = input_of(node, 1 - fixed[0])
        node = other.producer() if len(other.uses()) == 1 and not other.is_graph_output() else None
    return places
