"""The result of `quantize`: what was decided and measured, and the files that come of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.amct.save import FactoredModel, write_quantized
from amct_onnx.errors import ArgumentError, CalibrationError
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.raise_opset import raise_opset
from amct_onnx.measure.kernel_report import RuntimeReport, inspect_model
from amct_onnx.numerics.activations.minmax import solve_minmax
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.grid import QParams, QSpec, asymmetric_from_range, symmetric_from_range
from amct_onnx.numerics.settings import ActivationSettings, ActivationSolver, Settings
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.ptq.ascend import AscendResult, lower_ascend
from amct_onnx.ptq.float_model import FloatSource, source_of, values_by_name
from amct_onnx.ptq.request import Choice, make_choice
from amct_onnx.targets.to_qdq import lower_qdq
from amct_onnx.values.findings import Step, Tuning, WeightGrid
from amct_onnx.values.layers import Decision, LayerRecord
from amct_onnx.values.mixed_precision import MixedPrecision
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.qdq_tables import ONNXRUNTIME, QDQ_TARGETS, QdqTarget

Floats = npt.NDArray[np.float32]

ASCEND_NAME = "ascend"
_LATENCY_SECONDS = 0.15  # a dozen runs each of a MobileNetV2; more would be felt beside a calibration of two seconds
TARGETS = (*QDQ_TARGETS, ASCEND_NAME)


@dataclass(frozen=True)
class _Keep:
    """The default of an argument of `to`: as it was."""


_KEEP = _Keep()


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """The files of `save`, and what ONNX Runtime makes of the model: None for other targets, or where not asked."""

    files: tuple[str, ...]
    report: RuntimeReport | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class QuantizedModel:
    """A model quantized for `target`, from the statistics of one calibration, which serve every target.

    Everything else is computed from these on first use. `assumptions`: what was assumed of the calibration data.
    `sample`: one sample of it, to measure with; None where there was no data. `precision`: the search that chose which
    layers are quantized, None if there was none. `tuning`: what the recipe has found beyond the statistics, `steps`:
    what it tried. `known`: grids of weights, `solved`: those of tensors from these statistics; no model that is made of
    this one solves them again.
    """

    source: FloatSource
    target: str
    choice: Choice
    statistics: Statistics
    assumptions: tuple[str, ...] = ()
    sample: Mapping[str, npt.NDArray[Any]] | None = None
    precision: MixedPrecision | None = None
    tuning: Tuning = field(default_factory=Tuning)
    steps: tuple[Step, ...] = ()
    known: dict[bytes, QParams] = field(default_factory=dict)
    solved: dict[Hashable, QParams] = field(default_factory=dict)

    def __repr__(self) -> str:
        quantized = sum(decision.quantized for decision in self.decisions)
        return f"<QuantizedModel for {self.target}: {quantized} of {len(self.decisions)} nodes quantized>"

    def to(
        self,
        target: str | None = None,
        *,
        settings: Settings | str | os.PathLike[str] | _Keep | None = _KEEP,
        algorithm: str | ActivationSolver | _Keep | None = _KEEP,
        skip_layers: Collection[str] | _Keep = _KEEP,
        reduce_range: bool | _Keep = _KEEP,
    ) -> QuantizedModel:
        """The same calibration for another target, or with other settings; no data is run. What is not given stays.

        Raises ArgumentError, ConfigError, and StatisticsError where the new settings need a tensor that was not
        observed.
        """
        choice = make_choice(
            settings=self.choice.settings if isinstance(settings, _Keep) else self.source.read_settings(settings),
            algorithm=self.choice.algorithm if isinstance(algorithm, _Keep) else algorithm,
            skip_layers=self.choice.skip_layers if isinstance(skip_layers, _Keep) else skip_layers,
            reduce_range=self.choice.reduce_range if isinstance(reduce_range, _Keep) else reduce_range,
            nodes=self.source.facts.nodes,
        )
        choice = replace(choice, wide=self.choice.wide)
        same = (choice.settings, choice.algorithm) == (self.choice.settings, self.choice.algorithm)
        result = replace(
            self,
            target=check_target(target or self.target),
            choice=choice,
            precision=None,
            tuning=self.tuning if same else replace(self.tuning, ranges={}),
            known={},
        )
        result.solve()
        return result

    def with_steps(self, steps: Sequence[Step]) -> QuantizedModel:
        """The same model, with all that has been computed of it, and what a recipe tried."""
        found = copy(self)
        object.__setattr__(found, "steps", tuple(steps))
        return found

    def solve(self) -> None:
        """Compute plan and grids now, so that what is wrong with them is raised now."""
        _ = self._ascend if self.target == ASCEND_NAME else self.activations

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What happens to each node that the target could quantize, and why where it stays in float."""
        decisions = self._ascend.decisions if self.target == ASCEND_NAME else self._plan.decisions
        nodes = self.source.facts.nodes  # without those that smoothing has added
        return tuple(decision for decision in decisions if decision.layer in nodes)

    @cached_property
    def activations(self) -> Mapping[str, QParams]:
        """Scale and zero point (signed integers) of each quantized tensor of a Q/DQ target."""
        return {tensor: grid for group in self._plan.groups for tensor, grid in self._solve_group(group)}

    @property
    def weights(self) -> Mapping[str, QParams]:
        """Scales of each weight, by node; of target ascend, of those weights whose grid is not AMCT's."""
        return self._ascend.weights if self.target == ASCEND_NAME else self._lowered[1]

    def weight_params(self, layer: str) -> QParams:
        """The grid on which the weight of a layer was rounded, as `tuning` wants it."""
        if self.target == ASCEND_NAME:
            return self._ascend.weights[layer]
        _ = self._lowered
        return self._rounded[layer]

    @property
    def records(self) -> Mapping[str, LayerRecord]:
        """The factors of each layer as record.txt has them; for target ascend only."""
        return self._ascend.records if self.target == ASCEND_NAME else {}

    def model(self) -> ir.Model:
        """A new quantized model: Q/DQ nodes, or the deploy model of target ascend."""
        return self._ascend.model.deploy() if self.target == ASCEND_NAME else self._lowered[0].clone()

    def save(self, prefix: str | os.PathLike[str], *, inspect: bool = True) -> SavedModel:
        """Write the files of the target: `<prefix>_<target>.onnx`, or those of AMCT's save_model for ascend.

        For target onnxruntime the model is then opened as the runtime optimises it, and measured beside the float model
        on this machine, unless `inspect` is False. Raises OutputError; each file is written whole or not at all.
        """
        path = os.fspath(prefix)
        if self.target == ASCEND_NAME:
            return SavedModel(files=write_quantized(self._ascend.model, path))
        folder, stem = os.path.split(path)
        file = os.path.join(folder, f"{stem}_{self.target}.onnx" if stem else f"{self.target}.onnx")
        save_model_file(self._lowered[0], file)
        report = self._inspect(file) if inspect and self.target == ONNXRUNTIME.name else None
        return SavedModel(files=(file,), report=report)

    def _inspect(self, file: str) -> RuntimeReport:
        source: str | bytes
        if self.source.path is not None and os.path.exists(self.source.path):
            source = self.source.path
        else:
            source = ir.to_proto(self.source.model).SerializeToString()
        return inspect_model(source, file, self.sample, budget=_LATENCY_SECONDS)

    @property
    def plan(self) -> QdqPlan:
        """What is quantized for a Q/DQ target."""
        return self._plan

    @property
    def factored(self) -> FactoredModel:
        """Layers and factors for target ascend."""
        return self._ascend.model

    @property
    def lowered(self) -> ir.Model:
        """The model of a Q/DQ target, not to be changed."""
        return self._lowered[0]

    @property
    def _rules(self) -> QdqTarget:
        return QDQ_TARGETS[self.target]

    @cached_property
    def _plan(self) -> QdqPlan:
        self.choice.check(self.target)
        return plan_qdq(self.source.fused, self._rules, off=self.choice.off())

    @cached_property
    def _readers(self) -> Mapping[str, Sequence[str]]:
        """For each tensor the layers that read it as input 0."""
        readers: dict[str, list[str]] = {}
        for node in self.source.fused.graph:
            if node.inputs and node.inputs[0] is not None and node.inputs[0].name:
                readers.setdefault(node.inputs[0].name, []).append(node.name or "")
        return readers

    @cached_property
    def _clamped(self) -> frozenset[str]:
        """The tensors of which a Relu or Clip is to go into the grid."""
        nodes = {node.name: node for node in self.source.fused.graph}
        clamps = self._plan.absorbed if self._rules.drops_clamps else {}
        return frozenset(nodes[clamp].outputs[0].name or "" for clamp in clamps)

    @cached_property
    def _values(self) -> Mapping[str, ir.Value]:
        return values_by_name(self.source.fused)

    def grid_of_range(self, low: float, high: float) -> QParams:
        """The grid of a Q/DQ target's activations from `low` <= 0 to `high` >= 0."""
        spec = self._rules.activation
        return symmetric_from_range(low, high, spec) if spec.symmetric else asymmetric_from_range(low, high, spec)

    def extremes_of(self, group: TensorGroup) -> tuple[float, float]:
        """The least and the largest value of the tensors of a group."""
        statistic = self._statistic(group)
        return statistic.minimum, statistic.maximum

    def _statistic(self, group: TensorGroup) -> DyadicHistogram:
        return self.statistics.of(dict.fromkeys(source_of(self._values[name]).name or "" for name in group.sources))

    def _solve_group(self, group: TensorGroup) -> list[tuple[str, QParams]]:
        if (known := self.tuning.ranges.get(group.sources)) is not None:
            return [(tensor, self.grid_of_range(*known)) for tensor in group.tensors]
        readers = [reader for tensor in group.tensors for reader in self._readers.get(tensor, ())]
        settings, clamped = self.choice.activation(self._rules, readers), bool(self._clamped & set(group.tensors))
        key = (group.sources, settings, clamped)
        if key not in self.solved:
            self.solved[key] = self._solve_range(self._statistic(group), settings, clamped, group.tensors[0])
        return [(tensor, self.solved[key]) for tensor in group.tensors]

    @staticmethod
    def _solve_range(statistic: DyadicHistogram, settings: ActivationSettings, clamped: bool, tensor: str) -> QParams:
        try:
            grid = solve_activation(statistic, settings)
        except ValueError as error:
            raise CalibrationError(f'Tensor "{tensor}": {error}.') from error
        widest = solve_minmax(statistic, grid.spec)
        # A grid that goes on behind a Clip would need a kernel for it.
        return widest if clamped and grid.scale > widest.scale else grid

    @cached_property
    def _lowered(self) -> tuple[ir.Model, Mapping[str, QParams]]:
        model, rules = self.source.fused.clone(), self._rules
        if default_opset(model) < rules.minimum_opset:
            raise_opset(model, rules.minimum_opset)
        return model, lower_qdq(model, self._plan, rules, self.activations, self._weight)

    def _weight(self, name: str, rows: Floats, spec: QSpec, least: Floats) -> WeightGrid:
        """The grid of a weight, as `lower_qdq` asks for it, with the integers that were found for it."""
        grid = self.choice.weight(name, rows, spec, least, self.known)
        self._rounded[name] = grid.params
        return grid if grid.integers is not None else self.tuning.weight(name, grid.params, rows) or grid

    @cached_property
    def _rounded(self) -> dict[str, QParams]:
        """The grids of weights as `tuning` wants them; complete after lowering."""
        return {}

    @cached_property
    def _ascend(self) -> AscendResult:
        return lower_ascend(self.source, self.choice, self.statistics, self.tuning, self.known)


def check_target(target: Any) -> str:
    """`target`, if there is such a target. Raises ArgumentError."""
    if target not in TARGETS:
        raise ArgumentError(f"target {target!r} is unknown, use one of {', '.join(TARGETS)}.")
    return str(target)
