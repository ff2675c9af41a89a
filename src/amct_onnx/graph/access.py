"""Read from a node or value what onnx_ir types as optional, although a model that is quantized always has it.

The types of onnx_ir also cover models under construction: a name may be None, an input may be missing, a node may be in
no graph. `name_nodes` gives every node a name before anything else happens, and an operator has the inputs that ONNX
requires. The functions here give what must be there, and raise RuntimeError where it is not: a mistake of this package.
"""

from __future__ import annotations

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


def _described(item: ir.Node | ir.Value) -> str:
    kind = item.op_type if isinstance(item, ir.Node) else "tensor"
    return f"The {kind} {item.name!r}"
