"""Pass: operators on quantized tensors, as QLinearConv, become float operators between QuantizeLinear and Dequantize-
Linear, so that what each computes can be seen in floats.

Before: q -> QLinearConv(x_scale, weight int8, y_scale, bias int32) -> p
After:  q -> DequantizeLinear -> Conv(weight, bias) -> QuantizeLinear -> p

A result may differ by one step of its grid from that of the operator, which rounds once in integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import label_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_value, remove_unused
from amct_onnx.numerics.arrays import Array

# The float operator of each, and where its inputs are: each is followed by its scale and zero point.
_UNARY = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearReduceMean": "ReduceMean",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}
_BINARY = {"QLinearAdd": "Add", "QLinearMul": "Mul", "QLinearMatMul": "MatMul", "QLinearConv": "Conv", "QGemm": "Gemm"}
_BIASED = {"QLinearConv": (8, 6), "QGemm": (6, 7)}  # the places of the bias and of the scale of the result


def lift_qoperators(model: ir.Model) -> int:
    """Replace these operators of the main graph, in place; how many there were.

    Raises ModelError for one of another type, or with a scale that is not a constant.
    """
    nodes = [node for node in model.graph if node.op_type.startswith("QLinear") or node.op_type == "QGemm"]
    lifter = _Lifter(model)
    for node in nodes:
        lifter.lift(node)
    return len(nodes)


class _Lifter:
    def __init__(self, model: ir.Model) -> None:
        self._graph, self._names = model.graph, ValueNames(model)

    def lift(self, node: ir.Node) -> None:
        """Put the float operator with its name in the place of a node."""
        kind, inputs = node.op_type, list(node.inputs)
        if kind == "QLinearConcat":
            op_type, result = "Concat", 0
            operands = [self._operand(node, place) for place in range(2, len(inputs), 3)]
        elif kind in _UNARY:
            op_type, result, operands = _UNARY[kind], 3, [self._operand(node, 0)]
        elif kind in _BINARY:
            op_type, result = _BINARY[kind], 6
            operands = [self._operand(node, 0), self._operand(node, 3)]
        else:
            raise _refusal(node, f"{kind} is unknown here")
        if kind in _BIASED:
            place, result = _BIASED[kind]
            operands += self._bias(node, place)
        if node.attributes.get_int("channels_last", 0):
            raise _refusal(node, "its channels are last")
        out = ir.val(self._names.new(f"{node.outputs[0].name}.exact"), dtype=ir.DataType.FLOAT)
        attributes = [a for name, a in node.attributes.items() if name != "channels_last"]
        lifted = ir.Node("", op_type, operands, attributes, name=node.name, outputs=[out])
        scale, zero = inputs[result], optional_input(node, result + 1)
        quantized = ir.node("QuantizeLinear", [out, scale, zero], name=self._names.node(f"{node.name}.quantize"))
        old = node.outputs[0]
        new = quantized.outputs[0]
        new.type, new.shape = old.type, old.shape
        self._graph.insert_after(node, [lifted, quantized])
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        new.name = old.name
        remove_unused(inputs)

    def _operand(self, node: ir.Node, place: int) -> ir.Value:
        """The floats of a quantized input: an initializer, or what a DequantizeLinear gives."""
        value, scale, zero = (optional_input(node, place + k) for k in range(3))
        integers = constant_value(value)
        if integers is not None and value is not None:
            array = (integers.astype(np.int64) - self._zero(node, zero, integers)) * self._scale(node, scale, integers)
            return add_initializer(
                self._graph, f"{value.name}.dequantized", array.astype(np.float32), names=self._names
            )
        name = self._names.node(f"{node.name}.input{place}")
        dequantize = ir.node("DequantizeLinear", [value, scale, zero], name=name)
        dequantize.outputs[0].name = self._names.new(f"{name}.output0")
        self._graph.insert_before(node, dequantize)
        return dequantize.outputs[0]

    def _bias(self, node: ir.Node, place: int) -> Sequence[ir.Value]:
        value = optional_input(node, place)
        if value is None:
            return ()
        integers = constant_value(value)
        if integers is None:
            raise _refusal(node, "its bias is computed at run time")
        grid = _known(node, 1).reshape(-1) * _known(node, 4).reshape(-1)
        array = (integers * grid * node.attributes.get_float("alpha", 1.0)).astype(np.float32)
        return (add_initializer(self._graph, f"{value.name}.dequantized", array, names=self._names),)

    def _scale(self, node: ir.Node, value: ir.Value | None, integers: Array) -> Array:
        scale = constant_value(value)
        if scale is None:
            raise _refusal(node, "a scale is computed at run time")
        return _along(node, scale.astype(np.float64), integers)

    def _zero(self, node: ir.Node, value: ir.Value | None, integers: Array) -> Array:
        zero = constant_value(value)
        return np.zeros((), np.int64) if zero is None else _along(node, zero.astype(np.int64), integers)


def _known(node: ir.Node, place: int) -> Array:
    array = constant_value(optional_input(node, place))
    if array is None:
        raise _refusal(node, "a scale is computed at run time")
    return array.astype(np.float64)


def _along(node: ir.Node, array: Array, integers: Array) -> Array:
    """A number, or one for each channel: the first axis of a convolution's weight, the columns of a product."""
    if array.size == 1:
        return array.reshape(())
    first = node.op_type == "QLinearConv" or bool(node.attributes.get_int("transB", 0))
    return array.reshape(-1, *[1] * (integers.ndim - 1)) if first else array.reshape(-1)


def _refusal(node: ir.Node, reason: str) -> ModelError:
    return ModelError(f"The node {label_of(node)} cannot be looked into: {reason}.")
