"""Give every node a unique name, by which configurations and records refer to a layer (amct_formats.md: Node names)."""

from __future__ import annotations

from collections.abc import Container, Iterator

import onnx_ir as ir

from amct_onnx.graph.tensors import renamed


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


def name_values(model: ir.Model) -> None:
    """Give every tensor of the bodies of nodes a name that no tensor elsewhere has: both branches of an If may have
    the same ones. A name that is unique already never changes, nor does any of the main graph."""
    taken = {value.name or "" for graph in model.graphs() for value in _made_in(graph)}
    holders: dict[str, ir.Value] = {}
    for graph in model.graphs():
        for value in list(_made_in(graph)):
            name = value.name or ""
            if holders.setdefault(name, value) is value:
                continue
            name = numbered_name(name, 1, taken)
            if value.const_value is not None:
                value.const_value = renamed(value.const_value, name)  # the tensor may be the caller's
            value.name = name
            taken.add(name)
            holders[name] = value


def _made_in(graph: ir.Graph) -> Iterator[ir.Value]:
    outputs = (value for node in graph for value in node.outputs)
    yield from (value for value in (*graph.inputs, *graph.initializers.values(), *outputs) if value.name)


def numbered_name(base: str, count: int, taken: Container[str]) -> str:
    """`base` with the first number from `count` on that gives a name which is not taken."""
    while (name := f"{base}_{count}") in taken:
        count += 1
    return name
