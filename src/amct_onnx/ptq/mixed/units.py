"""A quantized model as a float model and its roundings, in units that can be left in float.

A unit is a layer with what its kernel, or those that only go on with its result, round: its constants and the tensors
that it makes. What comes from elsewhere (the model's inputs, a float node) and is quantized is a unit of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.amct.calibration_model import fuse_model
from amct_onnx.errors import ModelError
from amct_onnx.graph.constants import constant_tensor, constant_value
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.qdq import GridConstant, grid_constant
from amct_onnx.graph.tensors import shape_of
from amct_onnx.numerics.settings import Settings
from amct_onnx.ptq.quantized_model import ASCEND_NAME, QuantizedModel
from amct_onnx.targets.to_integers import integer_bias
from amct_onnx.values.layers import QuantizedLayer
from amct_onnx.values.qdq_plan import QdqPlan
from amct_onnx.values.qdq_tables import QDQ_TARGETS, QdqTarget
from amct_onnx.values.roundings import Change

Array = npt.NDArray[Any]
# Multiplications in the time of writing one element and reading it again: bandwidth bounds what is no product.
_PER_ELEMENT = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """`nodes` go to float together, the first one gives the name and type; none for a tensor from elsewhere.

    constants, tensors: the two kinds of its roundings. last: the tensor behind all of them that others read, "" where
    there is nothing but constants. holders: the units that want `tensors` quantized, this one included. reads: the
    units whose tensors it reads.
    """

    name: str
    op_type: str
    nodes: tuple[str, ...]
    constants: Change
    tensors: Change
    last: str
    holders: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """`model` is the float model that the units round; `constants` the quantized ones, by node and input."""

    model: ir.Model
    units: tuple[Unit, ...]
    constants: Mapping[str, Mapping[int, Array]]


def units_of(quantized: QuantizedModel) -> Units:
    """The units of a quantized model, in graph order."""
    return _ascend_units(quantized) if quantized.target == ASCEND_NAME else _QdqUnits(quantized).found()


def _ascend_units(quantized: QuantizedModel) -> Units:
    """A layer rounds its weight, and its input as it reads it; so every layer is a unit, whatever others do."""
    factored, source = quantized.factored, quantized.source
    settings = quantized.choice.settings or Settings()
    model = source.start.clone()
    if settings.do_fusion:
        fuse_model(model, settings)
    normalize_layers(model, frozenset(layer.name for layer in factored.layers))
    nodes = {node.name or "": node for node in model.graph}
    rounded = {node.name or "": node for node in factored.model.graph}
    units, constants = [], {}
    for layer in factored.layers:
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
                constants=Change(constants=frozenset([name] if weight is not None else [])),
                tensors=Change(reads=reads),
                last=node.outputs[0].name or "",
                holders=(name,),
            )
        )
    return Units(model=model, units=tuple(units), constants=constants)


class _QdqUnits:
    def __init__(self, quantized: QuantizedModel) -> None:
        self._plan: QdqPlan = quantized.plan
        self._target: QdqTarget = QDQ_TARGETS[quantized.target]
        self._grids = quantized.activations
        self._lowered = quantized.lowered
        self._model = quantized.source.fused.clone()
        normalize_layers(self._model, frozenset(self._plan.layers))
        self._layers = frozenset(self._plan.layers)
        self._values = {value.name or "": value for node in self._model.graph for value in node.outputs}
        self._values |= {value.name or "": value for value in self._model.graph.inputs}
        self._nodes = {node.name or "": node for node in self._model.graph}
        self._unit_of: dict[str, str] = {}  # of quantized nodes that compute, and those behind them that only move
        self._members: dict[str, list[str]] = {}

    def found(self) -> Units:
        constants = self._constants()
        for node in self._model.graph:
            if node.name in self._layers:
                self._assign(node, node.name in constants)
        tensors = self._tensors()
        units = []
        for name in (*self._members, *(tensor for tensor in tensors if tensor not in self._members)):
            members, made = self._members.get(name, []), tensors.get(name, [])
            units.append(
                Unit(
                    name=name,
                    op_type=self._nodes[members[0]].op_type if members else "",
                    nodes=tuple(members),
                    constants=Change(constants=frozenset(node for node in members if node in constants)),
                    tensors=self._rounding(made),
                    last=made[-1] if members and made else "",
                    holders=tuple(dict.fromkeys([*([name] if members else []), *self._readers(made)])),
                    reads=self._reads(members, tensors, name),
                )
            )
        order = {node.name or "": number for number, node in enumerate(self._model.graph)}
        units.sort(key=lambda unit: order.get(unit.name, -1))
        return Units(model=self._model, units=tuple(units), constants=constants)

    def _constants(self) -> dict[str, dict[int, Array]]:
        found = {}
        for node in self._lowered.graph:
            if node.name in self._layers:
                grids = {index: grid_constant(value) for index, value in enumerate(node.inputs)}
                own = {index: grid.values() for index, grid in grids.items() if isinstance(grid, GridConstant)}
                if own:
                    found[node.name or ""] = own
        return found

    def _assign(self, node: ir.Node, rounds: bool) -> None:
        """The unit of a quantized node: its own, or the one that all its operands are from."""
        name, rule = node.name or "", self._target.rules[node.op_type]
        values = [value for value in node.inputs if value is not None and constant_tensor(value) is None]
        sources = {self._source(value) for value in values[:1] if rule.inputs == "first"} or {
            self._source(value) for value in values
        }
        only = next(iter(sources)) if len(sources) == 1 else ""
        if rule.output == "same" and not rounds:
            if only:
                self._unit_of[name] = only
            return
        if rule.leads or not only:
            self._unit_of[name] = name
            self._members[name] = [name]
        else:
            self._unit_of[name] = only
            self._members[only].append(name)

    def _source(self, value: ir.Value) -> str:
        """The unit that makes a tensor, "" if none does."""
        maker = self._maker(value)
        return self._unit_of.get(maker.name or "", "") if maker is not None else ""

    def _maker(self, value: ir.Value) -> ir.Node | None:
        """The node whose kernel gives a tensor: that in front of a clamp which it takes in."""
        node = value.producer()
        if node is not None and node.name in self._plan.absorbed:
            return self._nodes[self._plan.absorbed[node.name or ""]]
        return node

    def _tensors(self) -> dict[str, list[str]]:
        """The tensors that are rounded, in graph order, by unit; those from elsewhere are units of their own."""
        wanted = {tensor for group in self._plan.groups for tensor in group.sources}
        found: dict[str, list[str]] = {}
        for name, value in self._values.items():
            if name in wanted:
                unit = self._source(value) if name in self._plan.integer else ""
                found.setdefault(unit or name, []).append(name)
        return found

    def _rounding(self, tensors: Sequence[str]) -> Change:
        integer = {name: self._grids[name] for name in tensors if name in self._plan.integer}
        reads = {}
        for name in tensors:
            if name not in integer:
                for use in self._values[name].uses():
                    if (use.node.name or "", use.idx) in self._plan.reads:
                        reads[use.node.name or "", use.idx] = self._grids[name]
        return Change(tensors=integer, reads=reads)

    def _readers(self, tensors: Sequence[str]) -> Iterator[str]:
        """The units that read tensors in integers, perhaps behind operators that move elements."""
        for name in tensors:
            for use in self._values[name].uses():
                reader = use.node.name or ""
                if reader not in self._layers:
                    continue
                if reader in self._members.get(self._unit_of.get(reader, ""), ()):
                    yield self._unit_of[reader]
                else:
                    yield from self._readers([value.name or "" for value in use.node.outputs])

    def _reads(self, members: Sequence[str], tensors: Mapping[str, Sequence[str]], name: str) -> tuple[str, ...]:
        """The units of the tensors that nodes read."""
        found: dict[str, None] = {}
        waiting = [self._nodes[member] for member in members]
        while waiting:
            node = waiting.pop()
            for value in node.inputs:
                if value is None or constant_tensor(value) is not None:
                    continue
                unit = value.name or "" if value.name in tensors else self._source(value)
                maker = self._maker(value)
                if unit:
                    found[unit] = None
                elif maker is not None and maker.name in self._layers:  # a move of several units' tensors
                    waiting.append(maker)
        return tuple(unit for unit in found if unit != name)


def wide_layers(quantized: QuantizedModel) -> frozenset[str]:
    """The quantized layers whose activations may have 16 bits: their type has that, and their sums stay in int32."""
    if quantized.target != ASCEND_NAME:
        return frozenset()
    able = [name for name, traits in quantized.source.facts.supported.items() if traits.supports_int16]
    factored = replace(quantized, choice=replace(quantized.choice, wide=tuple(able))).factored
    nodes = {node.name: node for node in factored.model.graph}
    return frozenset(layer.name for layer in factored.layers if layer.name in able and _fits(nodes[layer.name], layer))


def _fits(node: ir.Node, layer: QuantizedLayer) -> bool:
    try:
        integer_bias(node, layer)
    except ModelError:
        return False
    return True


def operations(model: ir.Model, nodes: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What `nodes` of a model cost, in multiplications, where its tensors have these shapes."""
    return sum(_operations(node, shapes) for node in model.graph if node.name in nodes)


def _operations(node: ir.Node, shapes: Mapping[str, tuple[int, ...]]) -> int:
    def shape(value: ir.Value | None) -> tuple[int, ...]:
        tensor = constant_tensor(value)
        return shapes.get((value and value.name) or "", ()) if tensor is None else shape_of(tensor)

    result = math.prod(shape(node.outputs[0]))
    written = _PER_ELEMENT * result
    if node.op_type not in WEIGHT_OPS:
        return written
    weight = shape(node.inputs[1])
    if node.op_type == "ConvTranspose":
        return written + math.prod(shape(node.inputs[0])) * math.prod(weight[1:])
    return written + result * (math.prod(weight[1:]) if node.op_type == "Conv" else weight[-2])
