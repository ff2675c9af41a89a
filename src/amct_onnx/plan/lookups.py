"""Which lookups in a constant table, as embeddings are, have their table in int8, and why others do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from amct_onnx.graph.access import bodies_of, is_op, name_of, optional_input, read_on_the_way_to
from amct_onnx.graph.constants import constant_tensor, is_constant, is_overridable
from amct_onnx.graph.layers import CONSTANT
from amct_onnx.values.qdq_tables import QdqTarget

LOOKUPS = ("Gather", "GatherElements", "GatherND")
_LEAST_BYTES = 8 << 10  # a smaller table in int8 saves next to nothing of a file
_SUMS = ("Add", "Sub", "Mul")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def find_lookups(
    graph: ir.Graph,
    target: QdqTarget,
    *,
    layers: Collection[str],
    constants: Collection[ir.Value],
    off: Mapping[str, str],
) -> dict[str, str | None]:
    """Why the table of each lookup of a graph stays in float, None where it becomes int8; by node.

    layers: the products and convolutions that are quantized. constants: what nodes make of constants alone. off:
    nodes that stay in float, and why. A table counts where one of `layers` comes behind it: the coordinates of anchors,
    which go to an output, have to be exact.
    """
    tables = [node for node in graph if _is_lookup(node)]
    if not tables:
        return {}
    used = read_on_the_way_to([node for node in graph if node.name in layers or any(True for _ in bodies_of(node))])
    return {name_of(node): off.get(name_of(node)) or _reason(node, target, used, constants) for node in tables}


def _is_lookup(node: ir.Node) -> bool:
    """Whether a node reads a table of floats that nobody may override."""
    table = constant_tensor(optional_input(node, 0)) if is_op(node, *LOOKUPS) else None
    return table is not None and table.dtype in _FLOATS and not is_overridable(optional_input(node, 0))


def _reason(
    node: ir.Node, target: QdqTarget, used: Collection[ir.Value], constants: Collection[ir.Value]
) -> str | None:
    table, result = constant_tensor(node.inputs[0]), node.outputs[0]
    if not target.tables:
        return f"{target.name} takes no table of integers"
    if table is None or table.nbytes < _LEAST_BYTES:
        return "its table is so small that int8 would save nothing"
    if result not in used:
        return "no quantized layer computes with what it gives"
    # A runtime computes once what depends on constants alone; to dequantize it in each run must cost next to nothing.
    if result in constants and not all(is_op(use.node, *_SUMS) and _is_mixed(use.node) for use in result.uses()):
        return CONSTANT
    return None


def _is_mixed(node: ir.Node) -> bool:
    return any(not is_constant(value) for value in node.inputs)
