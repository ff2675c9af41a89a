"""The targets that take QuantizeLinear and DequantizeLinear: ONNX Runtime, OpenVINO, TensorRT, each by its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import CalibrationError, ModelError
from amct_onnx.graph.access import name_of
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import WEIGHT_OPS, Layer, constant_input, layer_of
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.equalize import channel_groups
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.passes.raise_opset import raise_opset
from amct_onnx.graph.passes.smooth import product_inputs
from amct_onnx.graph.tensors import array_of
from amct_onnx.graph.weights import kernel_rows, weight_axis
from amct_onnx.numerics.activations.minmax import params_of_range, solve_minmax
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import ActivationSettings, Mse
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.numerics.weights.pairs import solve_pairs
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.float_units import Units
from amct_onnx.targets.qdq_float_units import QdqUnits
from amct_onnx.targets.target import Lowered, RangeChoice, Target, save_model_of
from amct_onnx.targets.to_qdq import QdqGrids, lower_qdq
from amct_onnx.values.findings import WeightGrid
from amct_onnx.values.layers import Decision
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.qdq_tables import QdqTarget
from amct_onnx.values.request import Request
from amct_onnx.values.roundings import Roundings

_SAFE_BITS = 7  # two such weights cannot overflow
# A bias uses at most half of int32, so that the sums that it is added to have the other half.
_BIAS_LIMIT = 2.0**30


@dataclass(frozen=True, kw_only=True, eq=False)
class QdqLowered(Lowered):
    """A float model, normalized for lowering, its plan for a Q/DQ target, and the same model with Q/DQ nodes."""

    calibration: Calibration
    table: QdqTarget
    prepared: ir.Model
    plan: QdqPlan
    quantized: ir.Model

    def model(self) -> ir.Model:
        return self.quantized

    def save(self, prefix: str) -> tuple[str, ...]:
        return save_model_of(self, prefix, self.table.name)

    def units(self) -> Units:
        return QdqUnits(self.prepared.clone(), self.plan, self.table, self.activations, self.quantized).found()

    def range_choices(self) -> tuple[RangeChoice, ...]:
        values = index_graph(self.calibration.source.model).values

        def change(group: TensorGroup, grid: QParams) -> Roundings:
            made = [tensor for tensor in group.sources if tensor in self.plan.integer]
            others = [values[tensor] for tensor in group.sources if tensor not in self.plan.integer]
            reads = {(name_of(use.node), use.idx) for value in others for use in value.uses()}
            return Roundings(tensors=dict.fromkeys(made, grid), reads=dict.fromkeys(reads & self.plan.reads, grid))

        def within(group: TensorGroup, low: float, high: float) -> Roundings:
            return change(group, params_of_range(low, high, self.table.activation))

        choices = []
        for group in self.plan.groups:
            seen = self.calibration.statistic([values[name] for name in group.sources])
            choices.append(
                RangeChoice(
                    key=group.sources,
                    low=seen.minimum,
                    high=seen.maximum,
                    now=change(group, self.activations[group.tensors[0]]),
                    within=partial(within, group),
                )
            )
        return tuple(choices)


class QdqFamily(Target):
    """A Q/DQ target, by its table."""

    adds_bias = True

    def __init__(self, table: QdqTarget) -> None:
        self.table, self.name = table, table.name
        self.runs_here, self.packs_weights = table.runs_here, table.packs_weights

    def decisions(self, source: FusedModel, request: Request) -> tuple[Decision, ...]:
        return _known(plan_qdq(source.model, self.table, off=request.off()), source)

    def observed(self, source: FusedModel) -> Iterable[str]:
        return plan_qdq(source.model, self.table).observed

    def smoothable(self, source: FusedModel, request: Request) -> tuple[str, ...]:
        model, plan = source.model, plan_qdq(source.model, self.table, off=request.off())
        own = {group.tensors[0] for group in plan.groups if len(group.tensors) == 1} - plan.integer
        own -= {group.key for group in channel_groups(model)}
        layers, values = set(plan.layers), {value.name: value for node in model.graph for value in node.outputs}
        found = []
        for tensor, products in product_inputs(model).items():
            if tensor not in own or tensor not in values or not layers.issuperset(products.layers):
                continue
            readers = {use.node.name for use in values[tensor].uses() if (name_of(use.node), use.idx) in plan.reads}
            if readers == set(products.layers):
                found.append(tensor)
        return tuple(found)

    def check(self, source: FusedModel, request: Request) -> None:
        request.refuse_for(self.name, integers=True)
        opset = default_opset(source.model)
        if opset > self.table.maximum_opset and not self.table.beyond:
            text = f"target {self.name} has QuantizeLinear up to opset {self.table.maximum_opset}"
            raise ModelError(f"The model uses opset {opset}, and {text}: export it again with that or an earlier one.")

    def solve(self, calibration: Calibration) -> QdqLowered:
        self.check(calibration.source, calibration.request)
        source, table = calibration.source.model, self.table
        plan = plan_qdq(source, table, off=calibration.request.off(), in_float=calibration.in_float)
        activations = _Activations(calibration, table, plan)
        grids = {}
        for group in plan.groups:
            grids.update(dict.fromkeys(group.tensors, activations.grid(group)))
        prepared = source.clone()
        if default_opset(prepared) < table.minimum_opset:
            raise_opset(prepared, table.minimum_opset)
        chosen = frozenset(plan.layers)
        normalize_layers(prepared, chosen)
        layers = [layer_of(node) for node in prepared.graph if node.name in chosen and node.op_type in WEIGHT_OPS]
        weights = {layer.name: _solve_weight(layer, table, grids, calibration) for layer in layers}
        constants = _solve_constants(prepared, plan, table, grids)
        quantized = prepared.clone()
        lower_qdq(quantized, plan, table, QdqGrids(activations=grids, weights=weights, constants=constants))
        return QdqLowered(
            calibration=calibration,
            table=table,
            prepared=prepared,
            plan=plan,
            quantized=quantized,
            decisions=_known(plan, calibration.source),
            activations=grids,
            weights={layer.name: _in_own_layout(weights[layer.name].params, layer) for layer in layers},
            rows={name: grid.params for name, grid in weights.items()},
        )


def _known(plan: QdqPlan, source: FusedModel) -> tuple[Decision, ...]:
    """The decisions about nodes of the user's model, and not about those that were added to it."""
    return tuple(decision for decision in plan.decisions if decision.layer in source.facts.nodes)


class _Activations:
    """Grids of the tensors of a plan, from the statistics of a calibration."""

    def __init__(self, calibration: Calibration, table: QdqTarget, plan: QdqPlan) -> None:
        self._calibration, self._table = calibration, table
        graph = calibration.source.model.graph
        self._values = index_graph(calibration.source.model).values
        self._readers: dict[str, list[str]] = {}  # of each tensor those that have it as input 0
        for node in graph:
            if node.inputs and node.inputs[0] is not None and node.inputs[0].name:
                self._readers.setdefault(node.inputs[0].name, []).append(name_of(node))
        absorbed = plan.absorbed if table.drops_clamps else {}
        self._clamped = {node.outputs[0].name for node in graph if node.name in absorbed}

    def grid(self, group: TensorGroup) -> QParams:
        """The grid that the tensors of a group share. Raises CalibrationError, StatisticsError."""
        calibration = self._calibration
        if (span := calibration.tuning.ranges.get(group.sources)) is not None:
            return params_of_range(*span, self._table.activation)
        settings = self._settings([reader for tensor in group.tensors for reader in self._readers.get(tensor, ())])
        clamped = not self._clamped.isdisjoint(group.tensors)
        statistic = calibration.statistic([self._values[name] for name in group.sources])
        key, known = (group.sources, settings), calibration.solved.activations
        try:
            if key not in known:
                known[key] = solve_activation(statistic, settings)
            grid = known[key]
            if not clamped:
                return grid
            widest = solve_minmax(statistic, grid.spec)
        except ValueError as error:
            raise CalibrationError(f'Tensor "{group.tensors[0]}": {error}.') from error
        # A grid that goes on behind a Clip would need a kernel for it.
        return widest if grid.scale > widest.scale else grid

    def _settings(self, readers: Sequence[str]) -> ActivationSettings:
        """How a tensor that these layers read is quantized: as the first of them wants it."""
        request, symmetric = self._calibration.request, self._table.activation.symmetric
        layer = request.layer(readers)
        if layer is None:
            return ActivationSettings(asymmetric=not symmetric, solver=request.algorithm or Mse())
        solver = request.algorithm or layer.activation.solver
        return ActivationSettings(asymmetric=layer.activation.asymmetric and not symmetric, solver=solver)


def _solve_weight(
    layer: Layer, table: QdqTarget, activations: Mapping[str, QParams], calibration: Calibration
) -> WeightGrid:
    """The grid of a layer's weight as rows of output channels, and its integers where they are not the nearest."""
    rows, request = kernel_rows(layer.array(), layer.node), calibration.request
    least = _least_scale(layer, table, activations[name_of(layer.input)], len(rows))
    settings = request.layer((layer.name,))
    bits = table.weight.bits if settings is None else settings.weight.num_bits
    spec = QSpec(bits=bits, channel_axis=0)
    try:
        if request.reduce_range and bits > _SAFE_BITS:
            params, integers = solve_pairs(rows, spec, least)
            return WeightGrid(params=params, integers=integers)
        params = calibration.solved.weight(solve_weight_mse if settings is None else solve_arq, rows, spec)
        raised = QParams(scale=np.maximum(params.scale, least), zero_point=params.zero_point, spec=spec)
        return calibration.tuning.weight(layer.name, raised, rows) or WeightGrid(params=raised)
    except ValueError as error:
        raise ModelError(f'Layer "{layer.name}": {error}. Correct the model or switch the layer off.') from error


def _least_scale(layer: Layer, table: QdqTarget, data: QParams, channels: int) -> Floats:
    """float32[C]: below it the bias would leave int32, as in a channel whose weights are next to nothing."""
    bias = layer.bias
    if bias is None or not table.int32_bias:
        return np.zeros(channels, np.float32)
    least = np.abs(bias.reshape(-1).astype(np.float64)) / (_BIAS_LIMIT * data.scale.astype(np.float64))
    return least.astype(np.float32)


def _solve_constants(
    prepared: ir.Model, plan: QdqPlan, table: QdqTarget, activations: Mapping[str, QParams]
) -> dict[tuple[str, int], QParams]:
    """Grids of the constant operands of sums, products and concatenations; the last have that of their output."""
    index, found = index_graph(prepared), {}
    for name, place in sorted(plan.constants):
        node = index.nodes[name]
        result = name_of(node.outputs[0])
        if node.op_type == "Concat" and result in activations:
            found[name, place] = activations[result]
        else:
            array = array_of(constant_input(node, place))
            found[name, place] = params_of_range(float(array.min()), float(array.max()), table.activation)
    return found


def _in_own_layout(params: QParams, layer: Layer) -> QParams:
    """The grid of rows as that of the weight of a layer."""
    axis = weight_axis(layer.node, len(layer.shape))
    return replace(params, spec=QSpec(bits=params.spec.bits, channel_axis=axis))
