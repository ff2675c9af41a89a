"""The targets that take QuantizeLinear and DequantizeLinear: ONNX Runtime, OpenVINO, TensorRT, each by its table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.access import name_of
from amct_onnx.graph.bodies import closed_copies
from amct_onnx.graph.constants import constant_readers
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.equalize import channel_groups
from amct_onnx.graph.passes.share_weights import copy_shared_weights, share_weights
from amct_onnx.graph.passes.smooth import product_inputs
from amct_onnx.graph.weights import weight_axis
from amct_onnx.numerics.activations.minmax import params_of_range
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.faster_in_float import PricedPlan
from amct_onnx.targets.float_units import Units
from amct_onnx.targets.qdq_bodies import lower_solved, quantize_bodies
from amct_onnx.targets.qdq_float_units import QdqUnits
from amct_onnx.targets.qdq_solving import PlanSolver, SolvedPlan, layers_with_weights
from amct_onnx.targets.target import Lowered, RangeChoice, Target, save_model_of
from amct_onnx.values.findings import TableGrid
from amct_onnx.values.layers import Decision
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.qdq_tables import QdqTarget
from amct_onnx.values.request import Request
from amct_onnx.values.roundings import Roundings


@dataclass(frozen=True, kw_only=True, eq=False)
class QdqLowered(Lowered):
    """A float model, normalized for lowering, its plan for a Q/DQ target, and the same model with Q/DQ nodes."""

    calibration: Calibration
    table: QdqTarget
    prepared: ir.Model
    plan: QdqPlan
    tables: Mapping[str, TableGrid]
    quantized: ir.Model
    priced: PricedPlan | None

    def model(self) -> ir.Model:
        return self.quantized

    def save(self, prefix: str) -> tuple[str, ...]:
        return save_model_of(self, prefix, self.table.name)

    def units(self) -> Units:
        model = self.prepared.clone()
        return QdqUnits(model, self.plan, self.table, self.activations, self.quantized, self.tables).found()

    def affords(self, in_float: Collection[str], share: float) -> bool:
        if self.priced is None:
            return False
        chosen = frozenset(self.plan.layers)
        others = {decision.layer for decision in self.plan.decisions if decision.layer not in chosen}
        return self.priced.affords(others, in_float, share)

    def spans(self) -> Mapping[tuple[str, ...], tuple[float, float]]:
        return {group.sources: self.activations[group.tensors[0]].span for group in self.plan.groups}

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
        self.runs_here, self.packs_weights, self.prices = table.runs_here, table.packs_weights, table.prices
        self.dynamic = table.dynamic

    def _planned_model(self, source: FusedModel) -> ir.Model:
        """The float model as it is planned and lowered."""
        return source.gathered if self.table.gathers_channels else source.model

    def decisions(self, source: FusedModel, request: Request) -> tuple[Decision, ...]:
        planned = partial(plan_qdq, target=self.table, off=request.off())
        plan = planned(self._planned_model(source))
        bodies = closed_copies(source.model) if request.settings is None else ()
        inside = (planned(body).decisions for body in bodies)
        return _known(plan.decisions, inside, source)

    def observed(self, source: FusedModel) -> Iterable[str]:
        models = (self._planned_model(source), *closed_copies(source.model))
        plans = (plan_qdq(model, self.table) for model in models)
        return [name for plan in plans for name in plan.observed]

    def smoothable(self, source: FusedModel, request: Request) -> tuple[str, ...]:
        model = source.model
        plan = plan_qdq(model, self.table, off=request.off())
        own = {group.tensors[0] for group in plan.groups if len(group.tensors) == 1} - plan.integer
        own -= {group.key for group in channel_groups(model)}
        layers, values = set(plan.layers), {value.name: value for node in model.graph for value in node.outputs}
        nodes = index_graph(model).nodes
        found = []
        for tensor, products in product_inputs(model).items():
            if tensor not in own or tensor not in values or not layers.issuperset(products.layers):
                continue
            readers = {name_of(use.node) for use in values[tensor].uses() if (name_of(use.node), use.idx) in plan.reads}
            # A weight that others read as well would be several weights then.
            sharing = {node.name for name in products.layers for node in constant_readers(nodes[name].inputs[1])}
            if readers == set(products.layers) >= sharing:
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
        source = replace(calibration.source, model=self._planned_model(calibration.source))
        table, solver = self.table, PlanSolver(replace(calibration, source=source), self.table)
        while (solved := solver.solve()) is None:
            pass
        prepared, quantized = solved.prepared, solved.prepared.clone()
        lower_solved(quantized, solved, table)
        # Settings name what is quantized, and have no entries for layers inside bodies.
        inside = () if calibration.request.settings else quantize_bodies(quantized, prepared, calibration, table)
        share_weights(quantized)
        if table.own_weights:
            copy_shared_weights(quantized)
        everything = (solved, *inside)
        tied = {grid.tied for grid in solved.tables.values()}  # rounded alone, they would be other integers
        return QdqLowered(
            calibration=calibration,
            table=table,
            prepared=prepared,
            plan=solved.plan,
            tables=solved.tables,
            quantized=quantized,
            priced=solved.priced,
            decisions=_known(solved.plan.decisions, (body.plan.decisions for body in inside), calibration.source),
            activations=FrozenDict({name: grid for part in everything for name, grid in part.activations.items()}),
            weights=FrozenDict({name: grid for part in everything for name, grid in _weights(part)}),
            rows={name: grid.params for name, grid in solved.weights.items() if name not in tied},
            notes=tuple(note for part in everything for note in part.notes),
        )


def _known(
    decisions: Iterable[Decision], inside: Iterable[Iterable[Decision]], source: FusedModel
) -> tuple[Decision, ...]:
    """The decisions about nodes of the user's model, and not about those that were added to it.

    inside: those about nodes of bodies, which count for these; a body comes before that which it is in.
    """
    found = {decision.layer: decision for decision in decisions}
    found |= {decision.layer: decision for body in reversed(tuple(inside)) for decision in body}
    return tuple(decision for decision in found.values() if decision.layer in source.facts.nodes)


def _weights(solved: SolvedPlan) -> Iterator[tuple[str, QParams]]:
    """The grids of the weights of a plan, in the layout of the model."""
    own = {layer.name: layer for layer in layers_with_weights(solved.prepared, solved.plan)}
    for name, grid in solved.weights.items():
        yield name, _in_own_layout(grid.params, own[name])


def _in_own_layout(params: QParams, layer: Layer) -> QParams:
    """The grid of rows as that of the weight of a layer."""
    axis = weight_axis(layer.node, len(layer.shape))
    return replace(params, spec=QSpec(bits=params.spec.bits, channel_axis=axis))
