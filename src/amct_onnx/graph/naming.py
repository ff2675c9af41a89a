"""Give every node a unique name, by which configurations and records refer to a layer (amct_formats.md: Node names)."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir


def name_nodes(model: ir.Model) -> None:
    """Give every node of the main graph and of all subgraphs a unique name.

    before: Conv "", Relu "act", Relu "act"      after: Conv "Conv_0", Relu "act", Relu "act_1"

    A node without a name becomes `{op_type}_{index}` with its position in its own graph, counted up until the name is
    free. Of several nodes with one name the first keeps it, the others get `_1`, `_2`, ... until it is free. A name
    that is unique already never changes, so that configurations written for the model stay valid. Bodies of model
    functions are left alone: they are templates, no layer of the model.
    """
    taken = {node.name for graph in model.graphs() for node in graph if node.name}
    holders: set[str] = set()
    for graph in model.graphs():
        for position, node in enumerate(graph):
            if not node.name or node.name in holders:
                base, count = (node.name, 1) if node.name else (node.op_type, position)
                node.name = numbered_name(base, count, taken)
                taken.add(node.name)
            holders.add(node.name)


def numbered_name(base: str, count: int, taken: Container[str]) -> str:
    """`base` with the first number from `count` on that gives a name which is not taken."""
    while (name := f"{base}_{count}") in taken:
        count += 1
    return name
