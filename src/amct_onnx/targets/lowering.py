"""Turn a model with calibrated layers into one with integers: the part that every dialect shares.

Before                       After
x -> Conv(w, b) -> y         x -> <quantize> -> Conv(w_int, b_int) -> <dequantize> -> y'

w_int = round(w / scale_w), b_int = round(b / (scale_d * scale_w)) (spec section 7.5). Layers that read one tensor with
the same factors share one quantization. What stands for <quantize> and <dequantize>, and the dtype of the integers, is
up to the dialect; both files that `save_model` writes are lowered here, so what is simulated is what is deployed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.core.affine import quantize
from amct_onnx.core.plan import QuantizedLayer
from amct_onnx.core.qparams import QParams
from amct_onnx.core.spec import PerChannel, QSpec
from amct_onnx.errors import ModelError
from amct_onnx.graph.constants import ValueNames, constant_value
from amct_onnx.graph.weights import rows_to_weight, weight_rows

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Dequantization:
    """scale float32[1 or C] along axis 1 of an output of `rank` dimensions (None when unknown).

    `columns` is the last dimension of a MatMul's output, None for other layers.
    """

    layer: str
    scale: npt.NDArray[np.float32]
    rank: int | None
    columns: int | None


class Dialect(Protocol):
    """How one kind of file writes integers down. `sums` is the dtype of a layer's integer result."""

    sums: ir.DataType

    def integers(self, values: npt.NDArray[np.int32], *, bias: bool) -> npt.NDArray[Any]:
        """Weights (int8 range) or a bias (int32 range) in the dtype of the file."""

    def quantize(self, x: ir.Value, layer: str, params: QParams) -> list[ir.Node]:
        """Nodes from `x` to its integers; the last one's first output is the result."""

    def dequantize(self, x: ir.Value, spec: Dequantization) -> list[ir.Node]:
        """Nodes from the layer's integers `x` to float32; the last one's first output is the result."""


def lower(model: ir.Model, layers: Sequence[QuantizedLayer], dialect: Dialect) -> None:
    """Quantize `layers` of `model` in place. Raises ModelError when a bias leaves int32."""
    nodes = {node.name: node for node in model.graph}
    shared: dict[tuple[ir.Value, bytes, bytes, QSpec], ir.Value] = {}
    for layer in layers:
        node = nodes[layer.name]
        x = node.inputs[0]
        assert x is not None  # every layer's first input is required
        key = (x, layer.activation.scale.tobytes(), layer.activation.zero_point.tobytes(), layer.activation.spec)
        if key not in shared:
            quantizer = dialect.quantize(x, layer.name, layer.activation)
            model.graph.insert_before(node, quantizer)
            shared[key] = quantizer[-1].outputs[0]
        node.replace_input_with(0, shared[key])
        spec = _lower_constants(node, layer, dialect)
        _insert_dequantizer(model, node, dialect, spec)


def _lower_constants(node: ir.Node, layer: QuantizedLayer, dialect: Dialect) -> Dequantization:
    scale = layer.activation.scale
    if layer.weight is None:
        return Dequantization(layer.name, scale, rank=None, columns=None)
    weight = constant_value(node.inputs[1])
    assert weight is not None  # a quantized layer's weight is constant
    scale = scale * layer.weight.scale
    integers = integer_weight(weight, node, layer.weight)
    _store(node, 1, dialect.integers(integers, bias=False))
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    quotient = np.zeros(1)
    if bias is not None:
        # float64: a float32 quotient would already be off by more than one unit near the int32 limits.
        quotient = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
        if (quotient < _INT32.min).any() or (quotient > _INT32.max).any():
            raise ModelError(
                f'Do bias quantize failed. Quantized bias of layer "{layer.name}" exceed int32 range '
                f"(largest {np.abs(quotient).max():.3g}), please add it to skip layer."
            )
        _store(node, 2, dialect.integers(quotient.astype(np.int32), bias=True))
    _refuse_overflow(node, integers, quotient, layer.activation)
    columns = weight.shape[-1] if node.op_type == "MatMul" else None
    return Dequantization(layer.name, scale, rank=weight.ndim, columns=columns)


def _refuse_overflow(
    node: ir.Node, weight: npt.NDArray[np.int32], bias: npt.NDArray[np.float64], activation: QParams
) -> None:
    """The int32 sums of a layer would wrap around in silence: refuse a layer in which some input reaches that far."""
    zero_point, spec = int(activation.zero_point[0]), activation.spec
    reach = max(spec.qmax - zero_point, zero_point - spec.qmin)
    magnitudes = np.abs(weight.astype(np.float64))
    sums = weight_rows(magnitudes, node).sum(axis=1) if "Conv" in node.op_type else magnitudes.sum(axis=-2)
    largest = float((np.abs(bias) + reach * sums).max())
    if largest > _INT32.max:
        raise ModelError(
            f'The sums of layer "{node.name}" may exceed int32 range ({largest:.3g}), please add it to skip layer.'
        )


def integer_weight(weight: npt.NDArray[np.float32], node: ir.Node, params: QParams) -> npt.NDArray[np.int32]:
    """The integers of `weight`, in its own layout."""
    return rows_to_weight(quantize(weight_rows(weight, node), params), weight.shape, node)


def weight_spec(bits: int, *, channel_wise: bool) -> QSpec:
    """The grid of weights seen as rows: symmetric, one scale a row or one for all."""
    return QSpec(bits=bits, granularity=PerChannel(0)) if channel_wise else QSpec(bits=bits)


def _store(node: ir.Node, index: int, array: npt.NDArray[Any]) -> None:
    value = node.inputs[index]
    assert value is not None  # its array has just been read
    assert value.is_initializer()  # quantize_model gave each layer its own initializers
    value.const_value = ir.tensor(array, name=value.name)
    value.type = ir.TensorType(value.const_value.dtype)


def _insert_dequantizer(model: ir.Model, node: ir.Node, dialect: Dialect, spec: Dequantization) -> None:
    graph, inner = model.graph, node.outputs[0]
    chain = dialect.dequantize(inner, spec)
    result = chain[-1].outputs[0]
    result.type, result.shape = inner.type, inner.shape
    if spec.rank is not None:  # a pool without a weight averages, and its result is no integer
        inner.type = ir.TensorType(dialect.sums)
    graph.insert_after(node, chain)
    for use in list(inner.uses()):
        if use.node not in chain:
            use.node.replace_input_with(use.idx, result)
    if inner.is_graph_output():
        result.name, inner.name = inner.name, ValueNames(model).new(f"{spec.layer}_output0")
        for index, output in enumerate(graph.outputs):
            if output is inner:
                graph.outputs[index] = result
