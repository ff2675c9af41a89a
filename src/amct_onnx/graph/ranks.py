"""How many dimensions the tensors of a graph have, as far as the graph tells, whether the file declares them or not."""

from __future__ import annotations

import onnx_ir as ir

from amct_onnx.graph.access import is_standard, optional_input
from amct_onnx.graph.constants import constant_tensor, constant_value

# Their first result has as many dimensions as their first input.
_KEEPS = frozenset(
    {
        *("Identity", "Dropout", "Cast", "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish"),
        *("Sigmoid", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Swish", "Tanh", "Erf", "Exp", "Log", "Sqrt"),
        *("Reciprocal", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Softmax", "LogSoftmax"),
        *("LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization"),
        *("GroupNormalization", "LpNormalization", "Conv", "ConvTranspose", "MaxPool", "AveragePool"),
        *("GlobalAveragePool", "GlobalMaxPool", "Transpose", "Concat", "Slice", "Split", "Pad", "Tile", "Resize"),
        *("DepthToSpace", "SpaceToDepth", "CumSum"),
    }
)
# As many as that of their inputs which has most.
_BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Where", "Expand", "Mod"})
_TWO = frozenset({"Gemm", "Flatten"})


def ranks(graph: ir.Graph) -> dict[ir.Value, int]:
    """The number of dimensions of each tensor of a graph for which it is known; constants are left out."""
    found = {value: len(value.shape) for value in graph.inputs if value.shape is not None}
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                found[value] = len(value.shape)
        if is_standard(node) and node.outputs[0] not in found and (rank := _of_result(node, found)) is not None:
            found.update(dict.fromkeys(node.outputs if node.op_type == "Split" else node.outputs[:1], rank))
    return found


def _of_result(node: ir.Node, known: dict[ir.Value, int]) -> int | None:
    def of(value: ir.Value | None) -> int | None:
        if value in known:  # first: a constant may have come through thousands of nodes
            return known[value]
        tensor = constant_tensor(value)
        return None if tensor is None else len(tensor.shape)

    kind = node.op_type
    if kind in _TWO:
        return 2
    if kind == "Reshape":
        sizes = constant_value(optional_input(node, 1))
        return None if sizes is None else sizes.size
    if kind in _KEEPS:
        return of(node.inputs[0])
    given = [of(value) for value in node.inputs if value is not None]
    numbers = [rank for rank in given if rank is not None]
    if len(numbers) < len(given):
        return None
    if kind in _BROADCASTS:
        return max(numbers, default=None)
    if kind == "MatMul":
        return max(numbers) if min(numbers) > 1 else None
    return sum(numbers) - 1 if kind == "Gather" else None
