"""What a report tells of each layer and tensor, from the solved grids, the statistics and what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import AmctError
from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.graph.weights import weight_axis
from amct_onnx.measure.kernel_times import KernelTime
from amct_onnx.measure.layer_errors import Closeness, LayerErrors
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.sample_noise import decibel
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.report.run_data import Histogram, LayerFacts, WeightRanges
from amct_onnx.targets.float_units import Unit, Units, operations_by_node
from amct_onnx.values.layers import Decision

_BINS, _CHANNELS = 64, 64  # that a chart shows

Times = Mapping[str, KernelTime]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What was measured of a model; None and empty where that was not possible. before, after: times of the nodes of
    the float and of the quantized model."""

    units: Units | None
    errors: LayerErrors | None
    before: Times
    after: Times


class LayerReader:
    """Reads what is known of the layers of `result`. places: the number on the map of each node."""

    def __init__(self, result: QuantizedModel, measured: Measured, places: Mapping[str, int]) -> None:
        self._result, self._measured, self._places = result, measured, places
        source, units, errors = result.calibration.source, measured.units, measured.errors
        model = source.model if units is None else units.model
        self._values, self._nodes = (
            index_graph(source.model).values,
            dict(index_graph(source.model, subgraphs=True).nodes),
        )
        self._nodes |= index_graph(model).nodes
        self._origins = source.origins or {}
        shapes = {} if errors is None else errors.shapes
        self._shapes, self._operations = shapes, operations_by_node(model, shapes) if shapes else {}
        self._units = {name: unit for unit in (units.units if units else ()) for name in unit.nodes}
        self._grids = {
            name: grid for unit in (units.units if units else ()) for name, grid in _grids(unit, self._nodes)
        }
        self._errors = {name: unit for unit in (errors.units if errors else ()) for name in unit.nodes}
        self._inputs = {unit.unit: unit.effect or 0.0 for unit in (errors.units if errors else ()) if not unit.nodes}
        self.tensors: dict[str, Histogram] = {}

    def layers(self) -> tuple[LayerFacts, ...]:
        """The facts of each decision, in its order; `tensors` is filled meanwhile."""
        found = [decision for decision in self._result.decisions if decision.layer in self._nodes]
        effects = {decision.layer: self._effect(decision.layer) for decision in found}
        total = sum(effect for effect in effects.values() if effect is not None)
        return tuple(self._layer(decision, effects[decision.layer], total) for decision in found)

    def _effect(self, name: str) -> float | None:
        """The effect of a node, with what it reads of tensors that no quantized node makes."""
        error = self._errors.get(name)
        if error is None or error.effect is None or error.nodes[0] != name:
            return None
        return error.effect + sum(self._inputs.get(unit, 0.0) for unit in error.reads)

    def _layer(self, decision: Decision, effect: float | None, total: float) -> LayerFacts:
        name, node = decision.layer, self._nodes[decision.layer]
        error, unit, measured = self._errors.get(name), self._units.get(name), self._measured
        source = self._origins.get(name, (name,))
        made = unit.last if unit is not None and unit.last else node.outputs[0].name or ""
        alone, together = (error.alone, error.together) if error is not None else (None, self._beside(made))
        before = [measured.before[one].seconds for one in dict.fromkeys((*source, name)) if one in measured.before]
        after = measured.after.get(name)
        return LayerFacts(
            name=name,
            op_type=node.op_type,
            node=self._places.get(name, -1),
            quantized=decision.quantized,
            reason=decision.reason,
            source=source,
            reads=self._told(value for value in node.inputs if value is not None),
            makes=self._told([self._values[made]] if made in self._values else []),
            weight=self._weight(name, as_layer(node)),
            alone=_decibels(alone),
            alone_cosine=alone.cosine if alone else None,
            together=_decibels(together),
            together_cosine=together.cosine if together else None,
            effect=effect,
            share=effect / total if effect is not None and total > 0 else None,
            from_weight=error.from_constants if error is not None else None,
            seconds_before=sum(before) if before else None,
            seconds_after=after.seconds if after is not None else None,
            kernels=after.kernels if after is not None else (),
            multiplications=self._operations.get(name, 0),
            shape=self._shapes.get(node.outputs[0].name or "", ()),
        )

    def _beside(self, tensor: str) -> Closeness | None:
        errors = self._measured.errors
        return errors.others.get(tensor) if errors is not None else None

    def _told(self, values: Iterable[ir.Value]) -> tuple[str, ...]:
        """The names of those tensors that have a histogram, which is kept."""
        found = []
        for value in values:
            name = value.name or ""
            if constant_tensor(value) is None and name not in self.tensors and name in self._values:
                try:
                    seen = self._result.calibration.statistic([self._values[name]])
                except AmctError:  # nobody has observed it
                    continue
                self.tensors[name] = told_histogram(seen, self._grids.get(name))
            if name in self.tensors:
                found.append(name)
        return tuple(dict.fromkeys(found))

    def _weight(self, name: str, layer: Layer | None) -> WeightRanges | None:
        if layer is None or 0 in layer.shape:
            return None
        grid, units = self._result.weights.get(name), self._measured.units
        rounded = units.constants.get(name, {}).get(1) if units is not None and name in self._units else None
        array = layer.array()
        axis = 0 if layer.weight_is_turned else weight_axis(layer.node, array.ndim)
        return told_weight(array, axis, rounded, grid, layer.output_channels)


def looked_at(result: QuantizedModel, model: ir.Model) -> tuple[str, ...]:
    """The tensors of nodes that stayed in float."""
    nodes = index_graph(model).nodes
    left = [nodes[one.layer] for one in result.decisions if not one.quantized and one.layer in nodes]
    return tuple(name_of(node.outputs[0]) for node in left if node.outputs and node.outputs[0].name)


def _grids(unit: Unit, nodes: Mapping[str, ir.Node]) -> Iterable[tuple[str, QParams]]:
    yield from unit.tensors.tensors.items()
    for (node, index), grid in unit.tensors.reads.items():
        value = nodes[node].inputs[index] if node in nodes and index < len(nodes[node].inputs) else None
        if value is not None and value.name:
            yield value.name, grid


def _decibels(close: Closeness | None) -> float | None:
    return None if close is None or close.level <= 0 else decibel(close.level)


def told_histogram(seen: DyadicHistogram, grid: QParams | None) -> Histogram:
    """A histogram of about 64 bins of equal width; the middle one, which lies on both sides of zero, is halved."""
    coarse = seen.coarsened(_BINS)
    counts, low = coarse.counts.tolist(), coarse.low
    if low <= 0 < low + len(counts) and seen.minimum < 0:
        middle = counts[-low]
        halves = [middle // 2, middle - middle // 2] if seen.maximum > 0 else [middle]
        counts[-low : 1 - low] = halves
    start = (low - 1 if seen.minimum < 0 and low <= 0 else low) * coarse.width
    clip, beyond = None, None
    if grid is not None and grid.scale.size == 1:
        scale, zero = float(grid.scale[0]), int(grid.zero_point[0])
        clip = scale * (grid.spec.qmin - zero), scale * (grid.spec.qmax - zero)
        beyond = share_outside(seen, clip[0] - scale / 2, clip[1] + scale / 2)
    return Histogram(
        start=start,
        width=coarse.width,
        counts=tuple(counts),
        minimum=seen.minimum,
        maximum=seen.maximum,
        clip=clip,
        saturated=beyond,
        bits=grid.spec.bits if grid is not None else 0,
    )


def share_outside(seen: DyadicHistogram, low: float, high: float) -> float:
    """The share of elements below `low` or above `high`; those of a bin are taken as spread evenly over it."""
    if not seen.total:
        return 0.0
    lower, upper = seen.edges()
    inside = ((lower >= low) & (lower <= high)).astype(np.float64)
    overlap = np.clip(np.minimum(upper, high) - np.maximum(lower, low), 0.0, None)
    np.divide(overlap, upper - lower, out=inside, where=upper > lower)
    return float(((1 - inside) * seen.counts).sum() / seen.total)


def told_weight(array: Array, axis: int, rounded: Array | None, grid: QParams | None, channels: int) -> WeightRanges:
    """The ranges of the channels of a weight. axis: that of the channels; rounded: the same weight on its grid."""
    moved = np.moveaxis(array, axis, 0)
    rows = moved.reshape(moved.shape[0], -1)
    low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
    starts = np.unique(np.linspace(0, len(low), min(_CHANNELS, len(low)), endpoint=False).astype(int))
    sqnr = None
    if rounded is not None and rounded.shape == array.shape:
        noise = float(np.square(rounded.astype(np.float64) - array).sum())
        signal = float(np.square(array, dtype=np.float64).sum())
        sqnr = decibel(noise / signal) if noise > 0 and signal > 0 else None
    return WeightRanges(
        shape=tuple(array.shape),
        channels=channels,
        low=_rounded(np.minimum.reduceat(low, starts)),
        high=_rounded(np.maximum.reduceat(high, starts)),
        scales=grid.scale.size if grid is not None else 0,
        bits=grid.spec.bits if grid is not None else 0,
        sqnr=sqnr,
    )


def _rounded(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Three digits are what a chart shows."""
    return tuple(float(f"{value:.3g}") if math.isfinite(value) else 0.0 for value in values)
