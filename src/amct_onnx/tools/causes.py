"""What is wrong with a layer that stands out: its weight, its bias, or the grid of what it makes, as a clause."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import is_op, optional_input
from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.correspondence import is_integer_result, weight_of
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.passes.fuse_batch_norm import fuse_batch_norm_into_conv
from amct_onnx.graph.qdq_grids import Grid, GridConstant, grid_constant, grid_of, is_dequantize
from amct_onnx.graph.weights import channel_rows
from amct_onnx.measure.tensor_errors import TensorErrors
from amct_onnx.numerics.arrays import Array, Doubles

_FAR = 12.0  # steps of its grid that an element may be off: rounding that is learnt goes some steps away
_LONELY = 8.0  # times as far as the elements of its row are off on average
_BAD_WEIGHT = 15.0  # dB
_OTHER_SIZE = 0.1  # of a weight, relative
_SMALL, _SEEN = 0.05, 4.0  # what tells the size of a row: a share of the largest one, or steps of its grid
_CUT, _COARSE = 0.75, 3.0  # share of the values that a grid covers, and times that it reaches beyond them
_SHARED = 4.0  # times less noise before the result is rounded


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weights:
    """Rows of output channels of a layer and of its `node` in the quantized model, float64[C, n]; `size`: by how much
    each row of the second is longer along the first."""

    node: ir.Node
    mine: Doubles
    theirs: Doubles
    size: Doubles


class Causes:
    """Looks at the constants of two models whose tensors were compared."""

    def __init__(self, floats: ir.Model, quantized: ir.Model) -> None:
        folded = floats.clone()
        fuse_batch_norm_into_conv(folded)
        self._floats, self._rivals = index_graph(folded), index_graph(quantized)
        self._apart = index_graph(floats)

    def element(self, errors: TensorErrors) -> str:
        """Which element of the weight of a layer is off by far more than rounding may do, "" where none is."""
        pair = self._rows(errors)
        step = None if pair is None else _steps(pair.node, pair.theirs)
        if pair is None or step is None:
            return ""
        off = np.abs(pair.theirs - pair.mine * pair.size[:, None]) / step
        mean = float(np.median(np.sqrt((off * off).mean(axis=1))))
        if off.max() <= max(_FAR, _LONELY * mean):
            return ""
        row, column = np.unravel_index(int(off.argmax()), off.shape)
        return f"an element of its weight is {off.max():.0f} steps off (output channel {row}, place {column} in it)"

    def weight(self, errors: TensorErrors) -> str:
        """What is wrong with the weight of a layer beside that of the float model, "" where nothing is."""
        pair = self._rows(errors)
        if pair is None:
            return ""
        if not np.isfinite(pair.theirs).all():
            return "its weight holds NaN or Inf"
        if not pair.theirs.any() and pair.mine.any():
            return "its weight is zero"
        signal = float(np.square(pair.theirs).sum())
        noise = float(np.square(pair.theirs - pair.mine * pair.size[:, None]).sum())
        if noise > signal / 10 ** (_BAD_WEIGHT / 10):
            return (
                f"its weight is another one ({10 * np.log10(max(signal, 1e-30) / noise):.1f} dB beside the float one)"
            )
        largest = np.abs(pair.mine).max(axis=1)
        step = _steps(pair.node, pair.theirs)
        known = largest > (_SMALL * largest.max() if step is None else _SEEN * step.ravel())
        strange = known & (np.abs(pair.size - 1) > _OTHER_SIZE)
        if errors.scaled or not strange.any():
            return ""
        if strange.all() and np.ptp(pair.size) < _OTHER_SIZE * abs(float(pair.size.mean())):
            return f"its weight is {pair.size.mean():.3g} times as large"
        row = int((strange * np.abs(pair.size - 1)).argmax())
        count = int(strange.sum())
        channels = "output channel of its weight has" if count == 1 else "output channels of its weight have"
        return f"{count} {channels} another size: {row} is {pair.size[row]:.3g} times as large"

    def _rows(self, errors: TensorErrors) -> _Weights | None:
        """The weights of both layers; None where they are not known as floats, or are no weights of one shape."""
        mine, theirs = self._nodes(errors)
        if mine is None or theirs is None or errors.pair.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        one, two = weight_of(mine), weight_of(theirs)
        if one is None or two is None or one.shape != two.shape or one.ndim < 2 or not one.size:
            return None
        if one.dtype.kind != "f" or two.dtype.kind != "f" or not is_op(theirs, mine.op_type):
            return None
        if is_integer_result(theirs):
            return None
        rows = [np.asarray(channel_rows(array, mine), np.float64) for array in (one, two)]
        a, b = (array.reshape(array.shape[0], -1) for array in rows)
        size = (a * b).sum(axis=1) / np.maximum((a * a).sum(axis=1), 1e-30)
        return _Weights(node=theirs, mine=a, theirs=b, size=size)

    def bias(self, errors: TensorErrors) -> str:
        """What is wrong with the bias, "" where nothing is, or nothing can be known."""
        mine, theirs = self._nodes(errors)
        if mine is None or theirs is None or mine.op_type != theirs.op_type or errors.scaled:
            return ""
        if mine.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            return ""
        one, two = _constant(mine, 2), _constant(theirs, 2)
        if one is None or two is None or one.size != two.size:
            return ""
        off = float(np.abs(one.ravel() - two.ravel()).max(initial=0.0))
        return f"its bias is off by up to {off:.3g}" if off > _OTHER_SIZE * float(np.abs(one).max(initial=0.0)) else ""

    def rounding(self, errors: TensorErrors) -> str:
        """What is wrong with the grid of a result, "" where nothing is."""
        low, high = errors.span
        for name in errors.pair.rounded:
            ends = self._ends(name)
            if ends is None or high < low:
                continue
            bottom, top = ends
            if not errors.pair.exact and bottom >= 0:
                low = max(low, bottom)  # a Relu that the rounding does
            text = (
                f"the grid of {name} goes from {bottom:.3g} to {top:.3g}, and the values from {low:.3g} to {high:.3g}"
            )
            wanted, reach = max(high, 0.0) - min(low, 0.0), top - bottom
            if top < _CUT * high or (low < 0 and bottom > _CUT * low):
                return f"its result is cut off: {text}"
            if wanted > 0 and reach > _COARSE * wanted:
                return f"its result is rounded too coarsely: {text}"
        before = errors.unrounded
        if before is not None and errors.alone.ratio > _SHARED * before.ratio and errors.pair.rounded:
            name = errors.pair.rounded[0]
            return f"its result is right, and wrong after rounding: look at the scale and zero point of {name}"
        return ""

    @staticmethod
    def unknown(errors: TensorErrors) -> str:
        """Where to look, of a layer that stands out for no reason that is seen."""
        rounded = f" and the grid of {errors.pair.rounded[0]}" if errors.pair.rounded else ""
        what = "its weight, its bias" if errors.pair.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else "it"
        return f"what it reads is right, and its result is not: look at {what}{rounded}"

    def reach(self, errors: TensorErrors) -> float:
        """How far the grid of a result reaches beyond its values, as a ratio: 1 where it ends with them; NaN where
        that is not known."""
        low, high = errors.span
        ends = [self._ends(name) for name in errors.pair.rounded]
        known = [end for end in ends if end is not None]
        if not known or not np.isfinite(high - low) or max(high, -low) <= 0:
            return float("nan")
        ratios = [max(top / high if high > -low else bottom / low, 1e-9) for bottom, top in known]
        return float(max(ratios, key=lambda ratio: abs(np.log(ratio))))

    def _ends(self, name: str) -> tuple[float, float] | None:
        """The least and the greatest value that a DequantizeLinear can give; None where its grid is not one."""
        node = self._rivals.values[name].producer()
        grid = grid_of(node) if node is not None and is_dequantize(node) else ""
        if not isinstance(grid, Grid) or grid.axis is not None:
            return None
        limits = np.iinfo(grid.dtype)
        bottom, top = (float(grid.scale) * (int(end) - int(grid.zero_point)) for end in (limits.min, limits.max))
        return bottom, top

    def _nodes(self, errors: TensorErrors) -> tuple[ir.Node | None, ir.Node | None]:
        """The layer in both models; that of the float model with its batch normalization, where the other has it."""
        index = self._floats if len(errors.pair.nodes) > 1 else self._apart
        return index.nodes.get(errors.pair.layer), self._rivals.nodes.get(errors.pair.rival)


def _steps(node: ir.Node, rows: Doubles) -> Doubles | None:
    """The step of the grid of each row of a weight, [rows, 1]; None where it is not known."""
    value = optional_input(node, 1)
    found = grid_constant(value)
    if isinstance(found, GridConstant):
        scale = np.broadcast_to(found.scale, found.steps.shape)
        steps: Doubles = np.asarray(channel_rows(scale, node), np.float64).reshape(len(rows), -1).max(axis=1)
        return np.maximum(steps, 1e-30)[:, None]
    return None


def _constant(node: ir.Node, place: int) -> Array | None:
    value = optional_input(node, place)
    found = grid_constant(value)
    return found.values() if isinstance(found, GridConstant) else constant_value(value)
