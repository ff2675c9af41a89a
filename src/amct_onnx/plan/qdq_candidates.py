"""The nodes that a Q/DQ target could compute on integers, with what they read and give, and why others cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from amct_onnx.graph.access import is_op, name_of
from amct_onnx.graph.constants import constant_branches, constant_tensor
from amct_onnx.graph.kernels import slow_kernel, wrong_kernel
from amct_onnx.graph.layer_view import WEIGHT_OPS, layer_of
from amct_onnx.graph.layers import CONSTANT, LAYER_OPS, candidates
from amct_onnx.graph.layout import fixed_layouts
from amct_onnx.graph.product_sums import bias_index, only_sum
from amct_onnx.graph.qdq_grids import commutes
from amct_onnx.graph.ranks import ranks
from amct_onnx.graph.tensors import shape_of
from amct_onnx.values.layers import LayerTraits
from amct_onnx.values.qdq_tables import QdqRule, QdqTarget

CLAMPS = ("Relu", "Clip")
_BIAS = QdqRule(output="free")  # of an Add that goes into the kernel of a product


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node of a type that the target has a rule for.

    reason: why it cannot be quantized, None if it can. data: its variable inputs that may be quantized, with their
    indices. constants: the indices of its constant inputs that are quantized with it. results: its outputs, or those of
    the Relu or Clip that the target takes into the kernel. product: the MatMul whose bias an Add adds.
    """

    name: str
    node: ir.Node
    rule: QdqRule
    reason: str | None
    data: tuple[tuple[int, ir.Value], ...]
    constants: tuple[int, ...]
    results: tuple[ir.Value, ...]
    product: str = ""


class Candidates:
    """All candidates of a model (`all`, in graph order), and what is known of its layers and products.

    biases, flat: as a `QdqPlan` has them, for all products that can be quantized.
    """

    def __init__(self, model: ir.Model, target: QdqTarget, off: Mapping[str, str], in_float: Mapping[str, str]) -> None:
        self.graph, self.target, self.off, self.in_float = model.graph, target, off, in_float
        # An integer kernel that ends in a QuantizeLinear is one of ONNX Runtime, or written for it too.
        self.fixed = fixed_layouts(model.graph) if target.rules["Conv"].output == "required" else {}
        self.constant = constant_branches(model)
        self.layers = {layer.name: layer for layer in candidates(model)}
        self.order = [name_of(node) for node in model.graph.all_nodes()]
        nodes = (node for node in model.graph if is_op(node, *target.rules) and not self._is_bookkeeping(node))
        found = [self._candidate(node, self.layers.get(name_of(node))) for node in nodes]
        self.biases: dict[str, tuple[str, int]] = {}
        self.flat = frozenset(self._find_biases(found) if target.int32_bias else ())
        products = {name: product for product, (name, _) in self.biases.items()}
        self.all = [self._with_product(candidate, products.get(candidate.name)) for candidate in found]

    def _candidate(self, node: ir.Node, traits: LayerTraits | None) -> Candidate:
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
        return Candidate(
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
        if self.target.runs_here and (slow := slow_kernel(node)) is not None:
            return slow
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

    def _find_biases(self, candidates: Sequence[Candidate]) -> Iterator[str]:
        """Enter the Adds that go into the kernels of products; the products that may have two dimensions."""
        known = ranks(self.graph)
        refused = {candidate.name for candidate in candidates if candidate.reason is not None}
        for candidate in candidates:
            node = candidate.node
            if candidate.reason is not None or not is_op(node, "MatMul"):
                continue
            rank, behind = known.get(node.outputs[0]), only_sum(node)
            if rank is None or rank <= 2:
                yield candidate.name
            if behind is None or behind.name in refused:
                continue
            if (index := bias_index(layer_of(node), rank)) is not None:
                self.biases[candidate.name] = name_of(behind), index

    def _with_product(self, candidate: Candidate, product: str | None) -> Candidate:
        if product is None:
            return candidate
        results = (self._result(candidate.node.outputs[0], _BIAS),)
        return replace(candidate, rule=_BIAS, data=(), constants=(), results=results, product=product)

    def _is_bookkeeping(self, node: ir.Node) -> bool:
        """Arithmetic on shapes, indices and masks, or on constants alone: nobody would expect it to be quantized."""
        types = {value.dtype for value in (*node.inputs[:1], *node.outputs) if value is not None}
        alone = node.op_type not in LAYER_OPS and node.outputs[0] in self.constant
        return alone or any(t is not None and not t.is_floating_point() for t in types)

    def _result(self, value: ir.Value, rule: QdqRule) -> ir.Value:
        """What stands for an output: that of the Relu or Clip behind it, if that can go into the grid."""
        clamp = self.absorbable(value, rule)
        return value if clamp is None else clamp.outputs[0]

    def absorbable(self, value: ir.Value, rule: QdqRule) -> ir.Node | None:
        uses = list(value.uses())
        if rule.output not in ("required", "free") or len(uses) != 1 or value.is_graph_output():
            return None
        clamp = uses[0].node
        if clamp.graph is not self.graph or clamp.op_type not in self.target.absorbs or not is_op(clamp, *CLAMPS):
            return None
        bounds = clamp.inputs[1:]
        fixed = all(bound is None or _is_scalar(bound) for bound in bounds)
        return clamp if fixed and clamp.inputs[0] is value else None


def _is_scalar(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and shape_of(tensor) in ((), (1,))
