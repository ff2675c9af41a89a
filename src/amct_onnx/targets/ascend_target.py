"""Target ascend of `quantize`: the layers that AMCT's functions would quantize, with factors from given statistics.

Observers of AMCT's functions see the network with rounded weights. Here statistics are of the float network, so that
one calibration serves every target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import CalibrationError, LayerError, ModelError
from amct_onnx.files.config_json import default_settings
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.access import input_of, is_op, is_standard, name_of, read_on_the_way_to
from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import as_layer
from amct_onnx.graph.layers import is_product
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.passes.share_weights import share_weights
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.numerics.activations.minmax import params_of_range
from amct_onnx.numerics.activations.solve import solve_activation
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.settings import Ifmr, Mse, Settings
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.observe.collectors import activation_factors
from amct_onnx.plan.ascend_layers import check_tensors, layer_decisions, plan_ascend, refuse_fused_tensors
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.run.deployed import open_deployed
from amct_onnx.targets.ascend_model import AscendModel, ascend_files, write_ascend_files
from amct_onnx.targets.ascend_weights import quantize_weights
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.float_units import Unit, Units
from amct_onnx.targets.record_factors import quantized_layers, quantized_tensor
from amct_onnx.targets.target import Lowered, Target, all_in_float, without_suffix
from amct_onnx.targets.to_integers import integer_bias
from amct_onnx.values.ascend_table import ASCEND
from amct_onnx.values.findings import WeightGrid
from amct_onnx.values.layers import Decision, GraphFacts, ObservedTensor, QuantizedLayer, QuantPlan
from amct_onnx.values.request import Request
from amct_onnx.values.roundings import Roundings

_CHOICES = ("Softmax", "LogSoftmax", "ArgMax", "TopK", "Hardmax")
_PASSED = ("Add", "Sub", "Mul", "Div", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity")
_TWO_OPERANDS = "products of two activations are quantized where a configuration asks for it"
_RECURRENT = "its states are observed by AMCT's functions only: use quantize_model for it"


@dataclass(frozen=True, kw_only=True, eq=False)
class AscendLowered(Lowered):
    """The quantized layers with their factors; `floats` is the same model with float weights."""

    factored: AscendModel
    floats: ir.Model
    ranges: Mapping[tuple[str, ...], tuple[float, float]]

    def model(self) -> ir.Model:
        model = self.factored.deploy()
        share_weights(model)
        return model

    def save(self, prefix: str) -> tuple[str, ...]:
        return write_ascend_files(self.factored, without_suffix(prefix), shared=True)

    def session(self) -> Any:
        return open_deployed(self.factored.deploy())

    def exact_session(self, model: ir.Model | None = None) -> Any:
        return self.session() if model is None else open_deployed(model)

    def spans(self) -> Mapping[tuple[str, ...], tuple[float, float]]:
        return self.ranges

    def units(self) -> Units:
        """A layer rounds its weight, and its input as it reads it; so every layer is a unit, whatever others do."""
        nodes, rounded = index_graph(self.floats).nodes, index_graph(self.factored.model).nodes
        units, constants = [], {}
        for layer in self.factored.layers:
            node, name = nodes[layer.name], layer.name
            weight = constant_value(rounded[name].inputs[1]) if layer.weight is not None else None
            if weight is not None:
                constants[name] = {1: weight}
            reads = {(name, 0): layer.activation}
            if layer.second is not None:
                reads[name, 1] = layer.second
            units.append(
                Unit(
                    name=name,
                    op_type=node.op_type,
                    nodes=(name,),
                    constants=Roundings(constants=frozenset([name] if weight is not None else [])),
                    tensors=Roundings(reads=reads),
                    last=name_of(node.outputs[0]),
                    holders=(name,),
                )
            )
        return Units(model=self.floats.clone(), units=tuple(units), constants=constants)


class AscendTarget(Target):
    """Ascend chips, by `ASCEND`, their table."""

    name = ASCEND.name
    usual = Ifmr()

    def files(self, prefix: str) -> tuple[str, ...]:
        return ascend_files(without_suffix(prefix))

    def decisions(self, source: FusedModel, request: Request) -> tuple[Decision, ...]:
        decisions = layer_decisions(source.facts, _settings(source.facts, request, {}))
        return tuple(_explained(decision, source.facts, request, {}) for decision in decisions)

    def observed(self, source: FusedModel) -> Iterable[str]:
        for node in source.model.graph:
            traits = source.facts.supported.get(name_of(node)) if is_standard(node) else None
            if traits is not None and not is_product(node) and node.op_type not in RECURRENT_OPS:
                yield name_of(input_of(node, 0))

    def wide_layers(self, calibration: Calibration) -> frozenset[str]:
        """Those whose type has 16 bits, and whose sums stay in int32."""
        able = [name for name, traits in calibration.source.facts.supported.items() if traits.supports_int16]
        request = replace(calibration.request, wide=tuple(able))
        factored = self.solve(replace(calibration, request=request)).factored
        nodes = index_graph(factored.model).nodes
        return frozenset(
            layer.name for layer in factored.layers if layer.name in able and _fits(nodes[layer.name], layer)
        )

    def check(self, source: FusedModel, request: Request) -> None:
        request.refuse_for(self.name, integers=False)
        if request.settings is None:
            self.decisions(source, request)  # refuses a model of which it supports no layer

    def solve(self, calibration: Calibration) -> AscendLowered:
        self.check(calibration.source, calibration.request)
        in_float = _reads_no_grid(calibration)
        while True:
            try:
                return self._solve(calibration, in_float)
            except LayerError as error:
                if error.layer in in_float:
                    raise
                in_float[error.layer] = error.reason

    def _solve(self, calibration: Calibration, in_float: Mapping[str, str]) -> AscendLowered:
        """The model with the layers of `in_float` in float. Raises LayerError for another one that has to be."""
        request, facts = calibration.request, calibration.source.facts
        settings = _settings(facts, request, in_float)
        decisions = layer_decisions(facts, settings)
        if not (in_float or settings.tensor_quantize or any(decision.quantized for decision in decisions)):
            told = [_explained(decision, facts, request, in_float) for decision in decisions]
            raise ModelError(all_in_float(calibration.source, self.name, told))
        check_tensors(calibration.source.source.model, facts, settings)
        fused = calibration.source
        if request.settings is not None and not fused.factors:  # the settings may say what is fused
            fused = fused.source.fuse(settings)
        model = fused.model.clone()
        refuse_fused_tensors(model, settings)
        normalize_layers(model, frozenset(decision.layer for decision in decisions if decision.quantized))
        floats, plan = model.clone(), plan_ascend(model, decisions, settings)
        better = partial(_better_weight, calibration, _heads(model)) if request.allows_recipe else None
        weights = quantize_weights(model, plan, facts, better)
        records = dict(weights.records)
        nodes, ranges = index_graph(model).nodes, dict[tuple[str, ...], tuple[float, float]]()
        for tensor in plan.observed:
            group = [other for other in plan.observed if other.joint == tensor.joint] if tensor.joint else [tensor]
            values = [input_of(nodes[t.node], t.input_index) for t in group]
            params = _activation(tensor, values, calibration, facts)
            ranges[tuple(map(name_of, values))] = params.span
            half = any(facts.layers[key].half for key in tensor.keys if key in facts.layers)
            factors = activation_factors(params, tensor.stamp, "FLOAT16" if half else "FLOAT32")
            for key in tensor.keys:
                records[key] = replace(records[key], **factors)
        layers = quantized_layers(facts, records, plan.layers)
        for layer in layers:
            integer_bias(nodes[layer.name], layer)  # where it leaves int32, that is known before a file is written
        decided = tuple(_explained(decision, facts, request, in_float) for decision in decisions)
        return AscendLowered(
            factored=AscendModel(
                model=model,
                layers=layers,
                origins=fused.origins or {},
                tensors=tuple(quantized_tensor(key, records[key]) for key in _tensor_keys(plan)),
                half=settings.fakequant_precision_mode == "FORCE_FP16_QUANT",
            ),
            floats=floats,
            ranges=FrozenDict(ranges),
            records=FrozenDict(records),
            weights=weights.better,
            rows=weights.better,
            decisions=decided,
            notes=(*plan.notes, *weights.notes, *calibration.told(decided, in_float.values())),
        )


def _reads_no_grid(calibration: Calibration) -> dict[str, str]:
    """The layers that read a tensor which can have no grid, and why."""
    found, supported = {}, calibration.source.facts.supported
    for node in calibration.source.model.graph if calibration.in_float else ():
        if node.name in supported:
            read = node.inputs[: 2 if is_product(node) else 1]
            reasons = (calibration.in_float.get(value.name or "") for value in read if value is not None)
            if reason := next(filter(None, reasons), None):
                found[name_of(node)] = reason
    return found


def _settings(facts: GraphFacts, request: Request, in_float: Mapping[str, str]) -> Settings:
    """The settings of all layers: what is skipped is off, and so are layers whose states nobody observed."""
    settings = request.settings or default_settings(facts)
    recurrent = {name for name, traits in facts.layers.items() if traits.op_type in RECURRENT_OPS}
    off = {*request.skip_layers, *request.searched, *recurrent, *in_float}
    layers = {
        name: replace(entry, quant_enable=entry.quant_enable and name not in off)
        for name, entry in settings.layers.items()
    }
    for name in request.wide:
        if name in layers and facts.layers[name].supports_int16:
            layers[name] = replace(layers[name], activation=replace(layers[name].activation, num_bits=16))
    return replace(settings, layers=FrozenDict(layers))


def _heads(model: ir.Model) -> frozenset[str]:
    """The layers behind which no other layer with a weight is, those whose outputs a Softmax compares, and those that
    have the same weight as one of these: the file has it once."""
    layers = [node for node in model.graph if as_layer(node) is not None or is_op(node, *RECURRENT_OPS)]
    used = read_on_the_way_to(layers)
    heads = [node for node in layers if used.isdisjoint(node.outputs) or _is_compared(node)]
    return frozenset(name_of(node) for node in layers if node in heads or any(_same_weight(node, h) for h in heads))


def _same_weight(one: ir.Node, two: ir.Node) -> bool:
    first, second = as_layer(one), as_layer(two)
    if first is None or second is None or first.shape != second.shape:
        return False
    return first.weight is second.weight or np.array_equal(first.array(), second.array())


def _is_compared(layer: ir.Node) -> bool:
    """Whether the outputs of a layer, perhaps moved or with something added, are the scores of a choice."""
    waiting, seen = list(layer.outputs), set(layer.outputs)
    while waiting:
        for node in waiting.pop().consumers():
            if is_op(node, *_CHOICES):
                return True
            new = [value for value in node.outputs if value not in seen] if is_op(node, *_PASSED) else []
            seen.update(new)
            waiting += new
    return False


def _better_weight(
    calibration: Calibration, heads: Collection[str], layer: str, rows: Floats, spec: QSpec
) -> WeightGrid:
    """The grid of least squared error, with the integers that were found for it.

    A head with one scale for all classes keeps that of its extremes, as AMCT has it. Least squares clips the largest
    weights, which belong to few classes or features. Inputs are large along the weights of their class, so just there
    the output is wrong by much more than the error of the weights says; and nothing behind a head makes up for it.
    """
    one_scale = spec.channel_axis is None
    params = calibration.solved.weight(solve_arq if one_scale and layer in heads else solve_weight_mse, rows, spec)
    tuned = calibration.tuning.weight(layer, params)
    return WeightGrid(params=params) if tuned is None or tuned.integers is None else tuned


def _activation(
    tensor: ObservedTensor, values: Sequence[ir.Value], calibration: Calibration, facts: GraphFacts
) -> QParams:
    """The grid of a tensor, from what `values` held."""
    request, names = calibration.request, tuple(map(name_of, values))
    found = calibration.tuning.algorithm or Mse()
    solver = request.algorithm or (found if request.settings is None else tensor.activation.solver)
    settings = replace(tensor.activation, solver=solver)
    if (span := calibration.tuning.ranges.get(names)) is not None:
        return params_of_range(*span, QSpec(bits=settings.num_bits, symmetric=not settings.asymmetric))
    key, known = (names, settings), calibration.solved.activations
    try:
        if key not in known:
            known[key] = solve_activation(calibration.statistic(values), settings)
    except ValueError as error:
        layer = next((key for key in tensor.keys if key in facts.layers), None)
        if layer is None:
            raise CalibrationError(f'Tensor "{tensor.keys[0]}": {error}.') from error
        reason = f'tensor "{values[0].name}": {error}'
        raise LayerError(f'Layer "{layer}": {reason}.', layer=layer, reason=reason) from error
    return known[key]


def _tensor_keys(plan: QuantPlan) -> Iterable[str]:
    """The tensors of float nodes, in the order in which they are observed."""
    return dict.fromkeys(key for tensor in plan.observed for key in tensor.keys if key in plan.tensors)


def _explained(decision: Decision, facts: GraphFacts, request: Request, in_float: Mapping[str, str]) -> Decision:
    """The decision with the reason in the words of who decided; that of `layer_decisions` is a configuration."""
    traits, reason = facts.layers[decision.layer], decision.reason
    if traits.reason is None and not decision.quantized and request.settings is None:
        reason = request.off().get(decision.layer, _TWO_OPERANDS if traits.two_operands else reason)
    recurrent = decision.layer in facts.supported and traits.op_type in RECURRENT_OPS
    return replace(decision, reason=_RECURRENT if recurrent else in_float.get(decision.layer, reason))


def _fits(node: ir.Node, layer: QuantizedLayer) -> bool:
    try:
        integer_bias(node, layer)
    except ModelError:
        return False
    return True
