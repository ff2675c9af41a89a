"""Balance layers: move the range of input channels from the activation into the weight (amct_formats.md: DMQ).

Before           After
x -> Conv(w)     x -> Mul(1/f) -> Conv(w * f), f along the input channels

The Mul is named `<layer>.mul` and its constant `<layer>.tensor_balance_factor`, of shape [1, C] for Gemm and MatMul and
[1, C, 1, ...] for convolutions. The float function stays the same up to the rounding of x / f and w * f.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import input_of, name_of, producer_of
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_value
from amct_onnx.graph.layer_view import Layer, layer_of
from amct_onnx.graph.passes.normalize_layers import gemm_weight
from amct_onnx.graph.tensors import array_of
from amct_onnx.graph.weights import input_channel_maxima, scaled_by_input_channel
from amct_onnx.numerics.arrays import Floats


def balance_layers(model: ir.Model, factors: Mapping[str, Floats]) -> None:
    """Balance the layers named in `factors`, float32[C] each and > 0, in place.

    The layers are normalized (`normalize_layers`). A layer that is balanced already stays as it is.
    """
    names = ValueNames(model)
    for node in list(model.graph):
        if node.name in factors and balance_factors(node) is None:
            layer = layer_of(node)
            _balance(model.graph, layer, factors[layer.name], names)


def _balance(graph: ir.Graph, layer: Layer, factors: Floats, names: ValueNames) -> None:
    name, source = layer.name, layer.input
    spatial = [1] * (len(layer.shape) - 2) if channel_axis(layer.node) == 1 else []
    inverse = (np.float32(1) / factors).reshape(1, -1, *spatial)
    if layer.half:
        with np.errstate(over="ignore"):  # it is refused next
            inverse = inverse.astype(np.float16)
        factors = _factors_in_half(layer, inverse)
    layer.replace_weight(scaled_by_input_channel(layer.weight, factors, layer.node), names=names)
    constant = add_initializer(graph, f"{name}.tensor_balance_factor", inverse, names=names)
    output = ir.val(names.new(f"{name}.mul.output0"), type=source.type, shape=source.shape)
    graph.insert_before(
        layer.node, ir.node("Mul", [source, constant], name=names.node(f"{name}.mul"), outputs=[output])
    )
    layer.node.replace_input_with(0, output)


def _factors_in_half(layer: Layer, inverse: npt.NDArray[np.float16]) -> Floats:
    """What float16 makes of the factors. Raises ModelError where it cannot hold 1/f or the weight."""
    with np.errstate(divide="ignore"):
        factors: Floats = np.float32(1) / inverse.astype(np.float32).reshape(-1)
    largest = weight_maxima(layer.node).astype(np.float32) * factors
    if not (np.isfinite(factors).all() and inverse.max() < np.inf and largest.max() <= np.finfo(np.float16).max):
        raise ModelError(
            f'Layer "{layer.name}": its balance factors or its balanced weight leave the range of float16. Take '
            "dmq_balancer_param from the layer, or balance the model in float32."
        )
    return factors


def balance_factors(node: ir.Node) -> Floats | None:
    """The factors f of a layer that `balance_layers` has balanced, None for another one."""
    mul = balancing_mul(node)
    inverse = constant_value(mul.inputs[1]) if mul is not None else None
    return None if inverse is None else np.float32(1) / inverse.astype(np.float32).reshape(-1)


def balancing_mul(node: ir.Node) -> ir.Node | None:
    """The Mul in front of a layer that `balance_layers` has balanced, None for another one."""
    mul = producer_of(node, 0)
    if mul is None or mul.op_type != "Mul" or not name_of(mul).startswith(f"{node.name}.mul"):
        return None
    return mul if name_of(input_of(mul, 1)).startswith(f"{node.name}.tensor_balance_factor") else None


def constant_first(model: ir.Model, layers: Collection[str]) -> None:
    """Mul(x, 1/f) becomes Mul(1/f, x) for those of `layers` that are balanced, which is exactly the same product.

    ONNX Runtime merges a Mul with a constant second operand into a float Conv in front of it, and rounds differently
    then: a fake-quant model must not depend on it (see targets/simulation.py).
    """
    for node in model.graph:
        mul = balancing_mul(node) if node.name in layers else None
        if mul is not None:
            x, constant = mul.inputs
            mul.replace_input_with(0, constant)
            mul.replace_input_with(1, x)


def channel_axis(node: ir.Node) -> int:
    """The axis of a layer's input that holds its channels: from the front for convolutions, otherwise the last one."""
    return 1 if "Conv" in node.op_type else -1


def weight_maxima(node: ir.Node) -> Floats:
    """float32[C]: the largest magnitude of the weight for each input channel, whether normalized or not."""
    layer = layer_of(node)
    weight = gemm_weight(layer) if node.op_type == "Gemm" else layer.weight
    return input_channel_maxima(array_of(weight), node)
