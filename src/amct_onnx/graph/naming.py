"""Give every node a unique name, by which configurations and records refer to a layer (spec section 7.0)."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class Rename:
    """One node got a new name; `old` is empty for a node that had none."""

    op_type: str
    old: str
    new: str


def name_nodes(model: ir.Model) -> list[Rename]:
    """Give every node of the main graph and of all subgraphs a unique name; tell what changed.

    before: Conv "", Relu "act", Relu "act"      after: Conv "Conv_0", Relu "act", Relu "act_1"

    A node without a name becomes `{op_type}_{index}` with its position in its own graph, counted up until the name is
    free. Of several nodes with one name the first keeps it, the others get `_1`, `_2`, ... until it is free. A name
    that is unique already never changes, so that configurations written for the model stay valid. Bodies of model
    functions are left alone: they are templates, no layer of the model.
    """
    nodes = [node for graph in model.graphs() for node in graph]
    taken = {node.name for node in nodes if node.name}
    holders: set[str] = set()
    renames: list[Rename] = []
    for graph in model.graphs():
        for position, node in enumerate(graph):
            old = node.name or ""
            if old and old not in holders:
                holders.add(old)
                continue
            new = _free_name(old, taken) if old else _free_index(node.op_type, position, taken)
            taken.add(new)
            holders.add(new)
            node.name = new
            renames.append(Rename(op_type=node.op_type, old=old, new=new))
    return renames


def _free_name(base: str, taken: set[str]) -> str:
    count = 1
    while (name := f"{base}_{count}") in taken:
        count += 1
    return name


def _free_index(op_type: str, position: int, taken: set[str]) -> str:
    while (name := f"{op_type}_{position}") in taken:
        position += 1
    return name
