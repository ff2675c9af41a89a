"""Take the QuantizeLinear and DequantizeLinear nodes of activations out of a model; a part of `read_qdq`.

A pair of one per-tensor int8 or uint8 grid goes away where only quantized layers read it, since they quantize their
input themselves. For other readers an `Identity` with the name of the DequantizeLinear marks the place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, name_of, producer_of
from amct_onnx.graph.constants import ValueNames, add_initializer, remove_unused
from amct_onnx.graph.qdq_grids import (
    activation_params,
    clip_bounds,
    commutes,
    grid_of,
    is_dequantize,
    is_quantize,
)
from amct_onnx.numerics.grid import QParams
from amct_onnx.values.layers import Kept, QuantizedLayer, QuantizedOutput, QuantizedTensor


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model held, each part in graph order.

    `origins`: the original nodes behind each marker. `rescaled`: the Mul of columns behind each layer that has one.
    """

    layers: tuple[QuantizedLayer, ...]
    tensors: tuple[QuantizedTensor, ...]
    outputs: tuple[QuantizedOutput, ...]
    kept: tuple[Kept, ...]
    origins: dict[str, tuple[str, ...]]
    rescaled: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """`low` and `high` are float bounds of a Clip between the two nodes that narrows the range, None without one."""

    quantize: ir.Node
    params: QParams
    low: np.float32 | None = None
    high: np.float32 | None = None


def read_pairs(model: ir.Model, layers: Mapping[str, QuantizedLayer]) -> Reading:
    """Take the pairs of the main graph out of `model`, in place. `layers` are those that will be quantized."""
    return _Reader(model, layers).run()


class _Reader:
    def __init__(self, model: ir.Model, layers: Mapping[str, QuantizedLayer]) -> None:
        self._model, self._graph, self._names = model, model.graph, ValueNames(model)
        self._layers = layers
        self._clips: dict[tuple[ir.Value, bytes, bytes], ir.Value] = {}
        self._markers: dict[tuple[ir.Value, bytes, bytes], ir.Value] = {}
        self._tensors: list[QuantizedTensor] = []
        self._origins: dict[str, tuple[str, ...]] = {}
        self._reasons: dict[str, str] = {}

    def run(self) -> Reading:
        for node in list(self._graph):
            if is_dequantize(node):
                pair = self._pair(node)
                if isinstance(pair, str):
                    self._reasons[name_of(node)] = pair
                else:
                    self._take(node, pair)
        outputs = [output for node in self._graph if (output := self._output(node)) is not None]
        return Reading(
            layers=tuple(self._layers.values()),
            tensors=tuple(self._tensors),
            outputs=tuple(outputs),
            kept=self._kept({output.node for output in outputs}),
            origins=self._origins,
        )

    def _pair(self, dequantize: ir.Node) -> _Pair | str:
        """The partner and the factors of a DequantizeLinear, or why it stays."""
        node, between = _origin(dequantize)
        if not is_quantize(node):
            return "its integers do not come from a QuantizeLinear"
        source = node.inputs[0]
        if source is None or source.dtype not in (None, ir.DataType.FLOAT):
            return "what is quantized is not float32"
        first, second = grid_of(node), grid_of(dequantize)
        if isinstance(first, str):
            return first
        if isinstance(second, str):
            return second
        if not first.same_as(second):
            return "QuantizeLinear and DequantizeLinear differ in scale, zero point or type"
        params = activation_params(second)
        if isinstance(params, str):
            return params
        limits = np.iinfo(second.dtype)
        full = float(limits.min), float(limits.max)
        narrowed = _narrowed(between, full, ir.DataType.from_numpy(second.dtype))
        if isinstance(narrowed, str):
            return narrowed
        if narrowed == full:
            return _Pair(quantize=node, params=params)
        low, high = (np.float32(np.float32(bound - float(second.zero_point)) * second.scale) for bound in narrowed)
        return _Pair(quantize=node, params=params, low=low, high=high)

    def _take(self, dequantize: ir.Node, pair: _Pair) -> None:
        """Let the readers of a pair that quantize by themselves read its source; mark the place for the others."""
        old = dequantize.outputs[0]
        absorbing = [use for use in old.uses() if self._absorbs(use.node, use.idx, pair.params)]
        source = self._source(pair)
        for use in absorbing:
            use.node.replace_input_with(use.idx, source)
        if old.uses() or old.is_graph_output():
            self._mark(dequantize, source, pair)
        sweep(old)

    def _mark(self, dequantize: ir.Node, source: ir.Value, pair: _Pair) -> None:
        """Let the readers of `dequantize` read a marker; one serves all the DequantizeLinear of a pair (PT2E)."""
        old, name = dequantize.outputs[0], name_of(dequantize)
        key = (source, pair.params.scale.tobytes(), pair.params.zero_point.tobytes())
        if key in self._markers and not old.is_graph_output():
            old.replace_all_uses_with(self._markers[key])
            return
        marker = ir.node("Identity", [source], name=name, outputs=[ir.val(None, type=source.type)])
        new = marker.outputs[0]
        self._graph.insert_before(dequantize, marker)
        new.name, old.name = old.name, None
        new.type, new.shape = old.type or source.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._markers[key] = new
        self._tensors.append(QuantizedTensor(node=name, input_index=0, activation=pair.params, marker=True))
        self._origins[name] = (name_of(pair.quantize), name)

    def _absorbs(self, node: ir.Node, index: int, params: QParams) -> bool:
        """Whether `node`, or all that read its outputs, quantize what they read on the same grid."""
        waiting = [(node, index)]
        seen = set(waiting)
        while waiting:
            node, index = waiting.pop()
            if node.graph is not self._graph:
                return False
            layer = self._layers.get(name_of(node))
            if layer is not None and index < 2:
                own = layer.activation if index == 0 else layer.second
                if own is None or not _same(own, params):
                    return False
            elif is_quantize(node) and index == 0:
                wanted = activation_params(grid_of(node))
                if isinstance(wanted, str) or not _same(wanted, params):
                    return False
            else:
                uses = [(use.node, use.idx) for value in node.outputs for use in value.uses()]
                if not commutes(node, index) or not uses or any(value.is_graph_output() for value in node.outputs):
                    return False
                waiting += [use for use in uses if use not in seen]
                seen.update(uses)
        return True

    def _source(self, pair: _Pair) -> ir.Value:
        """What the pair quantizes; a narrow range is clipped in float, where the bounds are on the grid."""
        x = input_of(pair.quantize, 0)
        if pair.low is None or pair.high is None:
            return x
        key = (x, pair.low.tobytes(), pair.high.tobytes())
        if key not in self._clips:
            name = f"{pair.quantize.name}.clip"
            bounds = [
                add_initializer(self._graph, f"{name}.{kind}", bound, names=self._names)
                for kind, bound in (("min", pair.low), ("max", pair.high))
            ]
            output = ir.val(self._names.new(f"{name}.output0"), type=x.type, shape=x.shape)
            clip = ir.node("Clip", [x, *bounds], name=self._names.node(name), outputs=[output])
            self._graph.insert_before(pair.quantize, clip)
            self._clips[key] = output
        return self._clips[key]

    def _output(self, node: ir.Node) -> QuantizedOutput | None:
        """An int8 output of the model."""
        if not is_quantize(node) or not node.outputs[0].is_graph_output() or node.outputs[0].uses():
            return None
        params = _output_params(node)
        if isinstance(params, str):
            self._reasons[name_of(node)] = params
            return None
        return QuantizedOutput(node=name_of(node), activation=params)

    def _kept(self, outputs: set[str]) -> tuple[Kept, ...]:
        """What is left: the reason of a DequantizeLinear is also that of the QuantizeLinear before it."""
        kept = []
        for node in self._model.graph.all_nodes():
            name = name_of(node)
            reason = self._reasons.get(name)
            if node.graph is not self._graph and (is_quantize(node) or is_dequantize(node)):
                reason = "it is inside a subgraph"
            elif reason is None and is_quantize(node) and name not in outputs:
                readers = [use.node for use in node.outputs[0].uses()]
                if readers and all(is_dequantize(reader) for reader in readers):
                    continue
                types = ", ".join(sorted({reader.op_type for reader in readers})) or "nothing"
                reason = f"its integers are read by {types}"
            if reason is not None:
                kept.append(Kept(name=name, op_type=node.op_type, reason=reason))
        return tuple(kept)


def _output_params(quantize: ir.Node) -> QParams | str:
    """The factors of an int8 output of the model, or why it stays as it is."""
    grid, source = grid_of(quantize), quantize.inputs[0]
    params = activation_params(grid)
    if isinstance(grid, str) or isinstance(params, str):
        return params
    if grid.dtype != np.dtype(np.int8):
        return f"it makes a {grid.dtype} output, and an AscendQuant makes int8"
    if source is None or source.dtype not in (None, ir.DataType.FLOAT):
        return "what is quantized is not float32"
    return params


def _origin(dequantize: ir.Node) -> tuple[ir.Node, list[ir.Node]]:
    """The node that makes the integers of a DequantizeLinear, and the Clip and Cast nodes between them, in order."""
    node, between = dequantize, list[ir.Node]()
    while (producer := producer_of(node, 0)) is not None:
        node = producer
        if not is_op(node, "Clip", "Cast", "Identity"):
            break
        between.insert(0, node)
    return node, between


def _narrowed(between: list[ir.Node], limits: tuple[float, float], dtype: ir.DataType) -> tuple[float, float] | str:
    """What is left of the range of the integers; PyTorch writes Casts that change nothing, Brevitas Clips."""
    low, high = limits
    for node in between:
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) != int(dtype):
            return "a Cast changes the type of its integers"
        if node.op_type == "Clip":
            bounds = clip_bounds(node)
            if bounds is None or bounds[0] > bounds[1]:
                return "the Clip of its integers has no constant range"
            low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in (low, high))
    return low, high


def _same(a: QParams, b: QParams) -> bool:
    return np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point)


# What only feeds a quantization that is gone.
_FEEDERS = (
    *("Constant", "ConstantOfShape", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("Cast", "Clip"),
)


def sweep(value: ir.Value | None) -> None:
    """Remove what makes `value` if nobody reads it, as far as it is quantization or a constant that fed it."""
    remove_unused((value,), lambda node: is_quantize(node) or is_dequantize(node) or is_op(node, *_FEEDERS))
