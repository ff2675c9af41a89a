"""The weight of a layer as rows: an output of the layer is the product of a row with the inputs that it depends on.

There is one layout, that of `output_rows`: [groups, outputs of a group, inputs of a group]. A convolution has the
groups of its attribute; a MatMul has one for each matrix of its weight, and so has a Gemm, whose weight is one matrix.
The inputs stand as in the weight of a Conv: channel after channel, and of each the positions of the kernel. The columns
that calibration collects have the same order (`numerics/im2col.py`). Rows that share a scale stand side by side in two
views of this layout:

- `channel_rows` is AMCT's. A convolution has a scale for each output of each group, so the groups follow each other. A
  Gemm or MatMul has a single scale, so all of its weight is one row, and no order of it is wrong: it stays as stored.
- `kernel_rows` is that of models with Q/DQ nodes. They have a scale for each index of one axis (`weight_axis`). For a
  Conv that is each output of each group again. For all others it is an output of every group at once (`join_groups`).

`kernel_rows` makes the one exception from the order of inputs. The positions of the kernel of a Conv come first there,
and the channels of a position are neighbours, as kernels of ONNX Runtime read them: two neighbours must not overflow
(`numerics/weights/pairs.py`). Rounding by second order goes through the inputs in the same order, since its integers
depend on it.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.tensors import array_of, deferred, shape_of
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.weights.nuq import round_to_levels


def group_of(node: ir.Node) -> int:
    """The `group` attribute of a convolution, 1 for everything else."""
    return node.attributes.get_int("group", 1)


def output_rows(weight: Array, node: ir.Node) -> Array:
    """`weight` as [groups, outputs of a group, inputs of a group]."""
    shape = output_rows_shape(weight.shape, node)
    if node.op_type == "ConvTranspose":
        return np.swapaxes(_by_group(weight, shape[0]), 1, 2).reshape(shape)
    if _is_conv(node):
        return weight.reshape(shape)
    return np.swapaxes(weight.reshape(shape[0], shape[2], shape[1]), 1, 2)


def output_rows_shape(shape: tuple[int, ...], node: ir.Node) -> tuple[int, int, int]:
    """The shape of `output_rows` for a weight of `shape`."""
    groups = group_of(node)
    if _is_conv(node):
        return groups, shape[0] // groups, prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return groups, shape[1], shape[0] // groups * prod(shape[2:])
    return prod(shape[:-2]), shape[-1], shape[-2]


def from_output_rows(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """The weight of `shape` whose `output_rows` are `rows`."""
    if node.op_type == "ConvTranspose":
        groups = len(rows)
        rows = np.swapaxes(rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:]), 1, 2)
    elif not _is_conv(node):
        rows = np.swapaxes(rows, 1, 2)
    return np.ascontiguousarray(rows.reshape(shape))


def channel_rows(weight: Array, node: ir.Node) -> Array:
    """`weight` as [channels, rest], with a row for each of AMCT's scales."""
    if "Conv" not in node.op_type:
        return weight.reshape(1, -1)
    rows = output_rows(weight, node)
    return rows.reshape(-1, rows.shape[2])


def from_channel_rows(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """The weight of `shape` whose `channel_rows` are `rows`."""
    if "Conv" not in node.op_type:
        return rows.reshape(shape)
    return from_output_rows(rows.reshape(output_rows_shape(shape, node)), shape, node)


def kernel_rows(weight: Array, node: ir.Node) -> Array:
    """`weight` as [scales, rest], with a row for each scale of a Q/DQ model and the inputs as kernels read them."""
    rows = output_rows(weight, node)
    if _is_conv(node):
        rows = _swapped(rows, weight.shape[1])
    return join_groups(rows, node)


def from_kernel_rows(rows: Array, shape: tuple[int, ...], node: ir.Node) -> Array:
    """The weight of `shape` whose `kernel_rows` are `rows`."""
    rows = split_groups(rows, output_rows_shape(shape, node), node)
    if _is_conv(node):
        rows = _swapped(rows, prod(shape[2:]))
    return from_output_rows(rows, shape, node)


def join_groups(rows: Array, node: ir.Node) -> Array:
    """`rows` [groups, outputs, inputs] as [scales, rest]: only a Conv has a scale for each output of each group."""
    if _is_conv(node):
        return rows.reshape(-1, rows.shape[2])
    return np.swapaxes(rows, 0, 1).reshape(rows.shape[1], -1)


def split_groups(rows: Array, shape: tuple[int, int, int], node: ir.Node) -> Array:
    """The rows of `shape` [groups, outputs, inputs] of which `join_groups` makes `rows`."""
    if _is_conv(node):
        return rows.reshape(shape)
    groups, outputs, inputs = shape
    return np.swapaxes(rows.reshape(outputs, groups, inputs), 0, 1)


def row_scales(scale: Array, shape: tuple[int, int, int]) -> Array:
    """[groups, outputs]: the scale of each of the `output_rows` of `shape`.

    scale: one for each output of each group, one for an output of all groups, or one for all.
    """
    rows = shape[:2]
    return scale.reshape(rows) if scale.size == prod(rows) else np.broadcast_to(scale, rows)


def weight_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight of `rank` dimensions with the scales of a Q/DQ model."""
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


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

    params: one scale for each of the `channel_rows`, or one for all. A large weight is computed when it is asked for.
    Rounding to float16 moves a weight by a quarter of a step at most, so that it gives the same integer again.
    """

    shape = shape_of(weight)

    def compute() -> Array:
        rows = channel_rows(array_of(weight), node)
        rounded = round_to_levels(rows, params, levels) if levels else fake_quantize(rows, params)
        return from_channel_rows(rounded, shape, node)

    return deferred(compute, weight.dtype.numpy(), shape)


def input_channel_maxima(weight: Array, node: ir.Node) -> Array:
    """float32[Cin]: the largest magnitude of `weight` for each channel of the layer's input (amct_formats.md: DMQ)."""
    view, axes = _by_input_channel(weight, node)
    others = tuple(axis for axis in range(view.ndim) if axis not in axes)
    maxima: Array = np.maximum(view.max(axis=others), -view.min(axis=others)).reshape(-1)
    return maxima


def scaled_by_input_channel(weight: ir.TensorProtocol, factors: Array, node: ir.Node) -> ir.TensorProtocol:
    """The weight with what reads input channel c multiplied by factors[c]; `factors` is float32[Cin].

    A large weight is computed when it is asked for.
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
        return _by_group(weight, group_of(node)), (0, 2)
    return weight, ((0,) if node.op_type == "ConvTranspose" else (weight.ndim - 2,))


def _is_conv(node: ir.Node) -> bool:
    """Whether a node is a Conv, of floats or of integers, and not a ConvTranspose."""
    return node.op_type in ("Conv", "QLinearConv", "ConvInteger")


def _swapped(rows: Array, size: int) -> Array:
    """Each of `rows`, seen as a matrix of `size` rows, transposed: channels and positions of a kernel change places."""
    return np.swapaxes(rows.reshape(*rows.shape[:2], size, -1), 2, 3).reshape(rows.shape)


def _by_group(weight: Array, groups: int) -> Array:
    """`weight` with its first axis split into the groups and what is in each."""
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
