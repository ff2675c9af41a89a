"""The Q/DQ targets as tables of rules."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from amct_onnx.core.qdq_target import QdqRule, QdqTarget
from amct_onnx.core.spec import QSpec

_SAME = QdqRule(inputs="first", output="same")
_FOLLOWS = QdqRule()
_FOLLOWS_FIRST = QdqRule(inputs="first")
_MOVES = {
    name: _SAME
    for name in (
        *("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather"),
        *("Resize", "DepthToSpace", "Expand", "Tile", "Identity", "ReduceMax"),
    )
}
_MOVES |= dict.fromkeys(("Pad", "SpaceToDepth"), QdqRule(inputs="first", output="same", direct=True))

# What becomes an integer kernel in ONNX Runtime's CPU provider (1.20 to 1.32, tests/e2e/test_kernels.py).
ONNXRUNTIME = QdqTarget(
    name="onnxruntime",
    rules={
        "Conv": QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5))),
        "Gemm": QdqRule(leads=True, weight_ranks=frozenset((2,)), output="free"),
        "MatMul": QdqRule(leads=True, weight_ranks=frozenset((2,)), output="free"),
        **dict.fromkeys(("Add", "Mul"), _FOLLOWS),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"), _FOLLOWS_FIRST),
        "Concat": QdqRule(output="same"),
        **_MOVES,
    },
    activation=QSpec(symmetric=False),
    weight=QSpec(),
    unsigned_activations=True,
    absorbs=frozenset(("Relu", "Clip")),
    int32_bias=True,
)

_LAYERS = {
    "Conv": QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5)), output="float"),
    "ConvTranspose": QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5)), output="float"),
    "Gemm": QdqRule(leads=True, weight_ranks=frozenset((2,)), output="float"),
    "MatMul": QdqRule(leads=True, weight_ranks=frozenset((2,)), output="float"),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool"), QdqRule(inputs="first", output="float")),
}

# NVIDIA TensorRT, "Working with Quantized Types", explicit quantization: scales of activations per tensor, of weights
# per output channel, zero points 0; Q/DQ in front of what computes and not behind it; of a sum, the branch that no
# convolution is fused into.
TENSORRT = QdqTarget(
    name="tensorrt",
    rules={**_LAYERS, "Add": QdqRule(inputs="branch", output="float")},
    activation=QSpec(),
    weight=QSpec(),
)

OPENVINO = QdqTarget(
    name="openvino",
    rules={**_LAYERS, "Add": QdqRule(output="float")},
    activation=QSpec(symmetric=False),
    weight=QSpec(),
    unsigned_activations=True,
)

QDQ_TARGETS: Mapping[str, QdqTarget] = MappingProxyType({t.name: t for t in (ONNXRUNTIME, TENSORRT, OPENVINO)})
