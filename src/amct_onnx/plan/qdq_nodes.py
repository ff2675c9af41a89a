"""Decide which nodes of a model a Q/DQ target computes on integers, and which tensors are quantized for them.

A convolution or a product with a weight is always quantized if it can be: it leads. Other nodes follow. A sum, a
pooling or a concatenation is computed on integers where its operands are integers already. An operator that moves or
picks elements is also computed on integers where its result is wanted quantized: the QuantizeLinear then stands in
front of it, and a tensor is quantized once. What is picked decides about the range of such a tensor, for rounding and
clipping may as well stand in front of a maximum as behind it: what it never picks, as a border of -65504 around an
image, takes no part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, name_of
from amct_onnx.graph.constants import constant_branches, constant_tensor
from amct_onnx.graph.kernels import wrong_kernel
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.graph.layers import CONSTANT, INSIDE, LAYER_OPS, candidates
from amct_onnx.graph.layout import fixed_layouts
from amct_onnx.graph.qdq_grids import commutes
from amct_onnx.graph.tensors import shape_of
from amct_onnx.values.layers import Decision, LayerTraits
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.qdq_tables import QdqRule, QdqTarget

_CLAMPS = ("Relu", "Clip")
_OFF = "it is switched off by the settings"
_ALONE = "a tensor that it reads is in float anyway"
_PICKS = frozenset({"MaxPool", "ReduceMax", "Slice", "Split", "Gather"})  # what comes out is a part of what goes in
NONE: Mapping[str, str] = MappingProxyType({})


def plan_qdq(
    model: ir.Model,
    target: QdqTarget,
    *,
    off: Collection[str] = (),
    in_float: Mapping[str, str] = NONE,
    refused: Mapping[str, str] = NONE,
) -> QdqPlan:
    """The plan of a fused float model whose nodes are named.

    off: nodes that stay in float. in_float: tensors that do, and refused: more such nodes; why, as a clause about the
    node.
    """
    planner = _Planner(model, target, dict.fromkeys(off, _OFF) | dict(refused), in_float)
    planner.join_all()
    return planner.plan()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A node of a type that the target has a rule for.

    reason: why it cannot be quantized, None if it can. data: its variable inputs that may be quantized, with their
    indices. constants: the indices of its constant inputs that are quantized with it. results: its outputs, or those of
    the Relu or Clip that the target takes into the kernel.
    """

    name: str
    node: ir.Node
    rule: QdqRule
    reason: str | None
    data: tuple[tuple[int, ir.Value], ...]
    constants: tuple[int, ...]
    results: tuple[ir.Value, ...]


class _Planner:
    """What has been decided so far: the nodes on integers by name, what they read, and the quantized tensors."""

    def __init__(self, model: ir.Model, target: QdqTarget, off: Mapping[str, str], in_float: Mapping[str, str]) -> None:
        self.graph, self.target, self.off, self.in_float = model.graph, target, off, in_float
        self.tensors: dict[ir.Value, None] = {}  # in the order in which they were found
        self.integer: dict[str, _Candidate] = {}
        self.made: dict[ir.Value, _Candidate] = {}  # by kernels that give integers, up to a clamp that they take in
        self.reads: set[tuple[str, int]] = set()
        self.picked: dict[ir.Value, tuple[ir.Value, ...]] = {}  # what `_picked` has found, once all has joined
        # An integer kernel that ends in a QuantizeLinear is one of ONNX Runtime, or written for it too.
        self.fixed = fixed_layouts(model.graph) if target.rules["Conv"].output == "required" else {}
        self.constant = constant_branches(model)
        self.layers = {layer.name: layer for layer in candidates(model)}
        self.order = [name_of(node) for node in model.graph.all_nodes()]
        nodes = (node for node in model.graph if is_op(node, *target.rules) and not self._is_bookkeeping(node))
        self.candidates = [self._candidate(node, self.layers.get(name_of(node))) for node in nodes]

    def _candidate(self, node: ir.Node, traits: LayerTraits | None) -> _Candidate:
        rule = self.target.rules[node.op_type]
        inputs = [(i, value) for i, value in enumerate(node.inputs) if value is not None]
        if rule.inputs == "first" or (rule.weight_ranks and not (traits and traits.two_operands)):
            inputs = inputs[:1]
        elif node.op_type in WEIGHT_OPS:
            inputs = inputs[:2]
        fixed = [i for i, value in inputs if constant_tensor(value) is not None]
        data = tuple((i, value) for i, value in inputs if i not in fixed)
        results = tuple(self._result(value, rule) for value in node.outputs if value.name)
        reason = self.off.get(name_of(node)) or self._reason(node, rule, traits, data, fixed)
        if reason is None and self.in_float:
            wanted = [*(value for _, value in data), *(results if rule.output in ("required", "same") else ())]
            reason = next((self.in_float[name_of(value)] for value in wanted if value.name in self.in_float), None)
        return _Candidate(
            name=name_of(node),
            node=node,
            rule=rule,
            reason=reason,
            data=data,
            constants=tuple(fixed),
            results=results,
        )

    def _reason(
        self,
        node: ir.Node,
        rule: QdqRule,
        traits: LayerTraits | None,
        data: Sequence[tuple[int, ir.Value]],
        fixed: Sequence[int],
    ) -> str | None:
        """Why a node cannot be quantized, None if it can."""
        if all(value in self.constant for _, value in data):
            return CONSTANT
        if any(value.dtype not in (None, ir.DataType.FLOAT) for _, value in data):
            return "it does not compute in float32"
        if any((tensor := constant_tensor(node.inputs[i])) and tensor.dtype != ir.DataType.FLOAT for i in fixed):
            return "it does not compute in float32"
        if (place := self.fixed.get(name_of(node))) is not None:
            return f"on integers ONNX Runtime would put channels last at {place}, and fail"
        if rule.weight_ranks:
            return self._weight_reason(rule, traits)
        if len(node.outputs) > 1 and node.op_type != "Split" and any(v.uses() for v in node.outputs[1:]):
            return "its second output is in use"
        if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
            return f"{self.target.name} has no integer kernel for interpolation"
        if (mistake := wrong_kernel(node)) is not None:
            return mistake
        if node.op_type == "Pad" and not commutes(node):
            return "it pads with something else than zeros"
        return None

    def _weight_reason(self, rule: QdqRule, traits: LayerTraits | None) -> str | None:
        if traits is None:
            return "its weight is computed at run time"
        if traits.two_operands:
            return "it multiplies two activations, which costs accuracy"
        if traits.reason is not None:
            return traits.reason
        if traits.half:
            return "it computes in float16"
        if traits.weight_rank not in rule.weight_ranks:
            return f"its weight has {traits.weight_rank} dimensions, for which {self.target.name} has no integer kernel"
        return None

    def _is_bookkeeping(self, node: ir.Node) -> bool:
        """Arithmetic on shapes, indices and masks, or on constants alone: nobody would expect it to be quantized."""
        types = {value.dtype for value in (*node.inputs[:1], *node.outputs) if value is not None}
        alone = node.op_type not in LAYER_OPS and node.outputs[0] in self.constant
        return alone or any(t is not None and not t.is_floating_point() for t in types)

    def _result(self, value: ir.Value, rule: QdqRule) -> ir.Value:
        """What stands for an output: that of the Relu or Clip behind it, if that can go into the grid."""
        clamp = self._absorbable(value, rule)
        return value if clamp is None else clamp.outputs[0]

    def _absorbable(self, value: ir.Value, rule: QdqRule) -> ir.Node | None:
        uses = list(value.uses())
        if rule.output not in ("required", "free") or len(uses) != 1 or value.is_graph_output():
            return None
        clamp = uses[0].node
        if clamp.graph is not self.graph or clamp.op_type not in self.target.absorbs or not is_op(clamp, *_CLAMPS):
            return None
        bounds = clamp.inputs[1:]
        fixed = all(bound is None or _is_scalar(bound) for bound in bounds)
        return clamp if fixed and clamp.inputs[0] is value else None

    def join_all(self) -> None:
        """Quantize what leads, then what follows, until nothing more follows."""
        size = -1
        while size != len(self.integer):
            size = len(self.integer)
            for candidate in self.candidates:
                if candidate.reason is None and candidate.name not in self.integer and self._joins(candidate):
                    self._join(candidate)

    def _joins(self, candidate: _Candidate) -> bool:
        if candidate.rule.leads:
            return True
        values = [value for _, value in candidate.data]
        if candidate.rule.output == "same":
            return all(v in self.tensors for v in values) or any(v in self.tensors for v in candidate.results)
        if candidate.rule.inputs == "branch":
            return self._fused_input(candidate) is not None
        if candidate.rule.output == "float":
            return all(self._is_near(value) for value in values)
        return all(value in self.tensors for value in values)

    def _join(self, candidate: _Candidate) -> None:
        self.integer[candidate.name] = candidate
        fused = self._fused_input(candidate) if candidate.rule.inputs == "branch" else None
        for index, value in candidate.data:
            if index != fused:
                self.tensors[value] = None
                self.reads.add((candidate.name, index))
        self.reads.update((candidate.name, index) for index in candidate.constants)
        if candidate.rule.output in ("required", "same"):
            self.tensors.update(dict.fromkeys(candidate.results))
        if candidate.rule.output != "float":
            self.made.update(dict.fromkeys(candidate.results, candidate))

    def _fused_input(self, candidate: _Candidate) -> int | None:
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
        if is_op(producer, *_CLAMPS) and value not in self.tensors:
            value = input_of(producer, 0)
            producer = value.producer()
        return value in self.tensors or (producer is not None and producer.name in self.integer)

    def plan(self) -> QdqPlan:
        """What has been decided."""
        integer = {value for value in self.made if value in self.tensors}
        absorbed = {
            name_of(clamp): candidate.name
            for candidate in self.integer.values()
            for value in candidate.node.outputs
            if (clamp := self._absorbable(value, candidate.rule)) is not None and clamp.outputs[0] in integer
        }
        constants = frozenset((c.name, index) for c in self.integer.values() for index in c.constants)
        groups = list(self._groups())
        return QdqPlan(
            decisions=tuple(self._decisions()),
            groups=tuple(groups),
            also_observed=tuple(self._perhaps_picked({name for group in groups for name in group.sources})),
            reads=frozenset(self.reads),
            constants=constants,
            integer=frozenset(map(name_of, integer)),
            absorbed=absorbed,
        )

    def _decisions(self) -> Iterator[Decision]:
        found = {candidate.name: candidate.reason or _ALONE for candidate in self.candidates}
        others = {name: layer for name, layer in self.layers.items() if name not in found}
        for name, layer in others.items():
            reason = layer.reason or ""
            no_rule = layer.op_type in LAYER_OPS and layer.op_type not in self.target.rules
            if no_rule and reason not in (INSIDE, CONSTANT):
                reason = f"{self.target.name} has no integer {layer.op_type}"
            found[name] = self.off.get(name, reason)
        for name in self.order:
            if name in self.integer:
                yield Decision(layer=name, quantized=True)
            elif name in found:
                yield Decision(layer=name, quantized=False, reason=found[name])

    def _groups(self) -> Iterator[TensorGroup]:
        parents = {value: value for value in self.tensors}

        def root(value: ir.Value) -> ir.Value:
            while parents[value] is not value:
                value = parents[value]
            return value

        moved: set[ir.Value] = set()
        for candidate in self.integer.values():
            if candidate.rule.output == "same":
                values = [value for _, value in candidate.data]
                for value in (*values, *candidate.results):
                    parents[root(value)] = root(values[0])
                if not candidate.constants:
                    moved.update(candidate.results)
        members: dict[ir.Value, list[ir.Value]] = {}
        for value in self.tensors:
            members.setdefault(root(value), []).append(value)
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

    def _moved_to(self, value: ir.Value) -> dict[ir.Value, _Candidate]:
        """What nodes on integers make of the elements of a tensor; nothing if one computes with them."""
        uses = [name_of(use.node) for use in value.uses() if (name_of(use.node), use.idx) in self.reads]
        readers = [self.integer[name] for name in uses if name in self.integer]
        if len(readers) < len(uses) or any(reader.rule.output != "same" for reader in readers):
            return {}
        results = ((result, reader) for reader in readers for result in reader.results)
        return {result: reader for result, reader in results if result.uses() or result.is_graph_output()}

    def _parts(self, results: Mapping[ir.Value, _Candidate]) -> tuple[ir.Value, ...]:
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


def _is_scalar(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and shape_of(tensor) in ((), (1,))
