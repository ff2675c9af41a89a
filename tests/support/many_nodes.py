"""A network of many nodes, as a deep ResNet has them, small enough to be calibrated in a moment."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CHANNELS = 8


def deep_resnet(blocks: int) -> onnx.ModelProto:
    """x [N, 8, 6, 6] -> residual blocks of 6 nodes (Conv, Relu, Conv, Relu, Conv, Add) -> a product: 6 * blocks + 3
    nodes, whose names tell nothing."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(name: str, *shape: int) -> str:
        scale = 0.9 / np.sqrt(np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(generator.normal(0, scale, shape).astype(np.float32), name))
        return name

    now = "x"
    for block in range(blocks):
        name, source = f"block{block}", now
        for part, kernel in enumerate((1, 3, 1)):
            made = f"{name}_conv{part}_out"
            inputs = [source, weight(f"{name}_w{part}", _CHANNELS, _CHANNELS, kernel, kernel)]
            pads = [kernel // 2] * 4
            nodes.append(helper.make_node("Conv", inputs, [made], name=f"Conv_{len(nodes)}", pads=pads))
            source = made
            if part < 2:
                nodes.append(helper.make_node("Relu", [made], [f"{made}_relu"], name=f"Relu_{len(nodes)}"))
                source = f"{made}_relu"
        nodes.append(helper.make_node("Add", [source, now], [f"{name}_out"], name=f"Add_{len(nodes)}"))
        now = f"{name}_out"
    nodes.append(helper.make_node("GlobalAveragePool", [now], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", weight("head", _CHANNELS, 10)], ["y"], name="head"))
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", _CHANNELS, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
