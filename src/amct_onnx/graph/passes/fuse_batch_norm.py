"""Fold a BatchNormalization into the convolution before it (spec section 7.1).

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
from amct_onnx.graph.layer_view import as_layer, layer_of
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.fusion import (
    CONVOLUTIONS,
    Fusion,
    Fusions,
    Skipped,
    absorb,
    parameters_of,
    why_not_affine,
    why_shared,
)
from amct_onnx.graph.tensors import Array, array_of, deferred, shape_of
from amct_onnx.graph.weights import channel_count, channel_rows, from_channel_rows
from amct_onnx.numerics.blocks import blocks


def fuse_batch_norm_into_conv(model: ir.Model, *, skip: Collection[str] = ()) -> Fusions:
    """Fold every BatchNormalization in inference mode into its Conv or ConvTranspose, in all graphs of the model.

    `skip` names nodes of skip_fusion_layers: neither a listed convolution nor a listed BatchNormalization is touched.
    """
    opset, names = default_opset(model), ValueNames(model)
    fused: list[Fusion] = []
    skipped: list[Skipped] = []
    for graph in list(model.graphs()):
        for batch_norm in list(graph):
            conv = producer_of(batch_norm, 0)
            if not (is_op(batch_norm, "BatchNormalization") and is_op(conv, *CONVOLUTIONS)):
                continue
            if conv.name in skip or batch_norm.name in skip:
                continue
            arrays = _fused_arrays(conv, batch_norm, opset)
            if isinstance(arrays, str):
                skipped.append(Skipped(node=label_of(batch_norm), reason=arrays))
                continue
            layer = layer_of(conv)
            layer.replace_weight(arrays[0], names=names)
            layer.replace_bias(arrays[1], names=names)
            fused.append(absorb(conv, batch_norm))
    return Fusions(fused=tuple(fused), skipped=tuple(skipped))


def _fused_arrays(conv: ir.Node, batch_norm: ir.Node, opset: int) -> tuple[ir.TensorProtocol, Array] | str:
    """The weight and bias that do the work of both nodes, or why there are none. Changes nothing."""
    reason = why_not_affine(batch_norm, opset) or why_shared(conv, batch_norm)
    if reason is not None:
        return reason
    layer = as_layer(conv)
    if layer is None:
        return f"the weight of {conv.op_type} '{conv.name}' is not constant"
    w, b = layer.weight, layer.bias
    if b is None and layer.bias_value is not None:
        return f"the bias of {conv.op_type} '{conv.name}' is not constant"
    parameters = parameters_of(batch_norm)
    if isinstance(parameters, str):
        return parameters
    gamma, beta, mean, variance = parameters
    if gamma.size != channel_count(shape_of(w), conv) or (b is not None and b.shape != gamma.shape):
        return f"BatchNormalization and {conv.op_type} '{conv.name}' differ in channels"
    epsilon = batch_norm.attributes.get_float("epsilon", float(np.float32(1e-5)))
    with np.errstate(all="ignore"):  # whatever goes wrong shows in the result
        gain = gamma / np.sqrt(variance + epsilon)
        old_b = np.zeros_like(gain) if b is None else b.astype(np.float64)
        new_b = ((old_b - mean) * gain + beta).astype(w.dtype.numpy())
    new_w = _scaled(w, conv, gain)
    if not all(np.isfinite(array.astype(np.float64)).all() for array in (array_of(new_w), new_b)):
        return "fused weights are not finite"
    return new_w, new_b


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
