"""Ask a node or a tensor what everybody asks: its operator, name, inputs and graph, also where onnx_ir may have none.

The types of onnx_ir cover models under construction too: a name may be None, an input may be missing, a node may be in
no graph. In the models of this package these are there, since `name_nodes` gives every node a name before anything
else happens and an operator has the inputs that ONNX requires. So the functions here return them without None, and
raise RuntimeError where they are missing after all, which is a mistake of this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeGuard

import onnx_ir as ir


def is_standard(node: ir.Node) -> bool:
    """Whether the operator belongs to the default domain of ONNX."""
    return node.domain == ""  # onnx_ir gives "ai.onnx" this name too


def is_op(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Whether there is a node, and it is one of these operators of the default domain."""
    return node is not None and node.op_type in op_types and is_standard(node)


def name_of(item: ir.Node | ir.Value) -> str:
    """The name of a node or value. Raises RuntimeError where it has none."""
    if not item.name:
        raise RuntimeError(f"{_described(item)} has no name; nodes get theirs from name_nodes.")
    return item.name


def label_of(node: ir.Node) -> str:
    """The name of a node, or its operator type where it has none: for messages, and to name what belongs to it."""
    return node.name or node.op_type


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of a node. Raises RuntimeError where it is missing or empty."""
    value = optional_input(node, index)
    if value is None:
        raise RuntimeError(f"{_described(node)} has no input {index}.")
    return value


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of a node, None where it is missing or empty."""
    return node.inputs[index] if index < len(node.inputs) else None


def producer_of(node: ir.Node, index: int) -> ir.Node | None:
    """The node that makes input `index` of a node; None for an input of the model, an initializer or no input."""
    value = optional_input(node, index)
    return None if value is None else value.producer()


def maker_of(value: ir.Value) -> ir.Node:
    """The node that makes a value. Raises RuntimeError for an input of the model and an initializer."""
    node = value.producer()
    if node is None:
        raise RuntimeError(f"{_described(value)} is made by no node.")
    return node


def graph_of(item: ir.Node | ir.Value) -> ir.Graph:
    """The graph that a node or value is in. Raises RuntimeError where it was removed from its graph."""
    if item.graph is None:
        raise RuntimeError(f"{_described(item)} is in no graph.")
    return item.graph


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of all graphs of a model and of its functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in the attributes of a node, as an If, a Loop or a Scan has them."""
    for attribute in node.attributes.values():
        if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def values_read(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors that a node reads, those that nodes of its bodies read from outside included."""
    yield from (value for value in node.inputs if value is not None)
    graphs = [graph for body in bodies_of(node) for graph in (body, *body.subgraphs())]
    for graph in graphs:
        values = [*graph.outputs, *(value for inner in graph for value in inner.inputs)]
        yield from (value for value in values if value is not None and value.graph not in graphs)


def read_on_the_way_to(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    """The tensors that these nodes read, and all from which something leads to them."""
    found: set[ir.Value] = set()
    waiting = list(nodes)
    while waiting:
        for value in values_read(waiting.pop()):
            if value not in found:
                found.add(value)
                if (maker := value.producer()) is not None:
                    waiting.append(maker)
    return found


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads a value; None where there are others, or none, or the model gives the value."""
    readers = list(value.uses())
    return readers[0].node if len(readers) == 1 and not value.is_graph_output() else None


def _described(item: ir.Node | ir.Value) -> str:
    kind = item.op_type if isinstance(item, ir.Node) else "tensor"
    return f"The {kind} {item.name!r}"
