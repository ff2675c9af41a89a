"""Fold a BatchNormalization into the convolution before it (amct_formats.md: Fusion).

before: x -> Conv(W, b) -> BatchNormalization(gamma, beta, mean, var) -> y
after:  x -> Conv(W * g, (b - mean) * g + beta)                       -> y      g = gamma / sqrt(var + epsilon)

A missing b is 0 and becomes the initializer `<conv>.bias`. ConvTranspose likewise, along its own output channels.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import is_op, label_of, producer_of
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.fusion import CONVOLUTIONS, Fusion, absorb, feeds_only, is_affine, parameters_of
from amct_onnx.graph.tensors import array_of, deferred, shape_of
from amct_onnx.graph.weights import channel_count, channel_rows, from_channel_rows
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.blocks import blocks


def fuse_batch_norm_into_conv(model: ir.Model, *, skip: Collection[str] = ()) -> tuple[list[Fusion], list[str]]:
    """Fold every BatchNormalization in inference mode into its Conv or ConvTranspose, in all graphs of the model.

    `skip` names nodes of skip_fusion_layers: neither a listed convolution nor a listed BatchNormalization is touched.
    Returns what was fused, and those that are left alone because the fused weights are not finite; in graph order.
    """
    opset, names = default_opset(model), ValueNames(model)
    fused: list[Fusion] = []
    infinite: list[str] = []
    for graph in list(model.graphs()):
        for batch_norm in list(graph):
            conv = producer_of(batch_norm, 0)
            if not (is_op(batch_norm, "BatchNormalization") and is_op(conv, *CONVOLUTIONS)):
                continue
            if conv.name in skip or batch_norm.name in skip:
                continue
            layer = as_layer(conv)
            if layer is None or not is_affine(batch_norm, opset) or not feeds_only(conv, batch_norm):
                continue
            arrays = _fused_arrays(layer, batch_norm)
            if arrays is None:
                continue
            weight, bias = arrays
            if not all(np.isfinite(array.astype(np.float64)).all() for array in (array_of(weight), bias)):
                infinite.append(label_of(batch_norm))
                continue
            layer.replace_weight(weight, names=names)
            layer.replace_bias(bias, names=names)
            fused.append(absorb(conv, batch_norm))
    return fused, infinite


def _fused_arrays(layer: Layer, batch_norm: ir.Node) -> tuple[ir.TensorProtocol, Array] | None:
    """The weight and bias that do the work of both nodes; None where what they need is not constant or does not fit."""
    w, b, parameters = layer.weight, layer.bias, parameters_of(batch_norm)
    if parameters is None or (b is None and layer.bias_value is not None):
        return None
    gamma, beta, mean, variance = parameters
    if gamma.size != channel_count(shape_of(w), layer.node) or (b is not None and b.shape != gamma.shape):
        return None
    epsilon = batch_norm.attributes.get_float("epsilon", float(np.float32(1e-5)))
    with np.errstate(all="ignore"):  # whatever goes wrong shows in the result
        gain = gamma / np.sqrt(variance + epsilon)
        old_b = np.zeros_like(gain) if b is None else b.astype(np.float64)
        new_b = ((old_b - mean) * gain + beta).astype(w.dtype.numpy())
    return _scaled(w, layer.node, gain), new_b


def _scaled(weight: ir.TensorProtocol, conv: ir.Node, gain: Array) -> ir.TensorProtocol:
    """The weight of `conv` with each output channel times its gain, computed in float64."""
    dtype, shape = weight.dtype.numpy(), shape_of(weight)

    def compute() -> Array:
        rows = channel_rows(array_of(weight), conv)
        result = np.empty(rows.shape, dtype)
        with np.errstate(all="ignore"):
            for block in blocks(rows.shape):
                result[block] = rows[block].astype(np.float64) * gain[block[0], np.newaxis]
        return from_channel_rows(result, shape, conv)

    return deferred(compute, dtype, shape)
