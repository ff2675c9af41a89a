"""Read the grids of QuantizeLinear and DequantizeLinear nodes, and the constants that were stored as integers.

Both operators of the default domain and of com.microsoft are read. The real value of an integer is
`(q - zero_point) * scale`; `q = saturate(round_half_even(x / scale) + zero_point)` (ONNX operator documentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, is_standard, optional_input, producer_of
from amct_onnx.graph.constants import constant_value
from amct_onnx.numerics.arrays import Array, Floats, Int32s, Int64s
from amct_onnx.numerics.grid import QParams, QSpec

# Operators that move, repeat or drop elements of input 0, or choose among them by size.
_COMMUTING = frozenset(
    {
        *("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
        *("Slice", "Split", "Gather", "Expand", "Tile", "Relu", "MaxPool", "Pad"),
    }
)
_RUN_TIME = "is computed at run time"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of one node: scale float32 and zero point int32, both [] (axis None) or [C] along `axis`."""

    scale: Floats
    zero_point: Int32s
    dtype: np.dtype[Any]
    axis: int | None

    def same_as(self, other: Grid) -> bool:
        """Whether both state the same integers of the same type."""
        return (
            self.dtype == other.dtype
            and (self.axis is None) == (other.axis is None)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass(frozen=True, kw_only=True)
class GridConstant:
    """A constant that came through a DequantizeLinear: `steps` (q - zero_point, int64) times `scale` (float32).

    `steps` has the shape of the constant, and so has `scale` where it is not said to have one number a column.
    """

    steps: Int64s
    scale: Floats

    def values(self) -> Floats:
        """The float32 values, rounded as the operator rounds them."""
        with np.errstate(over="ignore"):
            return self.steps.astype(np.float32) * self.scale


def is_quantize(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether there is a node, and it is a QuantizeLinear of either domain."""
    return node is not None and node.op_type == "QuantizeLinear" and node.domain in _DOMAINS


def is_dequantize(node: ir.Node | None) -> TypeGuard[ir.Node]:
    """Whether there is a node, and it is a DequantizeLinear of either domain."""
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in _DOMAINS


_DOMAINS = ("", "com.microsoft")


def grid_of(node: ir.Node) -> Grid | str:
    """The grid of a QuantizeLinear or DequantizeLinear, or why it cannot be used: a clause about "its quantization"."""
    if node.attributes.get_int("block_size", 0):
        return "its quantization is in blocks"
    scale = _known(node.inputs[1])
    if scale is None:
        return f"the scale of its quantization {_RUN_TIME}"
    if scale.dtype != np.float32:
        return f"the scale of its quantization is {scale.dtype}, and only float32 is supported"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return "a scale of its quantization is not a positive number"
    given = optional_input(node, 2)
    zero_point = _known(given)
    if given is not None and zero_point is None:
        return f"the zero point of its quantization {_RUN_TIME}"
    dtype = zero_point.dtype if zero_point is not None else _implied_dtype(node)
    if dtype is None:
        return "the type of its integers is unknown"
    if not _is_integer(dtype):
        return f"it is quantized to {dtype}"
    zeros = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    if scale.size == 1 and zeros.size == 1:
        return Grid(scale=scale.reshape(()), zero_point=zeros.reshape(()), dtype=dtype, axis=None)
    if scale.ndim != 1 or zeros.shape != scale.shape:
        return "scale and zero point of its quantization differ in shape"
    return Grid(scale=scale, zero_point=zeros, dtype=dtype, axis=node.attributes.get_int("axis", 1))


def _known(value: ir.Value | None) -> Array | None:
    """The array behind a value, also of a ConstantOfShape or a Cast of integers: PyTorch makes zero points of them.

    And of a Split that takes apart what a Concat has repeated (`passes/share_weights.py`).
    """
    array = constant_value(value)
    node = value.producer() if value is not None else None
    if array is not None:
        return array
    if is_op(node, "ConstantOfShape"):
        shape = constant_value(node.inputs[0])
        fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        small = shape is not None and np.prod(shape, dtype=np.float64) <= _LARGEST_FILL
        return np.full([int(n) for n in shape], fill.reshape(())) if shape is not None and small else None
    if is_op(node, "Split") and is_op(repeat := producer_of(node, 0), "Concat") and len(set(repeat.inputs)) == 1:
        parts = constant_value(optional_input(node, 1))
        return _known(repeat.inputs[0]) if parts is not None and len(set(parts)) == 1 else None
    if is_op(node, "Cast"):
        source = _known(node.inputs[0])
        target = ir.DataType(node.attributes.get_int("to", 0))
        if source is None or not _is_integer(source.dtype) or not target.is_integer():
            return None
        cast = source.astype(target.numpy())
        return cast if np.array_equal(cast.astype(np.int64), source.astype(np.int64)) else None
    return None


_LARGEST_FILL = 1 << 20  # elements; a zero point has one for each channel


def _implied_dtype(node: ir.Node) -> np.dtype[Any] | None:
    """The type of the integers of a node without a zero point."""
    if is_quantize(node):
        return ir.DataType(node.attributes.get_int("output_dtype", 0) or int(ir.DataType.UINT8)).numpy()
    source = input_of(node, 0)
    array = constant_value(source)
    if array is not None:
        return array.dtype
    producer = source.producer()
    if is_quantize(producer):
        grid = grid_of(producer)
        return None if isinstance(grid, str) else grid.dtype
    return source.dtype.numpy() if source.dtype is not None else None


def _is_integer(dtype: np.dtype[Any]) -> bool:
    """NumPy's integers, and those of 2 and 4 bits, which NumPy does not count among them."""
    return dtype.kind in "iu" or str(dtype) in ("int4", "uint4", "int2", "uint2")


def commutes(node: ir.Node, index: int = 0) -> bool:
    """Whether quantizing before and after `node` gives the same integers; it reads the tensor as input `index`."""
    if not is_standard(node) or node.op_type not in _COMMUTING or index != 0:
        return False
    if node.op_type == "MaxPool":  # of equal integers, another one may be the largest float
        return len(node.outputs) == 1
    if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
        fill = optional_input(node, 2)
        array = constant_value(fill)
        return fill is None or (array is not None and not array.any())
    return True


def activation_params(grid: Grid | str) -> QParams | str:
    """The int8 factors of a per-tensor grid: uint8 moves by 128, with its zero point. Or why there are none.

    `grid` is what `grid_of` gave, which may be a reason already.
    """
    if isinstance(grid, str):
        return grid
    if grid.axis is not None:
        return "its activation is quantized per channel"
    if grid.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        return f"its activation is quantized to {grid.dtype}, and only int8 and uint8 are supported"
    with np.errstate(over="ignore", divide="ignore"):
        if not np.isfinite(np.float32(1) / grid.scale):
            return f"the scale {float(grid.scale):.3g} of its activation is too small for float32"
    shift = 128 if grid.dtype == np.dtype(np.uint8) else 0
    return QParams(scale=grid.scale, zero_point=grid.zero_point - shift, spec=QSpec(symmetric=False))


def grid_constant(value: ir.Value | None) -> GridConstant | str | None:
    """The constant behind `value` if it came through a DequantizeLinear, perhaps moved since then.

    None when there is no such node or its input is no constant; a reason when its grid cannot be read.
    """
    moves = []
    while is_op(node := value.producer() if value is not None else None, *_CONSTANT_MOVES):
        moves.append(node)
        value = node.inputs[0]
    if not is_dequantize(node):
        return None
    integers = _integers(node.inputs[0])
    if integers is None or isinstance(integers, str):
        return integers
    grid = grid_of(node)
    if isinstance(grid, str):
        return grid
    zero_point, scale = _along(grid, grid.zero_point, integers.ndim), _along(grid, grid.scale, integers.ndim)
    try:
        full = np.broadcast_to(scale, integers.shape)
        steps = integers - np.broadcast_to(zero_point, integers.shape)
    except ValueError:
        return "the scales of its quantization do not fit its shape"
    all_steps, all_scales = _all_moved(steps, moves), _all_moved(full, moves)
    return None if all_steps is None or all_scales is None else GridConstant(steps=all_steps, scale=all_scales)


def _along(grid: Grid, array: Array, rank: int) -> Array:
    if grid.axis is None or not -rank <= grid.axis < rank:
        return array
    shape = [1] * rank
    shape[grid.axis] = array.size
    return array.reshape(shape)


def _integers(value: ir.Value | None) -> Int64s | str | None:
    """Constant integers: stored as such, or those of a QuantizeLinear of a constant, clipped and moved since then."""
    moves: list[ir.Node] = []
    while (array := _known(value)) is None:
        node = value.producer() if value is not None else None
        if is_quantize(node):
            integers = _quantized_constant(node)
            break
        if not is_op(node, "Clip", *_CONSTANT_MOVES):
            return None
        moves.append(node)
        value = node.inputs[0]
    else:
        integers = array.astype(np.int64) if _is_integer(array.dtype) else f"its integers are {array.dtype}"
    return integers if integers is None or isinstance(integers, str) else _all_moved(integers, moves)


def _quantized_constant(node: ir.Node) -> Int64s | str | None:
    x = _moved_constant(node.inputs[0])
    if x is None:
        return None
    grid = grid_of(node)
    if isinstance(grid, str):
        return grid
    if x.dtype != np.float32 or not np.isfinite(x).all():
        return f"what it quantizes is {x.dtype}" if x.dtype != np.float32 else "what it quantizes holds NaN or Inf"
    limits = np.iinfo(grid.dtype) if grid.dtype.kind in "iu" else None
    if limits is None:
        return f"it is quantized to {grid.dtype} by the model itself"
    try:
        with np.errstate(over="ignore"):  # a float32 quotient, as runtimes compute it
            q = np.rint(x / _along(grid, grid.scale, x.ndim)) + _along(grid, grid.zero_point, x.ndim)
    except ValueError:
        return "the scales of its quantization do not fit its shape"
    integers: Int64s = np.clip(q, limits.min, limits.max).astype(np.int64)
    return integers


def _moved_constant(value: ir.Value | None) -> Array | None:
    moves = []
    while (array := constant_value(value)) is None:
        node = value.producer() if value is not None else None
        if not is_op(node, *_CONSTANT_MOVES):
            return None
        moves.append(node)
        value = node.inputs[0]
    return _all_moved(array, moves)


def _all_moved(array: Array, moves: Sequence[ir.Node]) -> Array | None:
    """`array` after a chain of nodes that clip or move elements, the last of which comes first; None if unknown."""
    result: Array | None = array
    for node in reversed(moves):
        if result is None:
            return None
        if node.op_type == "Clip":
            bounds = clip_bounds(node)
            result = None if bounds is None else np.clip(result, *bounds)
        else:
            result = moved(result, node)
    return result


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """The constant bounds of a Clip, infinite where there is none; None if they are not constant."""
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = optional_input(node, index)
        bound = constant_value(value)
        if value is not None and (bound is None or bound.size != 1):
            return None
        bounds.append(default if bound is None else float(bound.reshape(())))
    return bounds[0], bounds[1]


_CONSTANT_MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")


def moved(array: Array, node: ir.Node) -> Array | None:
    """`array` after Identity, Transpose, Reshape, Flatten, Squeeze or Unsqueeze; None if that cannot be told."""
    try:
        return _move(array, node)
    except (ValueError, IndexError):  # operands that do not fit: the model is invalid, and a runtime will say so
        return None


def _move(array: Array, node: ir.Node) -> Array | None:
    if node.op_type == "Identity":
        return array
    if node.op_type == "Transpose":
        turned: Array = array.transpose(node.attributes.get_ints("perm"))
        return turned
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1)
        axis = axis + array.ndim if axis < 0 else axis
        return array.reshape(int(np.prod(array.shape[:axis], dtype=np.int64)), -1)
    given = optional_input(node, 1)
    operand = constant_value(given)
    if node.op_type == "Reshape":
        allow_zero = node.attributes.get_int("allowzero", 0)
        if operand is None or allow_zero:
            return None
        shape = [array.shape[i] if n == 0 and i < array.ndim else int(n) for i, n in enumerate(operand)]
        return array.reshape(shape)
    axes = node.attributes.get_ints("axes") if operand is None else [int(n) for n in operand]
    if given is not None and operand is None:
        return None
    if node.op_type == "Squeeze":
        return np.squeeze(array) if axes is None else np.squeeze(array, tuple(axes))
    return None if axes is None else np.expand_dims(array, tuple(axes))
