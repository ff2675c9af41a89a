"""What a target is solved from: a float model, what its tensors held, and what is wanted of the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import CalibrationError
from amct_onnx.graph.access import is_standard, name_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.index import index_graph
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.values.findings import Tuning
from amct_onnx.values.request import Request

# Operators that move elements and keep all of them: what goes in has the statistic of what comes out.
_MOVES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout"})


class SolvedGrids:
    """Grids that have been solved, so that the same arithmetic on the same numbers is done once.

    A memory, and no part of any result: with an empty one the results are the same, later. `weights` are known by their
    bytes, `activations` by the names of their tensors and by their settings: they are those of one calibration.
    """

    def __init__(self, weights: dict[bytes, QParams] | None = None) -> None:
        self.weights: dict[bytes, QParams] = {} if weights is None else weights
        self.activations: dict[Hashable, QParams] = {}

    def weight(self, solve: Callable[[Floats, QSpec], QParams], rows: Floats, spec: QSpec) -> QParams:
        """`solve` of the rows of a weight."""
        joined = np.ascontiguousarray(rows)
        digest = hashlib.blake2b(f"{solve.__name__} {rows.shape} {spec}".encode())  # equal bytes may be another weight
        digest.update(joined.data)
        key = digest.digest()
        if key not in self.weights:
            self.weights[key] = solve(joined, spec)
        return self.weights[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A fused float model, the statistics of its tensors, and what is wanted.

    tuning: what a recipe has found beyond the statistics.
    """

    source: FusedModel
    statistics: Statistics
    request: Request
    tuning: Tuning = field(default_factory=Tuning)
    solved: SolvedGrids = field(default_factory=SolvedGrids)

    @cached_property
    def in_float(self) -> Mapping[str, str]:
        """The tensors of the model that cannot have a grid, and why: those without elements in all feeds."""
        empty = {name for name, histogram in self.statistics.tensors.items() if not histogram.counts.size}
        values = index_graph(self.source.model).values if empty else {}
        sources = {name: name_of(source_of(value)) for name, value in values.items()}
        return {
            name: f"the tensor {name} is empty in all of the data"
            for name, source in sources.items()
            if source in empty
        }

    def statistic(self, values: Iterable[ir.Value]) -> DyadicHistogram:
        """What the tensors behind `values` held together.

        Raises StatisticsError for one that was not observed, and CalibrationError where they held nothing.
        """
        names = list(dict.fromkeys(name_of(source_of(value)) for value in values))
        histogram = self.statistics.of(names)
        if not histogram.counts.size:
            text = "is empty in all of the data: leave what reads it in float, or give data in which it is not"
            raise CalibrationError(f'Tensor "{names[0]}" {text}.')
        return histogram


def source_of(value: ir.Value) -> ir.Value:
    """The tensor whose elements `value` has, behind operators that only move them."""
    while (node := value.producer()) is not None and is_standard(node) and node.op_type in _MOVES:
        source = node.inputs[0]
        if source is None or value is not node.outputs[0] or constant_tensor(source) is not None:
            break
        value = source
    return value
