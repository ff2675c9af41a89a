"""Decide which nodes of a model a Q/DQ target computes on integers, and which tensors are quantized for them.

A convolution or a product with a weight is always quantized if it can be: it leads. Other nodes follow. A sum, a
pooling or a concatenation is computed on integers where its operands are integers already. An operator that moves or
picks elements is also computed on integers where its result is wanted quantized: the QuantizeLinear then stands in
front of it, and a tensor is quantized once. What is picked decides about the range of such a tensor, for rounding and
clipping may as well stand in front of a maximum as behind it: what it never picks, as a border of -65504 around an
image, takes no part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.access import input_of, is_op, name_of
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.graph.layers import CONSTANT, INSIDE, LAYER_OPS
from amct_onnx.plan.lookups import find_lookups
from amct_onnx.plan.qdq_candidates import CLAMPS, Candidate, Candidates
from amct_onnx.values.layers import Decision
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.qdq_tables import QdqTarget

_ALONE = "a tensor that it reads is in float anyway"
_FOR_FLOATS = "what reads it computes in floats"
_NOT_LAST = "ONNX Runtime takes longer for it in integers where no convolution has put the channels last"
# What channels that are last, as ONNX Runtime puts them for a convolution, do not get through.
MOVES_CHANNELS = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Gemm", "MatMul", "ReduceMax"}
)
_ELEMENTWISE = frozenset({"Add", "Mul", "Sigmoid", "LeakyRelu"})
_KEEP_LAST = frozenset({"MaxPool", "Resize"})  # ONNX Runtime moves the channels behind these in any case,
_JOIN_LAST = frozenset({"Add", "Mul"})  # and behind these where two operands have them last
_PICKS = frozenset({"MaxPool", "ReduceMax", "Slice", "Split", "Gather"})  # what comes out is a part of what goes in
NONE: Mapping[str, str] = FrozenDict()


def plan_qdq(
    model: ir.Model,
    target: QdqTarget,
    *,
    off: Mapping[str, str] = NONE,
    in_float: Mapping[str, str] = NONE,
    refused: Mapping[str, str] = NONE,
) -> QdqPlan:
    """The plan of a fused float model whose nodes are named.

    off: nodes that stay in float as the user or a search wants it. in_float: tensors that do, and refused: more such
    nodes. All with the reason, as a clause about the node.
    """
    found, in_vain = Candidates(model, target, {**off, **refused}, in_float), dict[str, str]()
    while True:
        planner = _Planner(found, in_vain)
        planner.join_all()
        more = dict.fromkeys(planner.in_vain(), _FOR_FLOATS)
        if not more:
            return planner.plan()
        in_vain.update(more)


def _in_front_of_convolutions(found: Candidates) -> frozenset[ir.Value]:
    """The tensors from which a convolution in integers is reached, and no node that moves channels lies in between."""
    open_nodes = {candidate.name for candidate in found.all if candidate.reason is None}
    reached: set[ir.Value] = set()
    for node in reversed(found.graph):
        passes = is_op(node, *CLAMPS) or (node.name in open_nodes and node.op_type not in MOVES_CHANNELS)
        if passes and (is_op(node, "Conv") or not reached.isdisjoint(node.outputs)):
            reached.update(value for value in node.inputs if value is not None)
    return frozenset(reached)


class _Planner:
    """What has been decided so far: the nodes on integers by name, what they read, and the quantized tensors."""

    def __init__(self, found: Candidates, refused: Mapping[str, str]) -> None:
        self.found, self.target, self.refused = found, found.target, refused
        self.tensors: dict[ir.Value, None] = {}  # in the order in which they were found
        self.integer: dict[str, Candidate] = {}
        self.made: dict[ir.Value, Candidate] = {}  # by kernels that give integers, up to a clamp that they take in
        self.reads: set[tuple[str, int]] = set()
        self.last: set[ir.Value] = set()  # tensors of integers with the channels last, if ONNX Runtime leaves them so:
        self.surely_last: set[ir.Value] = set()  # those where it does, whatever comes behind
        self.convolved = _in_front_of_convolutions(found)  # and those where a convolution behind wants it
        self.slow: dict[str, str] = {}  # nodes that do not join for that reason
        self.picked: dict[ir.Value, tuple[ir.Value, ...]] = {}  # what `_picked` has found, once all has joined

    def join_all(self) -> None:
        """Quantize what leads, then what follows, until nothing more follows."""
        size = -1
        while size != len(self.integer):
            size = len(self.integer)
            for candidate in self.found.all:
                if self._is_open(candidate) and self._joins(candidate):
                    self._join(candidate)

    def _is_open(self, candidate: Candidate) -> bool:
        name = candidate.name
        return candidate.reason is None and name not in self.integer and name not in self.refused

    def in_vain(self) -> list[str]:
        """Elementwise nodes from which no integers get to a layer, a pool or an output of the model.

        Rounding costs accuracy in each of them, and a kernel of floats is as fast.
        """
        waiting = {name: candidate for name, candidate in self.integer.items() if self._passes_on(candidate)}
        paying = self.integer.keys() - waiting.keys()
        size = -1
        while size != len(paying):
            size = len(paying)
            for name, candidate in reversed(waiting.items()):
                if name not in paying and any(self._pays(value, paying) for value in candidate.results):
                    paying.add(name)
        return [name for name, found in waiting.items() if name not in paying and is_op(found.node, *_ELEMENTWISE)]

    def _passes_on(self, candidate: Candidate) -> bool:
        """Whether a kernel of integers is there for what comes behind it."""
        kind = candidate.rule.output
        return kind == "same" or (kind == "required" and is_op(candidate.node, *_ELEMENTWISE))

    def _pays(self, value: ir.Value, paying: Collection[str]) -> bool:
        places = ((name_of(use.node), use.idx) for use in value.uses())
        return value.is_graph_output() or any(place in self.reads and place[0] in paying for place in places)

    def _joins(self, candidate: Candidate) -> bool:
        if candidate.product:
            return candidate.product in self.integer
        if candidate.rule.leads:
            return True
        values = [value for _, value in candidate.data]
        if self.target.runs_here and is_op(candidate.node, "MaxPool"):
            wanted = self.last if self.convolved.issuperset(candidate.results) else self.surely_last
            if all(value in self.tensors for value in values) and not wanted.issuperset(values):
                self.slow[candidate.name] = _NOT_LAST
            return wanted.issuperset(values)
        if candidate.rule.output == "same":
            return all(v in self.tensors for v in values) or any(v in self.tensors for v in candidate.results)
        if candidate.rule.inputs == "branch":
            return self._fused_input(candidate) is not None
        if candidate.rule.output == "float":
            return all(self._is_near(value) for value in values)
        return all(value in self.tensors for value in values)

    def _join(self, candidate: Candidate) -> None:
        self.integer[candidate.name] = candidate
        fused = self._fused_input(candidate) if candidate.rule.inputs == "branch" else None
        for index, value in candidate.data:
            if index != fused:
                self.tensors[value] = None
                self.reads.add((candidate.name, index))
        self.reads.update((candidate.name, index) for index in candidate.constants)
        if candidate.rule.output in ("required", "same"):
            self.tensors.update(dict.fromkeys(candidate.results))
        kind, data = candidate.node.op_type, [value for _, value in candidate.data]
        if kind == "Conv" or (kind not in MOVES_CHANNELS and data and self.last.issuperset(data)):
            self.last.update(candidate.results)
        keeps = kind in _KEEP_LAST or (kind in _JOIN_LAST and len(data) > 1)
        if kind == "Conv" or (keeps and self.surely_last.issuperset(data)):
            self.surely_last.update(candidate.results)
        if candidate.rule.output != "float":
            self.made.update(dict.fromkeys(candidate.results, candidate))

    def _fused_input(self, candidate: Candidate) -> int | None:
        """The operand of a sum whose producer, quantized and read by nobody else, takes the sum into its kernel."""
        for index, value in reversed(candidate.data):
            producer = value.producer()
            alone = len(value.uses()) == 1 and not value.is_graph_output()
            if alone and producer is not None and producer.name in self.integer and producer.op_type in WEIGHT_OPS:
                return index
        return None

    def _is_near(self, value: ir.Value) -> bool:
        """Quantized, or made by a quantized node, up to a clamp."""
        producer = value.producer()
        if is_op(producer, *CLAMPS) and value not in self.tensors:
            value = input_of(producer, 0)
            producer = value.producer()
        return value in self.tensors or (producer is not None and producer.name in self.integer)

    def plan(self) -> QdqPlan:
        """What has been decided."""
        integer = {value for value in self.made if value in self.tensors}
        # A sum need not be rounded for those that read it in float: its kernel gives floats as well.
        integer -= {value for value in integer if self.made[value].product and self._is_seen(value)}
        absorbed = {
            name_of(clamp): candidate.name
            for candidate in self.integer.values()
            for value in candidate.node.outputs
            if (clamp := self.found.absorbable(value, candidate.rule)) is not None and clamp.outputs[0] in integer
        }
        lookups = self._lookups()
        constants = frozenset((c.name, index) for c in self.integer.values() for index in c.constants)
        groups = list(self._groups())
        return QdqPlan(
            decisions=tuple(self._decisions(lookups)),
            lookups=frozenset(name for name, reason in lookups.items() if reason is None),
            groups=tuple(groups),
            also_observed=tuple(self._perhaps_picked({name for group in groups for name in group.sources})),
            reads=frozenset(self.reads),
            constants=constants,
            integer=frozenset(map(name_of, integer)),
            absorbed=absorbed,
            biases=FrozenDict({name: place for name, place in self.found.biases.items() if name in self.integer}),
            flat=self.found.flat & self.integer.keys(),
        )

    def _lookups(self) -> dict[str, str | None]:
        """Why the tables of lookups stay in float, None where they do not, by node."""
        layers = {name for name, candidate in self.integer.items() if candidate.rule.weight_ranks}
        found = self.found
        return find_lookups(found.graph, self.target, layers=layers, constants=found.constant, off=found.off)

    def _decisions(self, lookups: Mapping[str, str | None]) -> Iterator[Decision]:
        refused = {**self.slow, **self.refused}
        found = {c.name: c.reason or refused.get(c.name, _ALONE) for c in self.found.all}
        found |= {name: reason for name, reason in lookups.items() if reason is not None}
        others = {name: layer for name, layer in self.found.layers.items() if name not in found}
        for name, layer in others.items():
            reason = layer.reason or ""
            no_rule = layer.op_type in LAYER_OPS and layer.op_type not in self.target.rules
            if no_rule and reason not in (INSIDE, CONSTANT):
                reason = f"{self.target.name} has no integer {layer.op_type}"
            found[name] = self.found.off.get(name, reason)
        for name in self.found.order:
            if name in self.integer or lookups.get(name, "") is None:
                yield Decision(layer=name, quantized=True)
            elif name in found:
                yield Decision(layer=name, quantized=False, reason=found[name])

    def _groups(self) -> Iterator[TensorGroup]:
        parents = {value: value for value in self.tensors}
        moved: set[ir.Value] = set()
        for candidate in self.integer.values():
            if candidate.rule.output == "same":
                values = [value for _, value in candidate.data]
                for value in (*values, *candidate.results):
                    parents[_root(parents, value)] = _root(parents, values[0])
                if not candidate.constants:
                    moved.update(candidate.results)
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in self.tensors:
            members.setdefault(_root(parents, value), []).append(value)
        for group in members.values():
            sources = (part for value in group if value not in moved for part in self._picked_of(value) or (value,))
            yield TensorGroup(tensors=tuple(map(name_of, group)), sources=tuple(dict.fromkeys(map(name_of, sources))))

    def _picked_of(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """The tensors that hold what is picked of a tensor, all that it is quantized for; () if it is not so.

        What a kernel makes of integers in any case has its own range, unless a constant may have widened that.
        """
        maker = self.made.get(value)
        if maker is not None and (not maker.constants or self._is_seen(value)):
            return ()
        return self._picked(value)

    def _picked(self, value: ir.Value) -> tuple[ir.Value, ...]:
        waiting = [value]
        while waiting:
            current = waiting[-1]
            results = self._moved_to(current)
            unknown = [part for part in results if part not in self.picked and not self._is_seen(part)]
            if current in self.picked or not unknown:
                self.picked.setdefault(waiting.pop(), self._parts(results))
            else:
                waiting += unknown
        return self.picked[value]

    def _moved_to(self, value: ir.Value) -> dict[ir.Value, Candidate]:
        """What nodes on integers make of the elements of a tensor; nothing if one computes with them."""
        uses = [name_of(use.node) for use in value.uses() if (name_of(use.node), use.idx) in self.reads]
        readers = [self.integer[name] for name in uses if name in self.integer]
        if len(readers) < len(uses) or any(reader.rule.output != "same" for reader in readers):
            return {}
        results = ((result, reader) for reader in readers for result in reader.results)
        return {result: reader for result, reader in results if result.uses() or result.is_graph_output()}

    def _parts(self, results: Mapping[ir.Value, Candidate]) -> tuple[ir.Value, ...]:
        found: dict[ir.Value, None] = {}
        for result, reader in results.items():
            parts = () if self._is_seen(result) else self.picked[result]
            if not parts and reader.node.op_type not in _PICKS:
                return ()
            found.update(dict.fromkeys(parts or (result,)))
        return tuple(found)

    def _is_seen(self, value: ir.Value) -> bool:
        """Whether more than nodes on integers read the tensor."""
        return value.is_graph_output() or any((name_of(use.node), use.idx) not in self.reads for use in value.uses())

    def _perhaps_picked(self, sources: Collection[str]) -> Iterator[str]:
        """What else to observe: what is picked of tensors that may turn out to have no grid."""
        for candidate in self.integer.values():
            if candidate.node.op_type in _PICKS and any(self._may_hold_fills(value) for _, value in candidate.data):
                yield from (name_of(value) for value in candidate.results if value.name not in sources)

    def _may_hold_fills(self, value: ir.Value) -> bool:
        """Whether a tensor is made of more than what kernels compute: of a constant, or of what is in float."""
        waiting, seen = [value], {value}
        while waiting:
            maker = self.made.get(waiting.pop())
            if maker is None or maker.constants:
                return True
            if maker.rule.output == "same":
                waiting += [part for _, part in maker.data if part not in seen]
                seen.update(part for _, part in maker.data)
        return False


def _root(parents: Mapping[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    """What stands for all tensors that belong together."""
    while parents[value] is not value:
        value = parents[value]
    return value
