"""The columns that a layer multiplies its weight with: im2col, for a sample of the output positions.

A layer computes y = W x for each output position, where x holds the K inputs that the position depends on, in the
order of a row of the weight: input channels, then kernel positions. Groups have columns of their own.

Two bounds keep time and memory small. Of a batch with many output positions only some are taken, spread evenly by the
golden ratio, so that the choice depends on shapes alone and never falls in step with the width of an image. And columns
longer than `LayerColumns.block` are cut into blocks of that length (the last one filled up with zeros), each with a
Gram matrix of its own: what is lost are covariances between inputs of different blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from amct_onnx.numerics.arrays import Bools, Floats, Int64s
from amct_onnx.numerics.blocks import row_parts
from amct_onnx.numerics.settings import AdaRound

_GOLDEN = (5**0.5 - 1) / 2
_CHUNK = 1 << 21  # elements of one piece of columns, so that temporary arrays stay around 16 MiB


@dataclass(frozen=True, kw_only=True)
class LayerColumns:
    """Second moments of the columns that a layer multiplies its weight with.

    weight: the initializer of the calibration model that holds the float weight. op_type: Conv, ConvTranspose, Gemm or
    MatMul. groups: sets of columns with weights of their own. block: length of a block of a column. rounding: how the
    weight will be rounded. The rest are the attributes of a convolution with their defaults filled in; empty for a Gemm
    or MatMul.
    """

    weight: str
    op_type: str
    groups: int
    block: int
    rounding: AdaRound = field(default_factory=AdaRound)
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("kernel", "strides", "dilations", "pads", "output_padding", "output_shape"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if isinstance(self.rounding, Mapping):
            object.__setattr__(self, "rounding", AdaRound(**self.rounding))


def sample_columns(
    x: Floats, task: LayerColumns, limit: int, *, start: int = 0, channels_last: bool = False
) -> Iterator[Floats]:
    """Pieces float32[U, B, n] of at most `limit` columns of the input `x`, U blocks of B = task.block entries.

    start: how many columns of like tensors were taken before, so that other places are taken now. channels_last: the
    columns of a Conv are in the order of `graph/weights.kernel_rows`: kernel positions, then input channels.

    Raises ValueError when `x` does not have the shape that the layer reads.
    """
    gather = _matrix_columns if task.op_type in ("Gemm", "MatMul") else _convolution_columns
    area = prod(task.kernel) if channels_last and task.op_type == "Conv" else 1
    for found in gather(x, task, limit, start):
        columns = found
        groups, length, count = columns.shape
        if area > 1:
            columns = columns.reshape(groups, -1, area, count).swapaxes(1, 2).reshape(groups, length, count)
        blocks = -(-length // task.block)
        if blocks * task.block != length:
            filled = np.zeros((groups, blocks * task.block, count), np.float32)
            filled[:, :length] = columns
            columns = filled
        yield columns.reshape(groups * blocks, task.block, count)


def spread_evenly(total: int, limit: int, start: int = 0) -> Int64s:
    """At most `limit` of 0..total-1, ascending: all, or a golden-ratio sequence behind its first `start` numbers."""
    if total <= limit:
        return np.arange(total)
    return np.unique((np.arange(start + 1, start + limit + 1) * _GOLDEN % 1.0 * total).astype(np.int64))


def _matrix_columns(x: Floats, task: LayerColumns, limit: int, start: int) -> Iterator[Floats]:
    """Rows of a Gemm or MatMul's first operand. A weight [G, K, N] with G > 1 has one group a matrix."""
    rows = x[None] if x.ndim == 1 else x
    length, groups = rows.shape[-1], task.groups
    if groups > 1:
        shape = np.broadcast_shapes(rows.shape[:-2], (groups,))
        rows = np.broadcast_to(rows, (*shape, *rows.shape[-2:]))
        if shape[-1] != groups:
            raise ValueError(f"a tensor of shape {list(x.shape)} does not go with {groups} matrices")
        rows = np.moveaxis(rows, -3, 0)
    rows = rows.reshape(groups, -1, length)
    chosen = spread_evenly(rows.shape[1], limit, start)
    for part in row_parts(len(chosen), groups * length, _CHUNK):
        yield np.ascontiguousarray(rows[:, chosen[part]].transpose(0, 2, 1))


def _convolution_columns(x: Floats, task: LayerColumns, limit: int, start: int) -> Iterator[Floats]:
    rank = len(task.kernel)
    if x.ndim != rank + 2 or x.shape[1] % task.groups:
        raise ValueError(f"a tensor of shape {list(x.shape)} is no input of a {rank}-D {task.op_type}")
    samples, channels, *sizes = x.shape
    outputs, begins = output_geometry(tuple(sizes), task)
    flat = x.reshape(samples, channels, -1)
    chosen = spread_evenly(samples * prod(outputs), limit, start)
    for part in row_parts(len(chosen), channels * prod(task.kernel), _CHUNK):
        sample, *position = np.unravel_index(chosen[part], (samples, *outputs))
        index, inside = _input_index(position, begins, tuple(sizes), task)
        columns = flat[sample[:, None], :, index]  # [n, kernel positions, channels]
        columns[~inside] = 0
        yield np.ascontiguousarray(columns.transpose(2, 1, 0)).reshape(task.groups, -1, len(sample))


def _input_index(
    position: list[Int64s], begins: tuple[int, ...], sizes: tuple[int, ...], task: LayerColumns
) -> tuple[Int64s, Bools]:
    """For output positions (n of them) and all kernel positions: index of the input in its flattened image, [n, k],
    and whether it lies within."""
    count, area = len(position[0]), prod(task.kernel)
    index = np.zeros((count, area), np.int64)
    inside = np.ones((count, area), np.bool_)
    taps = np.unravel_index(np.arange(area), task.kernel)
    for axis, size in enumerate(sizes):
        stride, offset = task.strides[axis], taps[axis] * task.dilations[axis]
        if task.op_type == "Conv":
            place = position[axis][:, None] * stride - begins[axis] + offset[None]
        else:
            place = position[axis][:, None] + begins[axis] - offset[None]
            inside &= place % stride == 0
            place //= stride
        inside &= (place >= 0) & (place < size)
        index = index * size + np.clip(place, 0, max(size - 1, 0))
    return index, inside


def output_geometry(sizes: tuple[int, ...], task: LayerColumns) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Output size and padding at the beginning of each spatial axis, as ONNX defines them for both convolutions."""
    rank = len(sizes)
    outputs, begins = [], []
    for axis, size in enumerate(sizes):
        stride, reach = task.strides[axis], task.dilations[axis] * (task.kernel[axis] - 1) + 1
        begin, end = task.pads[axis], task.pads[rank + axis]
        if task.op_type == "Conv":
            output, begin = _convolved(size, stride, reach, begin, end, task.auto_pad)
        else:
            wanted = task.output_shape[axis] if task.output_shape else None
            full = stride * (size - 1) + task.output_padding[axis] + reach
            output, begin = _transposed(full, size * stride, begin, end, task.auto_pad, wanted)
        outputs.append(max(output, 0))
        begins.append(begin)
    return tuple(outputs), tuple(begins)


def _convolved(size: int, stride: int, reach: int, begin: int, end: int, auto_pad: str) -> tuple[int, int]:
    if auto_pad.startswith("SAME"):
        output = -(-size // stride)
        total = max((output - 1) * stride + reach - size, 0)
        return output, total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    if auto_pad == "VALID":
        begin = end = 0
    return (size + begin + end - reach) // stride + 1, begin


def _transposed(full: int, same: int, begin: int, end: int, auto_pad: str, wanted: int | None) -> tuple[int, int]:
    """`full` is the output size without padding, `same` that of auto_pad SAME, `wanted` that of output_shape."""
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = same
    if wanted is not None:
        total = max(full - wanted, 0)
        return wanted, total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
    if auto_pad == "VALID":
        begin = end = 0
    return full - begin - end, begin
