"""Float32 models as float16 ones: weights, inputs, outputs and everything between."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in float16. For models without subgraphs whose operators need no float32 input (Resize does)."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    for tensor in graph.initializer:
        _convert(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert(attribute.t)
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    return half


def mixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 inside and float32 outside, with a Cast at each input and output, as converters leave it."""
    half = to_half(model)
    inner = {value.name: f"{value.name}_half" for value in (*half.graph.input, *half.graph.output)}
    for node in half.graph.node:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    for value in half.graph.input:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        cast = helper.make_node("Cast", [value.name], [inner[value.name]], to=TensorProto.FLOAT16)
        half.graph.node.insert(0, cast)
    for value in half.graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        half.graph.node.append(helper.make_node("Cast", [inner[value.name]], [value.name], to=TensorProto.FLOAT))
    return half


def _convert(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
