"""The parts of a network's outputs that mean different things, as the boxes and the scores of a detector do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from amct_onnx.graph.access import is_op, name_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.targets.calibration import source_of

_SQUASH = ("Sigmoid", "Softmax")


@dataclass(frozen=True, kw_only=True)
class OutputPart:
    """Elements of one float output that mean the same.

    tensors: what they are joined from, or the output itself where nothing is joined. squash: the nodes that make all of
    them, by name, if they are all of type `kind`, Sigmoid or Softmax; else both are empty.
    """

    output: str
    tensors: tuple[str, ...]
    squash: tuple[str, ...] = ()
    kind: str = ""


def output_parts(model: ir.Model) -> tuple[OutputPart, ...]:
    """The parts of each output: those that its last Concat joins, if it ends in one.

    Where a Concat joins such of equal numbers of parts, as a detector's levels are, the first of each are one part, and
    so on. A model whose nodes have no names has no `squash`.
    """
    return tuple(part for output in model.graph.outputs for part in _parts_of(output))


def _parts_of(output: ir.Value) -> Iterator[OutputPart]:
    concat = _concat(output)
    roles = [[output]] if concat is None else _roles(concat)
    for values in roles:
        part = OutputPart(output=name_of(output), tensors=tuple(map(name_of, values)))
        makers = [source_of(value).producer() for value in values]
        squash = [node for node in makers if is_op(node, *_SQUASH) and node.name]
        kinds = {node.op_type for node in squash}
        if len(squash) == len(values) and len(kinds) == 1:
            part = replace(part, squash=tuple(map(name_of, squash)), kind=kinds.pop())
        yield part


def _concat(value: ir.Value) -> ir.Node | None:
    """The Concat of several computed tensors that makes `value`, up to moves of elements."""
    node = source_of(value).producer()
    if not is_op(node, "Concat") or len(node.inputs) < 2:
        return None
    computed = all(part is not None and part.producer() and constant_tensor(part) is None for part in node.inputs)
    return node if computed else None


def _roles(concat: ir.Node) -> list[list[ir.Value]]:
    """The tensors that are joined, those together that mean the same."""
    parts = [value for value in concat.inputs if value is not None]
    nested = [_roles(inner) for value in parts if (inner := _concat(value)) is not None]
    if len(nested) == len(parts) and len({len(roles) for roles in nested}) == 1:
        return [[value for same in roles for value in same] for roles in zip(*nested, strict=True)]
    return [[value] for value in parts]
