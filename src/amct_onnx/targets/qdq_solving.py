"""From a calibration to what a Q/DQ target makes of it: the plan, and the grids of tensors, weights and constants.

What a tensor or a weight holds may have no grid: NaN, a fill value that leaves nothing of the data, numbers beyond what
a scale can be. The nodes that read or make it stay in float then, and the rest is planned again without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import CalibrationError, StatisticsError
from amct_onnx.graph.access import is_op, name_of
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import GraphIndex, index_graph
from amct_onnx.graph.layer_view import WEIGHT_OPS, Layer, constant_input, layer_of
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.passes.raise_opset import raise_opset
from amct_onnx.graph.product_sums import own_row
from amct_onnx.graph.tensors import array_of
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.activations.minmax import params_of_range, solve_minmax
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.arrays import Array, Floats
from amct_onnx.numerics.grid import FLT_EPSILON, QParams, QSpec
from amct_onnx.numerics.settings import ActivationSettings, Mse
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.numerics.weights.pairs import solve_pairs
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.faster_in_float import PricedPlan
from amct_onnx.targets.lookup_tables import solve_lookup
from amct_onnx.values.findings import TableGrid, WeightGrid
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.qdq_tables import QdqTarget
from amct_onnx.words import given

_SAFE_BITS = 7  # two such weights cannot overflow
# A bias uses at most half of int32, so that the sums that it is added to have the other half.
_BIAS_LIMIT = 2.0**30
# A channel whose weights are so much smaller than others is as good as zero; so AMCT's bound holds for it.
_NOTHING = 2.0**-12
_LEAST_STEPS = 2  # a tensor that reaches no further on the grid of a concatenation is lost there
_MOST_RATIO = 2.0**10  # of the scale of a constant to that of a sum that it is in; float32 has room for both up to here
_NORMAL = np.finfo(np.float32)
_SLOW = f"it takes longer in integers, with what is rounded around it; {given('full_int8', True)} has it there"


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedPlan:
    """A plan all of whose grids are solved, and `prepared`, the float model normalized for lowering.

    activations: by tensor. weights: by layer, as rows of output channels. constants: by node and index. tables: of
    lookups, by node. priced: what it takes with all in integers that may be, where somebody asks. notes: which nodes
    stay in float for what there was to round, as sentences.
    """

    plan: QdqPlan
    prepared: ir.Model
    activations: Mapping[str, QParams]
    weights: Mapping[str, WeightGrid]
    constants: Mapping[tuple[str, int], QParams]
    tables: Mapping[str, TableGrid]
    priced: PricedPlan | None
    notes: tuple[str, ...]


class PlanSolver:
    """Plans and solves, again and again, until all that is planned has a grid.

    tensors, nodes: those that have none, by name, and why, as clauses about nodes.
    """

    def __init__(self, calibration: Calibration, table: QdqTarget) -> None:
        self._calibration, self._table = calibration, table
        self._model = calibration.source.model
        self._values = index_graph(self._model).values
        self._readers: dict[str, list[str]] = {}  # of each tensor those that have it as input 0
        for node in self._model.graph:
            if node.inputs and node.inputs[0] is not None and node.inputs[0].name:
                self._readers.setdefault(node.inputs[0].name, []).append(name_of(node))
        self.tensors: dict[str, str] = dict(calibration.in_float)
        self._chosen = calibration.tuning.in_float
        self.nodes: dict[str, str] = {}
        self._slow: dict[str, str] = {}
        self._parted: dict[str, str] = {}  # tensors that were to be in integers in parts only
        self._priced: PricedPlan | None = None  # with all in integers that may be

    def solve(self) -> SolvedPlan | None:
        """One attempt; None where it has found more that has no grid. Raises StatisticsError, and CalibrationError
        where NaN and Inf leave nothing that can be quantized."""
        request = self._calibration.request
        plan = plan_qdq(
            self._model,
            self._table,
            off=request.off(),
            in_float={**self.tensors, **self._parted},
            refused={**self._chosen, **self.nodes, **self._slow},
        )
        if slow := self._found_slow(plan):
            self._slow.update(dict.fromkeys(slow, _SLOW))
            return None
        known = self._found()
        clamped = self._clamped(plan)
        grids: dict[str, QParams] = {}
        for group in plan.groups:
            try:
                grids.update(dict.fromkeys(group.tensors, self._grid(group, clamped)))
            except ValueError as error:
                self._remember(group, error)
        if self._found() > known:
            return None
        self.nodes.update(self._lossy(plan, grids))
        prepared = self._model.clone()
        if default_opset(prepared) < self._table.minimum_opset:
            raise_opset(prepared, self._table.minimum_opset)
        normalize_layers(prepared, frozenset(plan.layers))
        index, names = index_graph(prepared), ValueNames(prepared)
        weights: dict[str, WeightGrid] = {}
        for layer in layers_with_weights(prepared, plan):
            bias, adder = layer.bias, ""
            if layer.name in plan.biases:
                adder, place = plan.biases[layer.name]
                own_row(index.nodes[adder], place, layer.output_channels, names)
                bias = array_of(constant_input(index.nodes[adder], place))
            data = grids[name_of(layer.input)]
            try:
                least = _least_scale(bias, self._table, data, layer.output_channels)
            except ValueError as error:
                self.nodes[adder or layer.name] = str(error)
                continue
            try:
                weights[layer.name] = _solve_weight(layer, self._table, data, least, self._calibration)
            except ValueError as error:
                self.nodes[layer.name] = str(error)
        constants = self._constants(plan, index, grids)
        tables = self._tables(plan, {name: index.layer(name) for name in weights}, weights)
        if self._found() > known:
            return None
        return SolvedPlan(
            plan=plan,
            prepared=prepared,
            activations=grids,
            weights=weights,
            constants=constants,
            tables=tables,
            priced=self._priced,
            notes=self._calibration.told(plan.decisions, {*self.tensors.values(), *self.nodes.values()}),
        )

    def _remember(self, group: TensorGroup, error: ValueError) -> None:
        """Leave a tensor of a group without a grid in float from now on. Raises StatisticsError where calibration
        should have observed it, and CalibrationError where that is no help."""
        if isinstance(error, StatisticsError):
            parted = self._seen_in_parts(group)
            if parted is None:
                raise error
            self._parted[parted] = f'calibration has seen no more than parts of tensor "{parted}"'
            return
        widest = max(group.sources, key=self._largest)
        if widest in self.tensors:
            raise CalibrationError(f'Tensor "{widest}": {error}.') from error
        self.tensors[widest] = f'tensor "{widest}": {error}'

    def _constants(
        self, plan: QdqPlan, index: GraphIndex, grids: Mapping[str, QParams]
    ) -> dict[tuple[str, int], QParams]:
        """The grids of constant operands, by node and input."""
        found: dict[tuple[str, int], QParams] = {}
        for name, place in sorted(plan.constants):
            try:
                found[name, place] = _solve_constant(index.nodes[name], place, self._table, grids)
            except ValueError as error:
                self.nodes[name] = f"its constant operand: {error}"
        return found

    def _found_slow(self, plan: QdqPlan) -> frozenset[str]:
        """The nodes that are better in float for the time they take, unless the user wants them in integers."""
        if self._table.prices is None or self._calibration.request.takes_everything:
            return frozenset()
        priced = PricedPlan(self._calibration, plan, self._table.prices)
        self._priced = self._priced or priced
        return priced.faster_in_float()

    def _tables(
        self, plan: QdqPlan, layers: Mapping[str, Layer], weights: Mapping[str, WeightGrid]
    ) -> dict[str, TableGrid]:
        """The grids of the tables that nodes look up in."""
        found = {}
        for node in self._model.graph if plan.lookups else ():
            if node.name in plan.lookups:
                try:
                    ties = layers if self._table.tied_tables else {}
                    spec = self._table.weight
                    found[name_of(node)] = solve_lookup(node, ties, weights, spec, self._calibration)
                except ValueError as error:
                    self.nodes[name_of(node)] = str(error)
        return found

    def _clamped(self, plan: QdqPlan) -> frozenset[str]:
        """The tensors behind a Relu or Clip that goes into the grid."""
        absorbed = plan.absorbed if self._table.drops_clamps else {}
        return frozenset(name_of(node.outputs[0]) for node in self._model.graph if node.name in absorbed)

    def _grid(self, group: TensorGroup, clamped: frozenset[str]) -> QParams:
        """The grid that the tensors of a group share. Raises ValueError where there is none, StatisticsError."""
        calibration, within = self._calibration, self._table.activation
        if (span := calibration.tuning.ranges.get(group.sources)) is not None:
            return params_of_range(*span, within)
        settings = self._settings([reader for tensor in group.tensors for reader in self._readers.get(tensor, ())])
        statistic = calibration.statistic([self._values[name] for name in group.sources])
        key, known = (group.sources, settings, within.least_scale), calibration.solved.activations
        if key not in known:
            known[key] = solve_activation(statistic, settings, within)
        grid = known[key]
        if clamped.isdisjoint(group.tensors):
            return grid
        # A grid that goes on behind a Clip would need a kernel for it.
        widest = solve_minmax(statistic, grid.spec)
        return widest if grid.scale > widest.scale else grid

    def _settings(self, readers: Sequence[str]) -> ActivationSettings:
        """How a tensor that these layers read is quantized: as the first of them wants it."""
        request, symmetric = self._calibration.request, self._table.activation.symmetric
        layer = request.layer(readers)
        if layer is None:
            return ActivationSettings(
                asymmetric=not symmetric, solver=request.algorithm or self._calibration.tuning.algorithm or Mse()
            )
        solver = request.algorithm or layer.activation.solver
        return ActivationSettings(asymmetric=layer.activation.asymmetric and not symmetric, solver=solver)

    def _largest(self, tensor: str) -> float:
        """The largest magnitude in a tensor."""
        statistic = self._calibration.statistic([self._values[tensor]])
        return max(-statistic.minimum, statistic.maximum)

    def _found(self) -> int:
        """How much has turned out to have no grid."""
        return len(self.tensors) + len(self.nodes) + len(self._parted)

    def _seen_in_parts(self, group: TensorGroup) -> str | None:
        """A source of a group that nobody has observed since only parts of it were wanted, as long as the nodes that
        read the rest were to be in integers; None where calibration should have seen them all."""
        wanted = plan_qdq(self._model, self._table).observed
        unknown = (name for name in group.sources if name not in wanted and name not in self._parted)
        return next((name for name in unknown if not self._is_known(name)), None)

    def _is_known(self, tensor: str) -> bool:
        """Whether there is a statistic of a tensor; of one from which little is picked there need not be."""
        try:
            self._largest(tensor)
        except StatisticsError:
            return False
        return True

    def _lossy(self, plan: QdqPlan, grids: Mapping[str, QParams]) -> Iterator[tuple[str, str]]:
        """Concatenations on whose grid next to nothing is left of one of their operands, and why they stay in float."""
        integer = frozenset(plan.layers)
        for node in self._model.graph:
            if not is_op(node, "Concat") or node.name not in integer:
                continue
            result = name_of(node.outputs[0])
            least = _LEAST_STEPS * float(grids[result].scale[0])
            for name in (name_of(value) for value in node.inputs if value is not None):
                if name in grids and self._is_known(name) and 0 < self._largest(name) < least:
                    yield name_of(node), f'nothing would be left of "{name}" on the grid of "{result}"'


def layers_with_weights(prepared: ir.Model, plan: QdqPlan) -> list[Layer]:
    """The quantized layers of a normalized model whose weight is quantized too."""
    chosen = frozenset(plan.layers)
    return [layer_of(node) for node in prepared.graph if node.name in chosen and node.op_type in WEIGHT_OPS]


def _solve_weight(layer: Layer, table: QdqTarget, data: QParams, least: Floats, calibration: Calibration) -> WeightGrid:
    """The grid of a layer's weight as rows of output channels, and its integers where they are not the nearest.

    data: the grid of what the layer reads. least: float32[C], the least scales of the rows. Raises ValueError where
    there is none.
    """
    solved, request = calibration.solved, calibration.request

    def rows() -> Floats:
        return kernel_rows(layer.array(), layer.node)

    digest, largest = solved.weights.told(layer, rows)
    settings = request.layer((layer.name,))
    bits = table.weight.bits if settings is None else settings.weight.num_bits
    spec = _weight_spec(largest, replace(table.weight, bits=bits, channel_axis=0))
    if request.reduce_range and bits > _SAFE_BITS:
        params, integers = solve_pairs(rows(), spec, least)
        grid = WeightGrid(params=params, integers=integers)
    else:
        params = solved.weight_by_digest(solve_weight_mse if settings is None else solve_arq, rows, digest, spec)
        params = QParams(scale=np.maximum(params.scale, least), zero_point=params.zero_point, spec=spec)
        grid = calibration.tuning.weight(layer.name, params, rows) or WeightGrid(params=params)
    steps = data.scale.astype(np.float64) * params.scale.astype(np.float64)
    if steps.min() < float(_NORMAL.tiny) or steps.max() > float(_NORMAL.max):
        raise ValueError(f"its products are out of float32: steps of {steps.min():.3g} to {steps.max():.3g}")
    return grid


def _weight_spec(most: float, widest: QSpec) -> QSpec:
    """The grid of a weight of such magnitudes. Raises ValueError where there is none."""
    largest = most / widest.qmax
    if 0 < largest < widest.least_scale:
        raise ValueError(f"every weight would round to zero: the largest is {largest * widest.qmax:.3g}")
    return replace(widest, least_scale=max(widest.least_scale, min(FLT_EPSILON, _NOTHING * largest)))


def _least_scale(bias: Array | None, table: QdqTarget, data: QParams, channels: int) -> Floats:
    """float32[C]: below it the bias would leave int32, as in a channel whose weights are next to nothing.

    Where the file has it in float32, a runtime may make integers of it all the same, as ONNX Runtime does.
    """
    if bias is not None and not np.isfinite(bias).all():
        raise ValueError("the bias holds NaN or Inf")
    if bias is None:
        return np.zeros(channels, np.float32)
    least = np.abs(bias.reshape(-1).astype(np.float64)) / (_BIAS_LIMIT * data.scale.astype(np.float64))
    if least.max(initial=0.0) > table.weight.most_scale:
        raise ValueError(f"the bias is too large for inputs on a grid of {float(data.scale[0]):.3g}")
    return least.astype(np.float32)


def _solve_constant(node: ir.Node, place: int, table: QdqTarget, activations: Mapping[str, QParams]) -> QParams:
    """The grid of a constant operand of a sum or a product, its own; that of a concatenation is its output's.

    Raises ValueError where there is none.
    """
    array, result = array_of(constant_input(node, place)), name_of(node.outputs[0])
    if node.op_type == "Concat" and result in activations:
        if np.isnan(array).any():
            raise ValueError("it holds NaN")
        return activations[result]
    params = params_of_range(float(array.min()), float(array.max()), table.activation)
    if node.op_type == "Add" and result in activations and params.scale > _MOST_RATIO * activations[result].scale:
        raise ValueError("it is too large beside the sum")  # a mask: kernels multiply by the ratio of both scales
    return params
