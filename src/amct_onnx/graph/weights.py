"""The weight of a layer as a matrix with one row per output channel (spec section 5.2)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from amct_onnx.core.affine import fake_quantize
from amct_onnx.core.qparams import QParams
from amct_onnx.graph.tensors import Array, array_of, deferred, shape_of


def group_of(node: ir.Node) -> int:
    """The `group` attribute of a convolution, 1 for everything else."""
    attribute = node.attributes.get("group")
    return attribute.as_int() if attribute is not None else 1


def weight_rows(weight: Array, node: ir.Node) -> Array:
    """`weight` as [channels, rest]: Conv by axis 0, ConvTranspose by group and axis 1, a single row otherwise."""
    if node.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1)
    if node.op_type == "ConvTranspose":
        group = group_of(node)
        grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        return np.swapaxes(grouped, 1, 2).reshape(group * weight.shape[1], -1)
    return weight.reshape(1, -1)


def rows_to_weight(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """Inverse of `weight_rows` for a weight of `shape`."""
    if node.op_type == "ConvTranspose":
        group = group_of(node)
        swapped = rows.reshape(group, shape[1], shape[0] // group, *shape[2:])
        return np.ascontiguousarray(np.swapaxes(swapped, 1, 2)).reshape(shape)
    return rows.reshape(shape)


def channel_count(shape: tuple[int, ...], node: ir.Node) -> int:
    """Number of output channels of a weight of `shape`; 1 for layers quantized per tensor."""
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * group_of(node)
    return 1


def fake_quantized(weight: ir.TensorProtocol, node: ir.Node, params: QParams) -> ir.TensorProtocol:
    """The weight rounded to its grid, float32; computed when it is asked for if it is large."""
    shape = shape_of(weight)

    def compute() -> Array:
        return rows_to_weight(fake_quantize(weight_rows(array_of(weight), node), params), shape, node)

    return deferred(compute, np.float32, shape)
