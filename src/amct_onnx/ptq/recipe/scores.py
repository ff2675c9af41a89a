"""Ranges of tensors in front of dense scores, as those that a detector gives each place of a picture.

Objects are rare, and their scores are the tail of a tensor. Least squares clips tails; the extremes keep them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.measure.output_parts import OutputPart
from amct_onnx.targets.target import Lowered

Range = tuple[float, float]


def extremes_near(
    model: ir.Model, parts: Sequence[OutputPart], lowered: Lowered, layers: int
) -> dict[tuple[str, ...], Range]:
    """The extremes of the quantized tensors that lead to `parts` through so many layers at most, on the longest way."""
    ends = {name for part in parts for name in part.squash}
    far: dict[ir.Value | None, int] = {}
    for node in reversed(list(model.graph)):
        behind = [far[value] for value in node.outputs if value in far]
        if node.name in ends:
            behind.append(0)
        if behind:
            distance = max(behind) + (node.op_type in WEIGHT_OPS)
            for value in node.inputs[: 1 if node.op_type in WEIGHT_OPS else None]:
                far[value] = max(far.get(value, 0), distance)
    near = {value.name for value, distance in far.items() if value is not None and distance <= layers}
    choices = lowered.range_choices() if near else ()
    return {choice.key: (choice.low, choice.high) for choice in choices if near.issuperset(choice.key)}
