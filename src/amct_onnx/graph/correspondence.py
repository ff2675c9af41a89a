"""Which tensor of a quantized model is which one of the float model that it was made from: by structure, and by names.

Float model                      Quantized model
x -> Conv -> BatchNorm -> Relu   x -> Q -> DQ -> Conv -> Q -> DQ      the output of Relu is that of the last DQ
  -> MaxPool                                                -> MaxPool

Whoever quantizes a model leaves its operators in place by and large. Both graphs are walked from their inputs on: a
node finds the node of the same kind that reads the same tensors, whatever either is called. Names decide where several
do, and where the structure has changed too much. Operators that quantizing takes away (a folded BatchNormalization, a
Relu that the rounding does) count for the node in front of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import is_op, name_of, optional_input, producer_of
from amct_onnx.graph.constants import constant_value, is_constant
from amct_onnx.graph.qdq_grids import GridConstant, grid_constant, is_dequantize, is_quantize
from amct_onnx.numerics.arrays import Array

_PASSED = frozenset({"Identity", "Dropout", "DynamicQuantizeLinear"})
# Operators of the quantized model that do the work of another one of the float model.
_KINDS = {
    **dict.fromkeys(("ConvInteger", "FusedConv", "NhwcFusedConv"), "Conv"),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FusedMatMul"), "MatMul"),
    **dict.fromkeys(("MatMulNBits", "Gemm", "FusedGemm"), "MatMul"),
    **dict.fromkeys(("Relu", "Clip", "Max", "Min"), "clamp"),
    "DynamicQuantizeLSTM": "LSTM",
}
INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_COMMUTE = frozenset({"Add", "Mul", "Max", "Min", "Sum"})
_CLAMPS = frozenset({"Relu", "Clip"})
_AFFINE = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div"})
_MOVES = frozenset({"Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_MOST_STEPS = 8  # nodes between an integer product and its result in floats


@dataclass(frozen=True, kw_only=True)
class TensorPair:
    """A tensor of the float model, and what stands for it in the quantized one.

    tensor: its name in the float model. layer, op_type: the node that makes it, or the one with the weight where
    several do in the quantized model; "input" is the type of an input. nodes: all of them. rival: the node of the
    quantized model, "" for an input. exact: the tensor in the quantized model before it is rounded, "" where it is
    only there after rounding. rounded: what each DequantizeLinear gives of it.
    """

    tensor: str
    layer: str
    op_type: str
    nodes: tuple[str, ...]
    rival: str
    exact: str
    rounded: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Correspondence:
    """The pairs in the order of the float model, and the nodes of it that have no counterpart."""

    pairs: tuple[TensorPair, ...]
    unmatched: tuple[str, ...]


def match_models(floats: ir.Model, quantized: ir.Model) -> Correspondence:
    """The pairs of two models whose nodes are named and sorted; neither changes. `quantized` has no operators on
    integers other than ConvInteger and MatMulInteger (see `graph.read.read_qoperators`)."""
    return _Matcher(floats, quantized).run()


class _Side:
    """One of the models: what is constant, and which tensor a tensor is but for its rounding."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.constant: set[ir.Value] = {value for value in self.graph.initializers.values() if is_constant(value)}
        self.results: dict[ir.Value, ir.Value] = {}  # of integer products, by what they become in floats
        self.made: dict[ir.Value, ir.Value] = {}
        self.values: dict[str, ir.Value] = {name_of(value): value for value in self.graph.inputs if value.name}
        for node in self.graph:
            read = [value for value in node.inputs if value is not None]
            if all(value in self.constant for value in read) and not node.op_type.startswith("Random"):
                self.constant.update(node.outputs)
            self.values.update((value.name, value) for value in node.outputs if value.name)
            if is_integer_result(node):
                end = _result(node.outputs[0], cast=node.op_type in _PRODUCTS)
                self.results[end] = node.outputs[0]
                self.made[node.outputs[0]] = end

    def data(self, node: ir.Node) -> list[ir.Value]:
        """The inputs of a node that are not constant."""
        return [value for value in node.inputs if value is not None and value not in self.constant]

    def base(self, value: ir.Value, *, loose: bool = False) -> ir.Value:
        """The tensor behind what only rounds it or passes it on; loose: or casts, scales or shifts it."""
        while value not in self.results and (node := value.producer()) is not None:
            before = optional_input(node, 0)
            passed = node.op_type in _PASSED or is_quantize(node) or is_dequantize(node)
            copied = is_op(node, "Concat") and len(node.inputs) == 1  # as ours keep float nodes apart
            if copied or (is_op(node, "Clip") and is_quantize(producer_of(node, 0))):
                passed = True
            if loose and not passed and (is_op(node, "Cast") or node.op_type in _AFFINE):
                data = self.data(node)
                passed, before = len(data) == 1, data[0] if data else None
            if not passed or before is None:
                break
            value = before
        return value


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def is_integer_result(node: ir.Node) -> bool:
    """Whether a node multiplies integers, in floats or as such, so that scales behind it make numbers of the result."""
    return node.op_type in INTEGER_PRODUCTS or (node.op_type in _PRODUCTS and _holds_integers(node.inputs[0]))


def _holds_integers(value: ir.Value | None) -> bool:
    """Whether floats are rounded, and not yet multiplied by a scale again: the integers of a simulation."""
    node = None if value is None else value.producer()
    while is_op(node, "Clip", "Add", "Sub", "Cast"):
        node = producer_of(node, 0)
    return is_op(node, "Round")


def _result(value: ir.Value, *, cast: bool) -> ir.Value:
    """What an integer product becomes in floats: int32 -> Add the bias -> Cast -> Mul by the scales.

    cast: it has been cast already.
    """
    for _ in range(_MOST_STEPS):
        node = _only_reader(value)
        if node is None or not is_op(node, "Add", "Sub", "Cast", "Mul"):
            break
        if node.op_type in ("Add", "Sub") and cast:
            break
        cast |= node.op_type == "Cast"
        value = node.outputs[0]
        if node.op_type == "Mul" and cast:
            break
    return value


class _Matcher:
    """The walk: `found` has the tensor of the quantized model for each tensor of the float model."""

    def __init__(self, floats: ir.Model, quantized: ir.Model) -> None:
        self.floats, self.rivals = _Side(floats), _Side(quantized)
        self.found: dict[ir.Value, ir.Value] = {}
        self.pairs: dict[ir.Value, list[ir.Node]] = {}  # by tensor of the float model: the nodes that make it
        # By the same, where rounding does the work of a clamp: whether the tensor is that behind it.
        self.clamped: dict[ir.Value, bool] = {}
        self.taken: set[ir.Node] = set()
        self.strict: dict[tuple[object, ...], list[ir.Node]] = {}
        self.loose: dict[tuple[object, ...], list[ir.Node]] = {}
        self.readers: dict[tuple[str, ir.Value], list[ir.Node]] = {}
        self.names = {node.name: node for node in quantized.graph if node.name}
        for node in quantized.graph:
            if _inside(node):
                continue
            data = self.rivals.data(node)
            near, far = ([self.rivals.base(value, loose=loose) for value in data] for loose in (False, True))
            self.strict.setdefault(_key(node, near), []).append(node)
            self.loose.setdefault(_key(node, far), []).append(node)
            for value in {*near, *far}:
                self.readers.setdefault((_kind(node), value), []).append(node)

    def run(self) -> Correspondence:
        unmatched = []
        self._pair_inputs()
        for node in self.floats.graph:
            data = [self.floats.base(value) for value in self.floats.data(node)]
            if node.op_type in _PASSED or not data:
                continue
            rival = self._rival(node, data)
            if rival is not None:
                self._enter(node, rival)
            elif not self._merge(node, data) and not self._enter_by_tensor(node):
                unmatched.append(name_of(node))
        return Correspondence(pairs=tuple(self._results()), unmatched=tuple(unmatched))

    def _pair_inputs(self) -> None:
        mine = [value for value in self.floats.graph.inputs if value not in self.floats.constant]
        theirs = [value for value in self.rivals.graph.inputs if value not in self.rivals.constant]
        by_name = {value.name: value for value in theirs}
        for place, value in enumerate(mine):
            rival = by_name.get(value.name)
            if rival is None and len(mine) == len(theirs):
                rival = theirs[place]
            if rival is not None:
                self.found[value] = rival
                self.pairs[value] = []

    def _rival(self, node: ir.Node, data: Sequence[ir.Value]) -> ir.Node | None:
        """The node of the quantized model that does the work of `node`."""
        known = [self.found[value] for value in data if value in self.found]
        if data and len(known) == len(data):
            for table in (self.strict, self.loose):
                if (chosen := self._choose(node, table.get(_key(node, known), ()))) is not None:
                    return chosen
        elif known:
            common = [set(self.readers.get((_kind(node), value), ())) for value in known]
            ordered = (reader for reader in self.readers.get((_kind(node), known[0]), ()))
            some = [reader for reader in ordered if all(reader in readers for readers in common)]
            if len({*some} - self.taken) == 1 and (chosen := self._choose(node, some)) is not None:
                return chosen
        same = self.names.get(node.name or "")
        return self._choose(node, () if same is None or _kind(same) != _kind(node) else (same,))

    def _choose(self, node: ir.Node, candidates: Iterable[ir.Node]) -> ir.Node | None:
        free = [other for other in candidates if other not in self.taken and _may_be(node, other)]
        if len(free) < 2:
            return free[0] if free else None
        outputs = {value.name for value in node.outputs}
        named = [other for other in free if other.name == node.name]
        named = named or [other for other in free if outputs & {value.name for value in other.outputs}]
        return named[0] if named else max(free, key=lambda other: _likeness(node, other))

    def _enter(self, node: ir.Node, rival: ir.Node) -> None:
        self.taken.add(rival)
        for mine, theirs in zip(node.outputs, rival.outputs, strict=False):
            if mine.name and theirs.name:
                value = self.rivals.made.get(theirs, theirs)
                # A Gemm with a bias may have become a product and a sum.
                if is_op(node, "Gemm") and len(node.inputs) > 2 and not is_op(rival, "Gemm"):
                    value = self._with_bias(value)
                self.found[mine] = self._named_behind(mine, value)
                self.pairs[mine] = [node]

    def _named_behind(self, mine: ir.Value, value: ir.Value) -> ir.Value:
        """`value`, or what it becomes by its scales where that has the name of the float tensor: rows of a table."""
        other = behind = self.rivals.values.get(mine.name or "")
        for _ in range(_MOST_STEPS):
            if behind is None or behind is value:
                break
            node = behind.producer()
            scaled = is_dequantize(node) or is_op(node, "Cast", "Mul")
            behind = node.inputs[0] if node is not None and scaled else None
        return value if behind is None or other is None else other

    def _with_bias(self, value: ir.Value) -> ir.Value:
        reader = _only_reader(value)
        if reader is None or not is_op(reader, "Add") or len(self.rivals.data(reader)) != 1:
            return value
        self.taken.add(reader)
        return reader.outputs[0]

    def _merge(self, node: ir.Node, data: Sequence[ir.Value]) -> bool:
        """Let `node` count for the node in front of it, where the quantized model may have merged the two."""
        if len(data) != 1 or data[0] not in self.found or node.op_type not in _CLAMPS | _AFFINE | _MOVES:
            return False
        before, after = data[0], node.outputs[0]
        self.found[after] = rival = self.found[before]
        if node.op_type in _MOVES:
            return True  # another shape of a tensor that is compared already
        nodes = self.pairs.get(before) or []
        if node.op_type in _CLAMPS and _rounded(rival):
            self.clamped[before] = False  # it is there before it is rounded
            self.clamped[after] = True
            nodes = []
            if _is_integer(rival):
                nodes = self.pairs.pop(before, [])
        elif len(before.uses()) == 1 and not before.is_graph_output():
            self.pairs.pop(before, None)  # what stands for it holds the work of `node` too
        self.pairs[after] = [*nodes, node]
        return True

    def _enter_by_tensor(self, node: ir.Node) -> bool:
        """Take the tensors of the same names, where the nodes have changed."""
        entered = False
        for mine in node.outputs:
            theirs = self.rivals.values.get(mine.name or "")
            maker = None if theirs is None else theirs.producer()
            if theirs is None or maker is None or maker in self.taken or theirs in self.rivals.constant:
                continue
            if theirs in self.found.values() or is_quantize(maker):
                continue
            self.taken.add(maker)
            self.found[mine] = theirs
            self.pairs[mine] = [node]
            entered = True
        return entered

    def _results(self) -> Iterator[TensorPair]:
        order: Mapping[ir.Node | None, int] = {None: -1} | {node: i for i, node in enumerate(self.floats.graph)}
        for value in sorted(self.pairs, key=lambda value: order[value.producer()]):
            nodes, rival = self.pairs[value], self.found[value]
            leader = next(
                (node for node in nodes if node.op_type not in _CLAMPS | _AFFINE), nodes[0] if nodes else None
            )
            maker = self.rivals.results.get(rival, rival).producer()
            yield TensorPair(
                tensor=name_of(value),
                layer=name_of(value if leader is None else leader),
                op_type="input" if leader is None else leader.op_type,
                nodes=tuple(map(name_of, nodes)),
                rival="" if maker is None else name_of(maker),
                exact="" if self.clamped.get(value) or _is_integer(rival) else name_of(rival),
                rounded=() if self.clamped.get(value) is False else tuple(_rounded(rival)),
            )


def _kind(node: ir.Node) -> str:
    return _KINDS.get(node.op_type, node.op_type)


def _key(node: ir.Node, values: Sequence[ir.Value]) -> tuple[object, ...]:
    """What tells nodes apart: their kind and the tensors that they read, in an order of no meaning for a sum."""
    ordered = sorted(values, key=id) if node.op_type in _COMMUTE else values
    return (_kind(node), *ordered)


def _rounded(value: ir.Value) -> list[str]:
    """What each DequantizeLinear gives of a tensor that is quantized."""
    found: dict[str, None] = {}
    waiting = [value]
    while waiting:
        for use in waiting.pop(0).uses():
            out = use.node.outputs[0]
            if use.idx == 0 and is_dequantize(use.node):
                found[name_of(out)] = None
            elif use.idx == 0 and (is_quantize(use.node) or _inside(use.node)):
                waiting.append(out)
    return list(found)


def _inside(node: ir.Node) -> bool:
    """Whether a node passes on what a QuantizeLinear gives."""
    return is_op(node, "Clip", "Identity") and is_quantize(producer_of(node, 0))


def _is_integer(value: ir.Value) -> bool:
    return any(use.idx == 0 and is_dequantize(use.node) for use in value.uses())


def weight_of(node: ir.Node) -> Array | None:
    """The values of the constant that a layer multiplies with: stored, or made of integers; None without one."""
    value = optional_input(node, 1)
    found = grid_constant(value)
    return found.values() if isinstance(found, GridConstant) else constant_value(value)


def _may_be(node: ir.Node, rival: ir.Node) -> bool:
    """Whether the weights of two nodes of one kind do not show that they are different ones."""
    if not is_op(node, "Conv", "ConvTranspose"):
        return True
    mine, theirs = weight_of(node), weight_of(rival)
    return mine is None or theirs is None or mine.shape == theirs.shape


def _likeness(node: ir.Node, rival: ir.Node) -> float:
    """The cosine between the weights of two nodes; -1 where that says nothing."""
    mine, theirs = weight_of(node), weight_of(rival)
    if mine is None or theirs is None or mine.size != theirs.size:
        return -1.0
    a, b = (np.asarray(array, np.float64).ravel() for array in (mine, theirs))
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
