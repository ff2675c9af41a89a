"""Which roundings of a Q/DQ model belong together: the units of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.qdq_grids import GridConstant, grid_constant
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams
from amct_onnx.targets.float_units import Unit, Units
from amct_onnx.targets.lookup_tables import table_values
from amct_onnx.values.findings import TableGrid
from amct_onnx.values.qdq_plan import QdqPlan
from amct_onnx.values.qdq_tables import QdqTarget
from amct_onnx.values.roundings import Roundings


class QdqUnits:
    """Finds the units of a plan; `model` is the normalized float model, `lowered` the same with integers."""

    def __init__(
        self,
        model: ir.Model,
        plan: QdqPlan,
        table: QdqTarget,
        grids: Mapping[str, QParams],
        lowered: ir.Model,
        tables: Mapping[str, TableGrid],
    ) -> None:
        self._model, self._plan, self._target, self._grids, self._lowered = model, plan, table, grids, lowered
        self._tables = tables
        self._layers = frozenset(self._plan.layers)
        index = index_graph(model)
        self._nodes, self._order, self._values = index.nodes, index.positions, index.values
        self._elsewhere: dict[str, str] = {}  # the units of tensors that no unit makes
        self._unit_of: dict[str, str] = {}  # of quantized nodes that round, and those behind them that only move
        self._members: dict[str, list[str]] = {}

    def found(self) -> Units:
        """The units, in graph order."""
        constants = self._constants()
        for node in self._model.graph:
            if node.name in self._tables:
                self._unit_of[name_of(node)] = name_of(node)
                self._members[name_of(node)] = [name_of(node)]
            elif node.name in self._layers:
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
                    constants=Roundings(constants=frozenset(node for node in members if node in constants)),
                    tensors=self._rounding(made),
                    last=made[-1] if members and made else "",
                    holders=self._holders(members, made),
                    reads=self._reads(members, name),
                    follows=bool(members) and self._follows(members[0]),
                )
            )
        units.sort(key=lambda unit: self._order.get(unit.name, -1))
        return Units(model=self._model, units=tuple(units), constants=constants)

    def _constants(self) -> dict[str, dict[int, Array]]:
        found = {}
        for node in self._lowered.graph:
            if node.name in self._layers:
                grids = {index: grid_constant(value) for index, value in enumerate(node.inputs)}
                own = {index: grid.values() for index, grid in grids.items() if isinstance(grid, GridConstant)}
                if own:
                    found[name_of(node)] = own
        for node in self._model.graph if self._tables else ():
            if node.name in self._tables:
                found[name_of(node)] = {0: table_values(node, self._tables[name_of(node)])}
        return found

    def _assign(self, node: ir.Node, rounds: bool) -> None:
        """A node that rounds is a unit of its own; one that moves elements belongs to who makes all of them."""
        name, rule = name_of(node), self._target.rules[node.op_type]
        if rule.output != "same" or rounds:
            self._unit_of[name] = name
            self._members[name] = [name]
            return
        values = [value for value in node.inputs if value is not None and constant_tensor(value) is None]
        sources = {self._source(value) for value in (values[:1] if rule.inputs == "first" else values)}
        if len(sources) == 1:
            self._unit_of[name] = sources.pop()

    def _source(self, value: ir.Value) -> str:
        """The unit that makes a tensor, "" if none does."""
        maker = self._maker(value)
        return self._unit_of.get(name_of(maker), "") if maker is not None else ""

    def _maker(self, value: ir.Value) -> ir.Node | None:
        """The node whose kernel gives a tensor: that in front of a clamp which it takes in."""
        node = value.producer()
        if node is not None and node.name in self._plan.absorbed:
            return self._nodes[self._plan.absorbed[name_of(node)]]
        return node

    def _tensors(self) -> dict[str, list[str]]:
        """The tensors that are rounded, in graph order, by unit; those from elsewhere are units of their own."""
        wanted = {tensor for group in self._plan.groups for tensor in group.sources}
        found: dict[str, list[str]] = {}
        for name, value in self._values.items():
            if name in wanted:
                unit = self._source(value) if name in self._plan.integer else ""
                if not unit:  # a tensor may have the name of a node
                    unit = self._elsewhere[name] = name if name not in self._members else f"{name} (tensor)"
                found.setdefault(unit, []).append(name)
        return found

    def _rounding(self, tensors: Sequence[str]) -> Roundings:
        integer = {name: self._grids[name] for name in tensors if name in self._plan.integer}
        reads = {}
        for name in tensors:
            if name not in integer:
                for use in self._values[name].uses():
                    if (name_of(use.node), use.idx) in self._plan.reads:
                        reads[name_of(use.node), use.idx] = self._grids[name]
        return Roundings(tensors=integer, reads=reads)

    def _follows(self, node: str) -> bool:
        """Whether a quantized node stays in float as soon as one of the tensors that it reads does."""
        rule = self._target.rules[self._nodes[node].op_type]
        return not rule.leads and rule.inputs != "branch" and rule.output == "required"

    def _holders(self, members: Sequence[str], made: Sequence[str]) -> tuple[str, ...]:
        """The units of which each alone keeps tensors on their grid: who makes them, where its kernel has to give
        integers, and who reads them, unless it only follows."""
        rules = {self._target.rules[self._nodes[member].op_type].output for member in members}
        readers = dict.fromkeys(self._readers(made))
        if not readers or rules & {"required", "same"}:  # without a reader, the model itself gives them in integers
            readers = dict.fromkeys([*members, *readers])
        return tuple(readers) or tuple(dict.fromkeys(self._readers(made, all_of_them=True)))

    def _readers(self, tensors: Sequence[str], *, all_of_them: bool = False) -> Iterator[str]:
        """The units that want tensors in integers, perhaps behind operators that move elements; or that read them."""
        seen, waiting = set(tensors), list(reversed(tensors))
        while waiting:
            for use in self._values[waiting.pop()].uses():
                reader = name_of(use.node)
                if reader not in self._layers:
                    continue
                if self._target.rules[use.node.op_type].output != "same":
                    if all_of_them or not self._follows(reader):
                        yield self._unit_of[reader]
                else:
                    made = [name_of(value) for value in use.node.outputs if value.name not in seen]
                    seen.update(made)
                    waiting += made

    def _reads(self, members: Sequence[str], name: str) -> tuple[str, ...]:
        """The units of the tensors that nodes read."""
        found: dict[str, None] = {}
        waiting = [self._nodes[member] for member in members]
        while waiting:
            node = waiting.pop()
            for value in node.inputs:
                if value is None or constant_tensor(value) is not None:
                    continue
                unit = self._elsewhere.get(name_of(value)) or self._source(value)
                maker = self._maker(value)
                if unit:
                    found[unit] = None
                elif maker is not None and maker.name in self._layers:  # a move of several units' tensors
                    waiting.append(maker)
        return tuple(unit for unit in found if unit != name)
