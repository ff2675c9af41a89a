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
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.constants import ValueNames, add_initializer, constant_tensor, constant_value, own_constant
from amct_onnx.graph.layers import int_attribute
from amct_onnx.graph.passes.fusion import is_op
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.tensors import shape_of
from amct_onnx.graph.weights import scaled_by_input_channel

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ProductInput:
    """A tensor float32[..., channels] that these MatMul and Gemm with a weight of two dimensions read as input 0."""

    layers: tuple[str, ...]
    channels: int


def product_inputs(model: ir.Model) -> dict[str, ProductInput]:
    """The tensors of the main graph whose channels can be scaled, by name; others may read them too."""
    found: dict[str, ProductInput] = {}
    for node in model.graph:
        source, channels = _product_input(node)
        if source is None or not channels:
            continue
        earlier = found.get(source)
        if earlier is None or earlier.channels == channels:
            layers = (*(earlier.layers if earlier else ()), node.name or "")
            found[source] = ProductInput(layers=layers, channels=channels)
    return found


def _product_input(node: ir.Node) -> tuple[str | None, int]:
    """The name of input 0 of a product, and its channels: 0 where the node is none."""
    if not is_op(node, "MatMul", "Gemm") or int_attribute(node, "transA", 0):
        return None, 0
    source, weight = node.inputs[0], constant_tensor(node.inputs[1])
    if source is None or constant_tensor(source) is not None or weight is None or weight.dtype != ir.DataType.FLOAT:
        return None, 0
    shape = shape_of(weight)
    turned = node.op_type == "Gemm" and int_attribute(node, "transB", 0)
    return source.name, shape[1 if turned else 0] if len(shape) == 2 else 0


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
    names, nodes = ValueNames(model), {node.name: node for node in model.graph}
    renamed = {}
    for name, wanted in factors.items():
        layers = [nodes[layer] for layer in inputs[name].layers]
        for layer in layers:
            weight = constant_tensor(layer.inputs[1])
            assert weight is not None  # `product_inputs` has looked
            scaled = scaled_by_input_channel(weight, wanted, layer)
            own_constant(layer, 1, scaled, f"{layer.name}.weight", names=names)
        renamed[name] = _divide(model.graph, layers, wanted, names)
    return renamed


def _divide(graph: ir.Graph, layers: Sequence[ir.Node], factors: Floats, names: ValueNames) -> str:
    """Make the layers read their input divided by `factors`; the name of what they read then."""
    source = layers[0].inputs[0]
    assert source is not None  # a product has an input
    if _folded(source, layers, factors, names):
        return source.name or ""
    inverse = add_initializer(graph, f"{source.name}.smoothing", np.float32(1) / factors, names=names)
    output = ir.val(names.new(f"{source.name}.smoothed"), type=source.type, shape=source.shape)
    graph.insert_before(layers[0], ir.node("Mul", [source, inverse], name=f"{source.name}.smooth", outputs=[output]))
    for layer in layers:
        layer.replace_input_with(0, output)
    return output.name or ""


def _folded(source: ir.Value, layers: Sequence[ir.Node], factors: Floats, names: ValueNames) -> bool:
    """Whether the factors went into the constants of the node in front, or of two of them."""
    if source.is_graph_output() or {use.node for use in source.uses()} != set(layers):
        return False
    node = source.producer()
    if node is None:
        return False
    places = [(node, index) for index in (1, 2)] if is_op(node, "LayerNormalization") else _affine_places(node)
    places = [(owner, index) for owner, index in places if index < len(owner.inputs) and owner.inputs[index]]
    arrays = [constant_value(owner.inputs[index]) for owner, index in places]
    if not arrays or any(array is None or array.shape != factors.shape for array in arrays):
        return False
    for (owner, index), array in zip(places, arrays, strict=True):
        assert array is not None  # it has just been looked at
        own_constant(owner, index, array / factors, f"{owner.name}.scaled{index}", names=names)
    return True


def _affine_places(add: ir.Node) -> list[tuple[ir.Node, int]]:
    """Where the constants of Add(Mul(x, g), b) are, in any order of operands; nowhere for something else."""
    places: list[tuple[ir.Node, int]] = []
    node: ir.Node | None = add
    for op_type in ("Add", "Mul"):
        fixed = [i for i, v in enumerate(node.inputs) if constant_tensor(v) is not None] if node is not None else []
        if node is None or not is_op(node, op_type) or len(fixed) != 1:
            return []
        places.append((node, fixed[0]))
        other = node.inputs[1 - fixed[0]]
        single = other is not None and len(list(other.uses())) == 1 and not other.is_graph_output()
        node = other.producer() if op_type == "Add" and other is not None and single else None
    return places
