"""What a target is solved from: a float model, what its tensors held, and what is wanted of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import CalibrationError, listed
from amct_onnx.graph.access import is_standard, name_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.tensors import original
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.fills import fill_value
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.values.findings import Tuning
from amct_onnx.values.layers import Decision
from amct_onnx.values.request import Request

# Operators that move elements and keep all of them: what goes in has the statistic of what comes out.
_MOVES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout"})


# Operators whose results hold elements of their inputs and nothing else, zeros apart; of the first of them, or of all.
_KEEPS_FIRST = frozenset(
    {
        *("MaxPool", "ReduceMax", "Slice", "Split", "Gather", "Resize", "Expand", "Tile", "Pad"),
        *("DepthToSpace", "SpaceToDepth"),
    }
)


class SolvedWeights:
    """Grids of weights that have been solved. They are known by the bytes of the weights; and of each tensor that was
    read once, which must stay as it is, so are its bytes, so that a weight that many solutions share is read once."""

    def __init__(self) -> None:
        self.grids: dict[bytes, QParams] = {}
        self._read: dict[Hashable, tuple[ir.TensorProtocol, tuple[bytes, float]]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"grids": self.grids, "_read": {}}  # tensors are known by where they are in this process

    def told(self, layer: Layer, rows: Callable[[], Floats]) -> tuple[bytes, float]:
        """The digest of the rows of a layer's weight, and the largest magnitude in it."""
        tensor = original(layer.weight)
        key = id(tensor), layer.op_type, layer.groups
        if key not in self._read:
            array = rows()
            largest = float(max(array.max(initial=0.0), -array.min(initial=0.0)))
            self._read[key] = tensor, (_digest(array), largest)  # with the tensor, whose id is no other's meanwhile
        return self._read[key][1]


def _digest(rows: Floats) -> bytes:
    """What tells a weight from others: equal bytes of another shape are another weight."""
    digest = hashlib.blake2b(str(rows.shape).encode())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.digest()


class SolvedGrids:
    """Grids that have been solved, so that the same arithmetic on the same numbers is done once.

    A memory, and no part of any result: with an empty one the results are the same, later. `activations` are known by
    the names of their tensors and by their settings: they are those of one calibration.
    """

    def __init__(self, weights: SolvedWeights | None = None) -> None:
        self.weights = SolvedWeights() if weights is None else weights
        self.activations: dict[Hashable, QParams] = {}

    def weight(self, solve: Callable[[Floats, QSpec], QParams], rows: Floats, spec: QSpec) -> QParams:
        """`solve` of the rows of a weight."""
        return self.weight_by_digest(solve, lambda: rows, _digest(rows), spec)

    def weight_by_digest(
        self, solve: Callable[[Floats, QSpec], QParams], rows: Callable[[], Floats], digest: bytes, spec: QSpec
    ) -> QParams:
        """The same of rows that are read only where they are needed; `digest` is what `SolvedWeights.told` says."""
        key, known = f"{solve.__name__} {spec} ".encode() + digest, self.weights.grids
        if key not in known:
            known[key] = solve(np.ascontiguousarray(rows()), spec)
        return known[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A fused float model, the statistics of its tensors, and what is wanted.

    tuning: what a recipe has found beyond the statistics. empty: what to say of a tensor that held nothing, as a verb.
    """

    source: FusedModel
    statistics: Statistics
    request: Request
    tuning: Tuning = field(default_factory=Tuning)
    empty: str = "is empty in all of the data"
    solved: SolvedGrids = field(default_factory=SolvedGrids)

    @cached_property
    def in_float(self) -> Mapping[str, str]:
        """The tensors of the model that no target can give a grid, and why, as clauses."""
        reasons = {name: _holds_not_finite(name) for name in self.spoilt}
        for name, histogram in self.statistics.tensors.items():
            if histogram.is_finite and not histogram.counts.size:
                reasons[name] = f"the tensor {name} {self.empty}"
            elif (fill := fill_value(histogram)) is not None:
                reasons[name] = f'tensor "{name}" holds a fill value, {fill:.3g}, beside which int8 has nothing left'
        values = index_graph(self.source.model).values if reasons else {}
        sources = {name: name_of(source_of(value)) for name, value in values.items()}
        return {name: reasons[source] for name, source in sources.items() if source in reasons}

    @property
    def spoilt(self) -> tuple[str, ...]:
        """The observed tensors that hold NaN or Inf."""
        return tuple(name for name, histogram in self.statistics.tensors.items() if not histogram.is_finite)

    def told(self, decisions: Iterable[Decision], reasons: Collection[str]) -> tuple[str, ...]:
        """Which nodes stay in float for one of `reasons`, which come from the values that were to be rounded.

        Raises CalibrationError where nothing is left to quantize since tensors hold NaN or Inf.
        """
        decided, affected = tuple(decisions), dict[str, list[str]]()
        for decision in decided:
            if not decision.quantized and decision.reason in reasons:
                affected.setdefault(decision.reason or "", []).append(decision.layer)
        if not any(decision.quantized for decision in decided):
            for reason in map(_holds_not_finite, self.spoilt):
                if reason in affected:
                    layer = f'Layer "{affected[reason][0]}": {reason}'
                    text = "has no layer left that can be quantized"
                    raise CalibrationError(
                        f"{self.source.name} {text}. {layer}: check the model and the calibration data."
                    )
        return tuple(f"{_layers(names)} in float: {reason}." for reason, names in affected.items())

    def statistic(self, values: Iterable[ir.Value]) -> DyadicHistogram:
        """What the tensors behind `values` held together; of one that was not observed, what it was made from.

        Raises StatisticsError where that was not observed either, and CalibrationError where they held nothing.
        """
        names = dict.fromkeys(name for value in values for name in self._observed(value))
        histogram = self.statistics.of(names)
        if not histogram.counts.size:
            what = "is empty in all of the data" if histogram.is_finite else "holds NaN or Inf"
            raise CalibrationError(f'Tensor "{next(iter(names))}" {what}: leave what reads it in float.')
        return histogram

    def _observed(self, value: ir.Value) -> Iterator[str]:
        waiting = [value]
        while waiting:
            source = source_of(waiting.pop())
            node, parts = source.producer(), list[ir.Value]()
            if source.name not in self.statistics.tensors and node is not None and is_standard(node):
                first = node.inputs[:1] if node.op_type in _KEEPS_FIRST else ()
                inputs = node.inputs if node.op_type == "Concat" else first
                parts = [part for part in inputs if part is not None and constant_tensor(part) is None]
            waiting += reversed(parts)
            if not parts:
                yield name_of(source)


def _layers(names: Sequence[str]) -> str:
    quoted = listed([f'"{name}"' for name in names], 3)
    return f"Layers {quoted} stay" if len(names) > 1 else f"Layer {quoted} stays"


def _holds_not_finite(name: str) -> str:
    return f'tensor "{name}" holds NaN or Inf'


def source_of(value: ir.Value) -> ir.Value:
    """The tensor whose elements `value` has, behind operators that only move them."""
    while (node := value.producer()) is not None and is_standard(node) and node.op_type in _MOVES:
        source = node.inputs[0]
        if source is None or value is not node.outputs[0] or constant_tensor(source) is not None:
            break
        value = source
    return value
