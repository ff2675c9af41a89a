"""Turn a model with calibrated layers into one with integers: the part that every dialect shares.

Before                       After
x -> Conv(w, b) -> y         x -> <quantize> -> Conv(w_int, b_int) -> <dequantize> -> y'

x -> MaxPool -> y            x -> <quantize> -> <restore> -> MaxPool -> y        (a quantized tensor)

x -> QuantizeLinear -> y     x -> <quantize output> -> y                         (an int8 output of the model)

w_int = round(w / scale_w), b_int = round(b / (scale_d * scale_w)) (amct_formats.md: Deploy model). All that read one
tensor with the same factors share one quantization. What stands for <quantize>, <dequantize> and <restore>, and the
dtype of the integers, is up to the dialect; both files that `save_model` writes are lowered here, so what is simulated
is what is deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.errors import LayerError
from amct_onnx.graph.access import graph_of, input_of, name_of
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, layer_of
from amct_onnx.graph.layers import is_half
from amct_onnx.graph.tensors import array_of, deferred, renamed
from amct_onnx.graph.weights import channel_count, channel_rows, from_channel_rows
from amct_onnx.numerics.arrays import Array, Doubles, Floats
from amct_onnx.numerics.blocks import blocks
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import quantize
from amct_onnx.values.layers import QuantizedLayer, QuantizedOutput, QuantizedTensor

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, kw_only=True)
class Dequantization:
    """scale float32[1 or C] along axis 1 of an output of `rank` dimensions (None when unknown).

    `columns` is the last dimension of a MatMul by a weight, None for other layers. `product`: a MatMul of two
    activations. `average`: the layer gives means and no integers. `half`: the result is float16.
    """

    layer: str
    scale: Floats
    rank: int | None = None
    columns: int | None = None
    product: bool = False
    average: bool = False
    half: bool = False


class Dialect(Protocol):
    """How one kind of file writes integers down.

    sums: the dtype of a layer's integer result. weight_type, bias_type: the dtypes in which the file has weights (int8
    range) and biases (int32 range).
    """

    sums: ir.DataType
    weight_type: npt.DTypeLike
    bias_type: npt.DTypeLike

    def quantize(self, x: ir.Value, owner: str, params: QParams, *, half: bool = False) -> list[ir.Node]:
        """Nodes from `x` to its integers, named after `owner`; the last one's first output is the result.

        `half`: x is float16. The arithmetic is that of float32 all the same.
        """

    def quantize_output(self, x: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        """Nodes from `x` to its integers as int8, zero point included; the last one's output is the result."""

    def restore(self, integers: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        """Nodes from what `quantize` gave for these `params` back to float32; the last one's output is the result."""

    def sum_wide(self, node: ir.Node, bias: Doubles | None) -> ir.Node:
        """See to it that a layer on int16, whose constants are integers already, has exact sums.

        `bias` has its integers. Returns the node whose first output has the sums: `node`, or one put behind it.
        """

    def dequantize(self, x: ir.Value, spec: Dequantization) -> list[ir.Node]:
        """Nodes from the layer's integers `x` to float32, or float16; the last one's first output is the result."""


def lower(
    model: ir.Model,
    layers: Sequence[QuantizedLayer],
    dialect: Dialect,
    *,
    tensors: Sequence[QuantizedTensor] = (),
    outputs: Sequence[QuantizedOutput] = (),
) -> dict[str, str]:
    """Quantize `layers`, `tensors` and `outputs` of `model` in place. Raises LayerError when a bias leaves int32.

    Returns for each new node in front of a layer or behind it, by name, the node of the model that it serves.
    """
    index = index_graph(model, subgraphs=True)  # a recurrent layer has one in the body of a Scan
    quantizers = _Quantizers(dialect)
    # In graph order: the first reader of a tensor gets its quantizer, and the others find it in front of them.
    parts: list[QuantizedLayer | QuantizedTensor] = [*layers, *tensors]
    for part in sorted(parts, key=lambda part: index.positions[_node_name(part)]):
        node = index.nodes[_node_name(part)]
        if isinstance(part, QuantizedTensor):
            _lower_tensor(model, node, part, quantizers)
            continue
        quantizers.put_before(node, 0, part.name, part.activation, half=is_half(node))
        if part.second is not None:
            quantizers.put_before(node, 1, f"{part.name}.1", part.second)
        spec, bias = _lower_constants(node, part, dialect)
        if part.activation.spec.bits > 8:
            node = dialect.sum_wide(node, bias)
        made = _insert_dequantizer(model, node, dialect, spec)
        quantizers.served.update((name_of(new), part.name) for new in made)
    for output in outputs:
        node = index.nodes[output.node]
        chain = dialect.quantize_output(input_of(node, 0), output.node, output.activation)
        model.graph.insert_before(node, chain)
        quantizers.served.update((name_of(new), output.node) for new in chain)
        _take_over(node, chain[-1].outputs[0])
    return quantizers.served


def _node_name(part: QuantizedLayer | QuantizedTensor) -> str:
    return part.node if isinstance(part, QuantizedTensor) else part.name


class _Quantizers:
    """One quantizer for each tensor and its factors, however many nodes read it; `served` is that of `lower`."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.served: dict[str, str] = {}
        self._made: dict[tuple[ir.Value, bytes, bytes, QSpec], ir.Value] = {}

    def put_before(self, node: ir.Node, index: int, owner: str, params: QParams, *, half: bool = False) -> ir.Value:
        """Let `node` read the integers of its input `index`, and return them."""
        x = input_of(node, index)
        key = (x, params.scale.tobytes(), params.zero_point.tobytes(), params.spec)
        if key not in self._made:
            chain = self.dialect.quantize(x, owner, params, half=half)
            self.served.update((name_of(new), name_of(node)) for new in chain)
            graph_of(node).insert_before(node, chain)
            self._made[key] = chain[-1].outputs[0]
        node.replace_input_with(index, self._made[key])
        return self._made[key]


def _lower_tensor(model: ir.Model, node: ir.Node, tensor: QuantizedTensor, quantizers: _Quantizers) -> None:
    x = input_of(node, tensor.input_index)
    integers = quantizers.put_before(node, tensor.input_index, tensor.owner, tensor.activation)
    chain = quantizers.dialect.restore(integers, tensor.owner, tensor.activation)
    chain[-1].outputs[0].type, chain[-1].outputs[0].shape = x.type, x.shape
    quantizers.served.update((name_of(new), tensor.node) for new in chain)
    model.graph.insert_before(node, chain)
    node.replace_input_with(tensor.input_index, chain[-1].outputs[0])
    if tensor.marker and not (chain[-1].outputs[0].is_graph_output() and node.outputs[0].is_graph_output()):
        _take_over(node, chain[-1].outputs[0])


def _take_over(node: ir.Node, new: ir.Value) -> None:
    """`node` goes; `new` takes the place of its output, with the name if it is an output of the model."""
    old, graph = node.outputs[0], graph_of(node)
    new.type, new.shape = old.type or new.type, old.shape
    if old.is_graph_output():
        new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _lower_constants(node: ir.Node, layer: QuantizedLayer, dialect: Dialect) -> tuple[Dequantization, Doubles | None]:
    """How to dequantize a layer whose constants become integers here, and the integers of its bias."""
    scale = layer.activation.scale
    if layer.second is not None:
        scale = scale * layer.second.scale
        return Dequantization(layer=layer.name, scale=scale, rank=_product_rank(node), product=True), None
    if layer.weight is None:
        return Dequantization(layer=layer.name, scale=scale, average=True), None
    view = layer_of(node)
    weight, half, bias = view.weight, view.half, integer_bias(node, layer)
    compute = partial(integer_weight, weight, node, layer.weight)
    _store(node, 1, deferred(compute, dialect.weight_type, view.shape))
    if bias is not None:
        _store(node, 2, ir.tensor(bias.astype(np.int32).astype(dialect.bias_type)))  # int32 has no negative zero
    scale = scale * layer.weight.scale
    columns = view.shape[-1] if node.op_type == "MatMul" else None
    return Dequantization(layer=layer.name, scale=scale, rank=len(view.shape), columns=columns, half=half), bias


def integer_bias(node: ir.Node, layer: QuantizedLayer) -> Doubles | None:
    """The integers of the bias of a layer; None without a weight or bias.

    Raises LayerError when they, or the sums of the layer for some input, leave int32.
    """
    if layer.weight is None:
        return None
    view = layer_of(node)
    bias = view.bias
    quotient = None
    if bias is not None and layer.bias is not None:
        quotient = layer.bias.astype(np.float64)
    elif bias is not None:
        # float64: a float32 quotient would already be off by more than one unit near the int32 limits.
        scale = layer.activation.scale * layer.weight.scale
        quotient = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
        if (quotient < _INT32.min).any() or (quotient > _INT32.max).any():
            largest = f"(largest {np.abs(quotient).max():.3g})"
            raise LayerError(
                f'Do bias quantize failed. Quantized bias of layer "{layer.layer}" exceed int32 range {largest}, '
                "please add it to skip layer.",
                layer=layer.layer,
                reason=f"its quantized bias exceeds int32 {largest}",
            )
    _refuse_overflow(view, layer.weight, np.zeros(1) if quotient is None else quotient, layer)
    return quotient


def _product_rank(node: ir.Node) -> int | None:
    """Rank of a MatMul of two activations, None where the file does not tell."""
    ranks = [len(value.shape) for value in node.inputs if value is not None and value.shape is not None]
    return max(ranks) if len(ranks) == 2 and min(ranks) >= 2 else None


def _refuse_overflow(view: Layer, weight: QParams, bias: Doubles, layer: QuantizedLayer) -> None:
    """The int32 sums of a layer would wrap around in silence: refuse a layer in which some input reaches that far."""
    zero_point, spec, node = int(layer.activation.zero_point[0]), layer.activation.spec, view.node
    reach = max(spec.qmax - zero_point, zero_point - spec.qmin)
    products = view.weight.size // channel_count(view.shape, node) if "Conv" in node.op_type else view.shape[-2]
    if np.abs(bias).max() - reach * products * weight.spec.qmin <= _INT32.max:
        return  # whatever the weights are
    sums = _magnitude_sums(integer_weight(view.weight, node, weight), node)
    largest = float((np.abs(bias) + reach * sums).max())
    if largest > _INT32.max:
        raise LayerError(
            f'The sums of layer "{layer.layer}" may exceed int32 range ({largest:.3g}), please add it to skip layer.',
            layer=layer.layer,
            reason=f"its sums may exceed int32 ({largest:.3g})",
        )


def _magnitude_sums(weight: Array, node: ir.Node) -> Doubles:
    """The sum of the magnitudes that each output channel adds up."""
    matrix, axis = (channel_rows(weight, node), 1) if "Conv" in node.op_type else (weight, weight.ndim - 2)
    sums = np.zeros(matrix.shape[:axis] + matrix.shape[axis + 1 :])
    for block in blocks(matrix.shape):
        magnitudes = np.abs(matrix[block].astype(np.float64))
        sums[block[:axis] + block[axis + 1 :]] += magnitudes.sum(axis=axis)
    return sums


def integer_weight(weight: ir.TensorProtocol, node: ir.Node, params: QParams) -> Array:
    """The integers of `weight`, in its own layout, int8 or int16.

    Its channels are rows of output channels, or (`channel_axis` 1) columns of a Gemm.
    """
    array, dtype = array_of(weight), np.int8 if params.spec.bits <= 8 else np.int16
    if params.spec.channel_axis == 1:
        return quantize(array, params, dtype)
    return from_channel_rows(quantize(channel_rows(array, node), params, dtype), array.shape, node)


def weight_spec(bits: int, *, channel_wise: bool) -> QSpec:
    """The grid of weights seen as rows: symmetric, one scale a row or one for all."""
    return QSpec(bits=bits, channel_axis=0 if channel_wise else None)


def _store(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> None:
    value = input_of(node, index)  # an initializer of its own, since the layer is normalized
    value.const_value = renamed(tensor, value.name)
    value.type = ir.TensorType(tensor.dtype)


def _insert_dequantizer(model: ir.Model, node: ir.Node, dialect: Dialect, spec: Dequantization) -> list[ir.Node]:
    graph, inner = graph_of(node), node.outputs[0]
    original = inner.type
    if not spec.average:
        inner.type = ir.TensorType(dialect.sums)
    chain = dialect.dequantize(inner, spec)
    result = chain[-1].outputs[0]
    result.type, result.shape = original, inner.shape
    graph.insert_after(node, chain)
    own = [use for use in inner.uses() if use.node in chain]
    if inner.is_graph_output():
        result.name, inner.name = inner.name, ValueNames(model).new(f"{spec.layer}_output0")
    inner.replace_all_uses_with(result, replace_graph_outputs=True)
    for use in own:
        use.node.replace_input_with(use.idx, inner)
    return chain
