"""LSTM and GRU: which of them can be quantized, and their weights as rows (amct_formats.md: Layer conditions)."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from amct_onnx.graph.access import optional_input
from amct_onnx.graph.constants import constant_tensor, why_variable
from amct_onnx.graph.tensors import shape_of
from amct_onnx.numerics.arrays import Array

# Gates of an operator: blocks of `hidden` rows in W and R. LSTM: i, o, f, c. GRU: z, r, h.
GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3}
RECURRENT_OPS = tuple(GATES)
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}
_DIRECTIONS = ("forward", "reverse")
# Positions of the inputs.
WEIGHT, RECURRENCE, BIAS, LENGTHS, HIDDEN, CELL, PEEPHOLE = range(1, 8)


def recurrent_shape(node: ir.Node) -> tuple[int, ...]:
    """Shape of the constant W, [1, gates * hidden, input]; () when W is not constant."""
    weight = constant_tensor(optional_input(node, WEIGHT))
    return () if weight is None else shape_of(weight)


def recurrent_reason(node: ir.Node) -> str | None:
    """Why an LSTM or GRU stays in float, None when it can be quantized."""
    return _attribute_reason(node) or _constant_reason(node)


def _attribute_reason(node: ir.Node) -> str | None:
    attributes = node.attributes
    direction = attributes.get_string("direction", "forward")
    if direction not in _DIRECTIONS:
        return f"its direction is {direction}, and only one direction is supported"
    default = _ACTIVATIONS[node.op_type]
    if [name.lower() for name in attributes.get_strings("activations", default)] != default:
        return "its activations are not the default ones"
    if "clip" in attributes:
        return "it has the attribute clip"
    for name, words in (("input_forget", "it couples its input and forget gates"), ("layout", "its layout is not 0")):
        if attributes.get_int(name, 0):
            return words
    if node.op_type == "GRU" and not attributes.get_int("linear_before_reset", 0):
        return "its linear_before_reset is not 1"
    if optional_input(node, LENGTHS) is not None:
        return "it has an input sequence_lens"
    return "it has peepholes" if optional_input(node, PEEPHOLE) is not None else None


def _constant_reason(node: ir.Node) -> str | None:
    w, r, bias = (constant_tensor(optional_input(node, index)) for index in (WEIGHT, RECURRENCE, BIAS))
    if w is None or r is None:
        return f"its weight {why_variable(optional_input(node, WEIGHT if w is None else RECURRENCE))}"
    if w.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):  # R and B have the same type
        return f"its weight is {w.dtype.numpy()}, and only float32 and float16 are supported"
    of_w, of_r = shape_of(w), shape_of(r)
    if w.size == 0 or r.size == 0:
        return "its weight is empty"
    rows = GATES[node.op_type] * of_r[-1]
    if len(of_w) != 3 or len(of_r) != 3 or of_w[:2] != (1, rows) or of_r[:2] != (1, rows):
        return f"its weights of shape {list(of_w)} and {list(of_r)} do not fit one direction"
    if bias is None:
        given = optional_input(node, BIAS)
        return None if given is None else f"its bias {why_variable(given)}"
    return None if shape_of(bias) == (1, 2 * rows) else f"its bias has the shape {list(shape_of(bias))}"


def gate_rows(weight: Array, op_type: str, *, channel_wise: bool) -> Array:
    """W or R, [1, gates * hidden, n], as rows with one scale each: [gates * hidden, n], or [gates, hidden * n]."""
    return weight[0] if channel_wise else weight.reshape(GATES[op_type], -1)
