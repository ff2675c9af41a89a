"""The weight of a layer by its output channels, as a matrix of rows (spec section 5.2), and by its input channels."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.tensors import Array, array_of, deferred, shape_of
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.weights.nuq import round_to_levels


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


def output_rows(weight: Array, node: ir.Node) -> Array:
    """`weight` as [groups, outputs, inputs]: what each output of a group multiplies its column of inputs with."""
    if "Conv" in node.op_type:
        rows = weight_rows(weight, node)
        groups = group_of(node)
        return rows.reshape(groups, rows.shape[0] // groups, -1)
    return np.swapaxes(weight[None] if weight.ndim == 2 else weight, 1, 2)


def output_rows_shape(shape: tuple[int, ...], node: ir.Node) -> tuple[int, int, int]:
    """The shape of `output_rows` for a weight of `shape`."""
    groups = group_of(node)
    if node.op_type == "Conv":
        return groups, shape[0] // groups, prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return groups, shape[1], shape[0] // groups * prod(shape[2:])
    return (shape[0] if len(shape) == 3 else 1), shape[-1], shape[-2]


def output_rows_to_weight(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """Inverse of `output_rows` for a weight of `shape`."""
    if "Conv" in node.op_type:
        return rows_to_weight(rows.reshape(-1, rows.shape[2]), shape, node)
    return np.ascontiguousarray(np.swapaxes(rows, 1, 2)).reshape(shape)


def rows_to_weight(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """Inverse of `weight_rows` for a weight of `shape`."""
    if node.op_type == "ConvTranspose":
        group = group_of(node)
        swapped = rows.reshape(group, shape[1], shape[0] // group, *shape[2:])
        return np.ascontiguousarray(np.swapaxes(swapped, 1, 2)).reshape(shape)
    return rows.reshape(shape)


def weight_axis(node: ir.Node, rank: int) -> int:
    """The axis of the output channels; for ConvTranspose one scale serves an index of it in every group."""
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def kernel_rows(node: ir.Node, weight: Array) -> Array:
    """`weight` as rows of output channels, the input channels of one position next to each other."""
    if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    axis = weight_axis(node, weight.ndim)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def from_kernel_rows(node: ir.Node, rows: Array, shape: tuple[int, ...]) -> Array:
    """Inverse of `kernel_rows` for a weight of `shape`."""
    if node.op_type == "Conv":
        turned = np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    else:
        axis = weight_axis(node, len(shape))
        turned = np.moveaxis(rows.reshape(shape[axis], *shape[:axis], *shape[axis + 1 :]), 0, axis)
    return np.ascontiguousarray(turned)


def channel_count(shape: tuple[int, ...], node: ir.Node) -> int:
    """Number of output channels of a weight of `shape`; 1 for layers quantized per tensor."""
    if node.op_type == "Conv":
        return shape[0]
    if node.op_type == "ConvTranspose":
        return shape[1] * group_of(node)
    return 1


def fake_quantized(
    weight: ir.TensorProtocol, node: ir.Node, params: QParams, *, levels: tuple[int, ...] = ()
) -> ir.TensorProtocol:
    """The weight rounded to its grid, in its own dtype, and there to one of `levels` if there are any.

    It is computed when it is asked for if it is large. Rounding to float16 moves a weight by a quarter of a step at
    most, so that it gives the same integer again.
    """
    shape = shape_of(weight)

    def compute() -> Array:
        rows = weight_rows(array_of(weight), node)
        rounded = round_to_levels(rows, params, levels) if levels else fake_quantize(rows, params)
        return rows_to_weight(rounded, shape, node)

    return deferred(compute, weight.dtype.numpy(), shape)


def input_channel_maxima(weight: Array, node: ir.Node) -> Array:
    """float32[Cin]: the largest magnitude of `weight` for each channel of the layer's input (spec section 6.5)."""
    view, axes = _by_input_channel(weight, node)
    others = tuple(axis for axis in range(view.ndim) if axis not in axes)
    maxima: Array = np.maximum(view.max(axis=others), -view.min(axis=others)).reshape(-1)
    return maxima


def scaled_by_input_channel(weight: ir.TensorProtocol, factors: Array, node: ir.Node) -> ir.TensorProtocol:
    """The weight with what reads input channel c multiplied by factors[c]; `factors` is float32[Cin].

    It is computed when it is asked for if it is large.
    """
    shape = shape_of(weight)

    def compute() -> Array:
        view, axes = _by_input_channel(array_of(weight), node)
        scaled: Array = view * factors.reshape([size if axis in axes else 1 for axis, size in enumerate(view.shape)])
        return scaled.reshape(shape)

    return deferred(compute, weight.dtype.numpy(), shape)


def _by_input_channel(weight: Array, node: ir.Node) -> tuple[Array, tuple[int, ...]]:
    """`weight` reshaped, and those of its axes that number the input channels (a group of Conv reads its own ones)."""
    if node.op_type == "Conv":
        group = group_of(node)
        return weight.reshape(group, weight.shape[0] // group, *weight.shape[1:]), (0, 2)
    return weight, ((0,) if node.op_type == "ConvTranspose" else (weight.ndim - 2,))
