"""Whether a network computes each row of axis 0 by itself, as far as its operators show that without a run.

It saves the usual networks of convolutions a trial; of any other operator nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import onnx_ir as ir

from amct_onnx.graph.access import is_op, is_standard, name_of
from amct_onnx.graph.constants import constant_tensor, constant_value
from amct_onnx.graph.tensors import shape_of

# Operators that keep the axes of their first input, and look along axis 1 and those behind it at most.
_KEEPS = frozenset(
    {
        *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"),
        *("BatchNormalization", "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth"),
        *("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Softplus", "Softsign"),
        *("Clip", "Identity", "Dropout", "Cast", "Exp", "Log", "Sqrt", "Abs", "Neg", "Erf", "Reciprocal", "Mish"),
    }
)
_BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"})
Shapes = Sequence[tuple[int, ...]]


def is_rowwise(model: ir.Model, inputs: Collection[str]) -> bool:
    """Whether every output has a row for each row of `inputs`, which comes of that row alone.

    `inputs` are all that vary; their axis 0 is of one length.
    """
    ranks: dict[str, int] = {}  # of the tensors that have the rows along axis 0
    for value in model.graph.inputs:
        if value.name in inputs:
            if not value.shape:
                return False
            ranks[name_of(value)] = len(value.shape)
    passed: set[ir.Value] = set()  # constants behind an Identity, which are not followed back through all of them
    for node in model.graph:
        rowed = [value for value in node.inputs if value is not None and value.name in ranks]
        read = [value for value in node.inputs if value is not None and value not in passed]
        if not rowed and all(constant_tensor(value) is not None for value in read):
            passed.update(node.outputs if is_op(node, "Identity") else ())
            continue
        rank = _rank_behind(node, ranks) if is_standard(node) else None
        if rank is None or any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            return False
        ranks[name_of(node.outputs[0])] = rank
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return False
    return all(value.name in ranks for value in model.graph.outputs)


def _rank_behind(node: ir.Node, ranks: Mapping[str, int]) -> int | None:
    """The rank of what a node makes of rows; None if that is not known to have the same rows."""
    values = [value for value in node.inputs if value is not None]
    constants = [shape_of(tensor) for value in values if (tensor := constant_tensor(value)) is not None]
    found = {ranks.get(value.name or "") for value in values if constant_tensor(value) is None}
    (rank,) = found if len(found) == 1 else (None,)
    if rank is None:
        return None
    if node.op_type in _BROADCASTS:
        return rank if all(len(shape) < rank or (len(shape) == rank and shape[0] == 1) for shape in constants) else None
    if node.op_type == "Concat":
        return rank if not constants and node.attributes.get_int("axis", 0) % rank else None
    if len(constants) != len(values) - 1 or constant_tensor(values[0]) is not None:
        return None
    if node.op_type in _KEEPS:
        return rank
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(node, rank, constants)


def _softmax(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    return rank if node.attributes.get_int("axis", 1) % rank else None


def _flatten(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    return 2 if node.attributes.get_int("axis", 1) == 1 else None


def _gemm(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    bias_is_row = all(len(shape) < 2 or shape[0] == 1 for shape in constants[1:])
    return 2 if bias_is_row and not node.attributes.get_int("transA", 0) else None


def _product(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    return rank if rank > 1 and len(constants[0]) == 2 else None


def _reduction(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    axes = [*node.attributes.get_ints("axes", ()), *_numbers(node, 1)]
    if not axes or any(axis % rank == 0 for axis in axes):
        return None
    return rank if node.attributes.get_int("keepdims", 1) else rank - len(axes)


def _transposition(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    return rank if list(node.attributes.get_ints("perm", ()))[:1] == [0] else None


def _slice(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    axes = _numbers(node, 3)
    return rank if axes and all(axis % rank for axis in axes) else None


def _padding(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    pads = _numbers(node, 1)
    return rank if len(pads) == 2 * rank and pads[0] == pads[rank] == 0 else None


def _reshape(node: ir.Node, rank: int, constants: Shapes) -> int | None:
    wanted, allows_zero = _numbers(node, 1), node.attributes.get_int("allowzero", 0)
    if not wanted or allows_zero:
        return None
    first, *others = wanted
    known = node.inputs[0].shape if node.inputs[0] is not None else None
    sizes = [size for size in known[1:] if isinstance(size, int)] if known is not None else []
    all_known = len(sizes) == rank - 1 and min(others, default=1) > 0
    if first == 0 or (first == -1 and all_known and math.prod(sizes) == math.prod(others)):
        return 1 + len(others)
    return None


def _numbers(node: ir.Node, index: int) -> list[int]:
    """The integers in a constant input of a node; none where there is no such input."""
    given = constant_value(node.inputs[index]) if index < len(node.inputs) else None
    return [] if given is None else [int(number) for number in given.reshape(-1)]


# From a node whose first input has rows along axis 0, and the others are constants of these shapes.
_RULES: Mapping[str, Callable[[ir.Node, int, Shapes], int | None]] = {
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _product,
    "ReduceMean": _reduction,
    "ReduceMax": _reduction,
    "ReduceSum": _reduction,
    "Transpose": _transposition,
    "Slice": _slice,
    "Pad": _padding,
    "Reshape": _reshape,
}
