"""Whether a network computes each row of axis 0 by itself, as far as its operators show that without a run.

It saves the usual networks of convolutions a trial; of any other operator nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from amct_onnx.graph.access import is_standard, name_of
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
    for node in model.graph:
        rowed = [value for value in node.inputs if value is not None and value.name in ranks]
        if not rowed and all(value is None or constant_tensor(value) is not None for value in node.inputs):
            continue
        rank = _rank_behind(node, ranks) if is_standard(node) else None
        if rank is None or any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            return False
        ranks[name_of(node.outputs[0])] = rank
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return False
    return all(value.name in ranks for value in model.graph.outputs)


def _rank_behind(node: ir.Node, ranks: dict[str, int]) -> int | None:
    """The rank of what a node makes of rows; None if that is not known to have the same rows."""
    kind, values = node.op_type, [value for value in node.inputs if value is not None]
    first = ranks.get(values[0].name or "") if values else None
    if kind in _BROADCASTS or kind == "Concat":
        found = {ranks.get(value.name or "") for value in values if constant_tensor(value) is None}
        constants = [shape_of(tensor) for value in values if (tensor := constant_tensor(value)) is not None]
        (rank,) = found if len(found) == 1 else (None,)
        if rank is None:
            return None
        if kind == "Concat":
            return rank if not constants and node.attributes.get_int("axis", 0) % rank else None
        return rank if all(len(shape) < rank or (len(shape) == rank and shape[0] == 1) for shape in constants) else None
    if first is None or any(constant_tensor(value) is None for value in values[1:]):
        return None
    if kind in _KEEPS:
        return first
    if kind in ("Softmax", "LogSoftmax"):
        return first if node.attributes.get_int("axis", 1) % first else None
    if kind == "Flatten":
        return 2 if node.attributes.get_int("axis", 1) == 1 else None
    if kind == "Gemm":
        return 2 if not node.attributes.get_int("transA", 0) and _is_row(values[2:]) else None
    if kind == "MatMul":
        weight = constant_tensor(values[1])
        return first if weight is not None and len(shape_of(weight)) == 2 and first > 1 else None
    if kind in ("ReduceMean", "ReduceMax", "ReduceSum"):
        return _rank_of_reduced(node, first)
    return _rank_of_reshaped(node, first) if kind == "Reshape" else None


def _is_row(values: list[ir.Value]) -> bool:
    """Whether the bias of a Gemm is the same for each row."""
    tensors = [constant_tensor(value) for value in values]
    return all(tensor is not None and (len(shape_of(tensor)) < 2 or shape_of(tensor)[0] == 1) for tensor in tensors)


def _rank_of_reduced(node: ir.Node, rank: int) -> int | None:
    axes: list[int] | None = list(node.attributes.get_ints("axes", ()))
    if len(node.inputs) > 1:
        given = constant_value(node.inputs[1])
        axes = None if given is None else [int(axis) for axis in given.reshape(-1)]
    if not axes or any(axis % rank == 0 for axis in axes):
        return None
    return rank if node.attributes.get_int("keepdims", 1) else rank - len(axes)


def _rank_of_reshaped(node: ir.Node, rank: int) -> int | None:
    wanted = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    allows_zero = node.attributes.get_int("allowzero", 0)
    if wanted is None or not wanted.size or allows_zero:
        return None
    first, *others = (int(size) for size in wanted)
    known = node.inputs[0].shape if node.inputs[0] is not None else None
    sizes = [size for size in known[1:] if isinstance(size, int)] if known is not None else []
    same = known is not None and len(sizes) == rank - 1 and min(others, default=1) > 0
    if first == 0 or (first == -1 and same and math.prod(sizes) == math.prod(others)):
        return 1 + len(others)
    return None
