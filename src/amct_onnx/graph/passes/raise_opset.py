"""Raise a model of opset 11 or 12 to 13, the first one whose DequantizeLinear takes a scale for each channel.

Before (opset 11, 12)                         After (opset 13)
Squeeze, Unsqueeze, ReduceSum <axes> (x)      the same with axes as an input
Split <split> (x)                             Split (x, split)
Dropout <ratio> (x)                           Dropout (x, ratio)
Softmax <axis> (x), last axis                 Softmax <axis> (x); also LogSoftmax, Hardmax
Softmax <axis> (x), any other axis            Reshape(Softmax <axis=-1> (Flatten <axis> (x)), Shape(x)); also those
Resize (x, roi, scales, sizes)                Resize (x, roi, , sizes): the scales are empty

Every other operator means the same in all three (https://onnx.ai/onnx/operators): it only takes more types, or has a
new attribute whose default is what the operator did before.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import graph_of, input_of, is_standard, label_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_tensor, lift_ir3, remove_unused
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.tensors import shape_of

_LOWEST, _TARGET = 11, 13
_IR_VERSION = 7  # the one that came with opset 13
_SOFTMAXES = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
# Attributes that become the second input.
_INPUTS = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split", "Dropout": "ratio"}
CHANGED = frozenset({*_INPUTS, *_SOFTMAXES, "Resize"})
_SCALES, _SIZES = 2, 3  # inputs of Resize


def raise_opset(model: ir.Model, version: int) -> None:
    """Raise the default domain of `model` to `version`, in place: from 11 or 12 to 13.

    A model that is at `version` or above stays as it is. What the model computes stays the same bit for bit; so do the
    names of nodes and values, metadata and other domains. Functions of the model are raised too, the IR version to 7 at
    least. No large tensor is read.

    A Softmax that becomes a Reshape cannot give back a tensor without elements whose empty axis is `axis` or one behind
    it: before opset 14 a Reshape reads 0 as "as in the input".

    Raises ModelError, with the model unchanged, for any other version, and for a node whose meaning opset 13 cannot
    express: it names the node.
    """
    current = default_opset(model)
    if current >= version:
        return
    if current < _LOWEST or version != _TARGET:
        has = f"is of opset {current}" if current else "does not say of which opset it is"
        raise ModelError(
            f"The model {has} and opset {version} is needed; only opset 11 and 12 can be raised here, and only to 13: "
            "convert it with onnx.version_converter."
        )
    functions = [function for function in model.functions.values() if _is_lower(function)]
    for function in functions:
        _check(function.all_nodes(), default_opset(function), f"function {function.name}")
    _check(model.graph.all_nodes(), current, "the graph")

    lift_ir3(model)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    for function in functions:
        _Raiser(ValueNames(function), in_function=True).apply(function.all_nodes())
        _import(function.opset_imports)
    _Raiser(ValueNames(model), in_function=False).apply(model.graph.all_nodes())
    _import(model.opset_imports)


def _is_lower(function: ir.Function) -> bool:
    """The function has operators of the default domain, at a version that has to be raised."""
    version = default_opset(function)
    if version and version < _LOWEST:
        raise ModelError(
            f"Function {function.name} of the model is of opset {version}; only opset 11 and 12 can be raised here: "
            "convert it with onnx.version_converter."
        )
    return 0 < version < _TARGET


def _import(imports: dict[str, int]) -> None:
    for domain in ("", "ai.onnx"):
        if domain in imports:
            imports[domain] = _TARGET


def _check(nodes: Iterable[ir.Node], version: int, where: str) -> None:
    for node in nodes:
        reason = _refusal(node, version) if is_standard(node) else None
        if reason is not None:
            raise ModelError(
                f"Node {node.name or '(unnamed)'} ({node.op_type}) in {where} cannot be raised from opset {version} to "
                f"{_TARGET}: {reason}. Export the model with opset {_TARGET} or convert it with onnx.version_converter."
            )


def _refusal(node: ir.Node, version: int) -> str | None:
    """Why opset 13 has no form for the node, None if it has one."""
    moved = "axis" if node.op_type in _SOFTMAXES else _INPUTS.get(node.op_type, "")
    if moved in node.attributes and node.attributes[moved].is_ref():
        return f"its {moved} is an argument of the function"
    mask = node.outputs[1] if node.op_type == "Dropout" and len(node.outputs) > 1 else None
    if mask is not None and version < 12 and (mask.uses() or mask.is_graph_output()):
        return "its mask is read, which opset 11 leaves open outside training"
    mode = node.attributes.get("coordinate_transformation_mode") if node.op_type == "Resize" else None
    if mode is not None and (mode.is_ref() or mode.as_string() == "tf_half_pixel_for_nn"):
        return "its coordinate_transformation_mode must not be tf_half_pixel_for_nn"
    return None


class _Raiser:
    """Rewrites the nodes of one scope of names: the model, or one of its functions."""

    def __init__(self, names: ValueNames, *, in_function: bool) -> None:
        self._names = names
        self._in_function = in_function

    def apply(self, nodes: Iterable[ir.Node]) -> None:
        for node in list(nodes):
            if not is_standard(node):
                continue
            if node.op_type in _INPUTS:
                self._move_attribute(node, _INPUTS[node.op_type])
            elif node.op_type in _SOFTMAXES:
                self._soften(node)
            elif node.op_type == "Resize":
                _drop_scales(node)

    def _move_attribute(self, node: ir.Node, name: str) -> None:
        attribute = node.attributes.pop(name, None)
        if attribute is None:
            return
        dtype = np.float32 if attribute.type == ir.AttributeType.FLOAT else np.int64
        constant = self._constant(node, name, np.array(attribute.value, dtype))
        node.resize_inputs(2)
        node.replace_input_with(1, constant)

    def _constant(self, node: ir.Node, name: str, array: np.ndarray) -> ir.Value:
        """A new constant beside `node`: bodies of functions cannot hold initializers."""
        graph, hint = graph_of(node), f"{label_of(node)}.{name}"
        if not self._in_function:
            return add_initializer(graph, hint, array, names=self._names)
        tensor = ir.Tensor(array)
        output = ir.val(self._names.new(hint), type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape))
        graph.insert_before(node, ir.node("Constant", [], {"value": tensor}, outputs=[output]))
        return output

    def _soften(self, node: ir.Node) -> None:
        """Before opset 13 it works on a matrix: the axes before `axis`, which is 1 by default, and all others."""
        axis, x, old = node.attributes.get_int("axis", 1), input_of(node, 0), node.outputs[0]
        rank = None if x.shape is None else len(x.shape)
        if axis == -1 or (rank is not None and axis == rank - 1):
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
            return
        graph = graph_of(node)
        base = label_of(node)
        matrix = ir.val(self._names.new(f"{base}.flatten.output0"), type=x.type)
        shape = ir.val(self._names.new(f"{base}.shape.output0"), type=ir.TensorType(ir.DataType.INT64))
        result = ir.val(old.name, type=old.type, shape=old.shape)
        result.doc_string = old.doc_string
        result.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        old.name, old.shape, old.doc_string = self._names.new(f"{base}.output0"), None, None
        old.metadata_props.clear()
        made = [
            self._named(node, "flatten", ir.node("Flatten", [x], {"axis": axis}, outputs=[matrix])),
            self._named(node, "shape", ir.node("Shape", [x], outputs=[shape])),
        ]
        graph.insert_before(node, made)
        node.replace_input_with(0, matrix)
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
        graph.insert_after(node, self._named(node, "reshape", ir.node("Reshape", [old, shape], outputs=[result])))

    def _named(self, node: ir.Node, part: str, made: ir.Node) -> ir.Node:
        """A new node named after the one it helps; without a name if that has none."""
        made.name = self._names.node(f"{node.name}.{part}") if node.name else None
        return made


def _drop_scales(node: ir.Node) -> None:
    """With sizes the scales had to be an empty tensor; from opset 13 on they have to be absent."""
    if optional_input(node, _SIZES) is None:
        return
    scales = node.inputs[_SCALES]
    known = constant_tensor(scales)
    if known is None or 0 in shape_of(known):
        node.replace_input_with(_SCALES, None)
        remove_unused((scales,))
