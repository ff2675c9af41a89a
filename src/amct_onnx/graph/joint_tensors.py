"""Find the tensors that joint_quant quantizes with one scale: those that meet in an Add (amct_formats.md: Global keys).

    a -> Relu -> r \\
                    Add -> y          {a, r, b} is one set: whoever reads one of them quantized does so with one factor
    b ------------ /

The integers of both operands can then be added as they are. An operand stands also for the tensors that it comes from
through operators that pick, move or clamp elements: these keep the grid, so the operand carries the same integers. The
sum is no member, since it needs a wider range. An Add of a constant joins nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op
from amct_onnx.graph.constants import constant_tensor

_KEEPS_GRID = (
    *("Relu", "Clip", "MaxPool", "GlobalMaxPool", "Identity", "Dropout"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth"),
)


def joined_tensors(model: ir.Model) -> dict[ir.Value, ir.Value]:
    """For each tensor that meets another one in an Add of the main graph, the representative of its set.

    Sets that have a tensor in common are one. The representative is the same in every call.
    """
    parents: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        while parents.setdefault(value, value) is not value:
            parents[value] = parents[parents[value]]
            value = parents[value]
        return value

    for node in model.graph:
        if not is_op(node, "Add"):
            continue
        first, second = input_of(node, 0), input_of(node, 1)
        if any(constant_tensor(value) is not None for value in (first, second)):
            continue
        for value in (*_sources(first), *_sources(second)):
            parents[root(value)] = root(first)
    return {value: root(value) for value in parents}


def _sources(operand: ir.Value) -> Iterator[ir.Value]:
    """The operand and what it is made of, up to the first operator that computes something."""
    value: ir.Value | None = operand
    while value is not None:
        yield value
        producer = value.producer()
        value = producer.inputs[0] if is_op(producer, *_KEEPS_GRID) and value is producer.outputs[0] else None
