"""The Q/DQ targets as tables of rules."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from amct_onnx.core.qdq_target import QdqRule, QdqTarget
from amct_onnx.core.spec import QSpec

_SAME = QdqRule(inputs="first", output="same")
_MOVING = (
    *("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather"),
    *("Resize", "DepthToSpace", "Expand", "Tile", "Identity", "ReduceMax"),
)
_MOVES = dict.fromkeys(_MOVING, _SAME)
_LAYERS = {
    "Conv": QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5))),
    "Gemm": QdqRule(leads=True, weight_ranks=frozenset((2,)), output="free"),
    "MatMul": QdqRule(leads=True, weight_ranks=frozenset((2,)), output="free"),
    **dict.fromkeys(("Add", "Mul"), QdqRule()),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"), QdqRule(inputs="first")),
    "Concat": QdqRule(output="same"),
    **_MOVES,
}
_CLAMPS = frozenset(("Relu", "Clip"))

# What becomes an integer kernel in ONNX Runtime's CPU provider (tests/e2e/test_kernels.py). SpaceToDepth does not: it
# has no rule between DQ and Q, and version 1.20 has none for bytes.
ONNXRUNTIME = QdqTarget(
    name="onnxruntime",
    rules=_LAYERS | {"Pad": QdqRule(inputs="first", output="same", direct=True)},
    activation=QSpec(symmetric=False),
    weight=QSpec(),
    unsigned_activations=True,
    absorbs=_CLAMPS,
    drops_clamps=True,
    beyond="com.microsoft",
    int32_bias=True,
    rounds_floats=frozenset(("Conv", "ConvTranspose", "Gemm")),
)

# What runs in u8 in OpenVINO's CPU plugin (tests/e2e/test_openvino.py). It reads Q/DQ as FakeQuantize, fuses clamps
# itself, and has an integer ConvTranspose.
OPENVINO = QdqTarget(
    name="openvino",
    rules=_LAYERS
    | dict.fromkeys(("Pad", "SpaceToDepth"), _SAME)
    | {"ConvTranspose": QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5)), output="free")},
    activation=QSpec(symmetric=False),
    weight=QSpec(),
    unsigned_activations=True,
    absorbs=_CLAMPS,
)

# NVIDIA TensorRT, "Working with Quantized Types", explicit quantization: scales of activations per tensor, of weights
# per output channel, zero points 0; Q/DQ in front of what computes and not behind it; of a sum, the branch that no
# convolution is fused into (tests/contracts/test_tensorrt_rules.py).
TENSORRT = QdqTarget(
    name="tensorrt",
    rules={
        **dict.fromkeys(
            ("Conv", "ConvTranspose"), QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5)), output="float")
        ),
        **dict.fromkeys(("Gemm", "MatMul"), QdqRule(leads=True, weight_ranks=frozenset((2,)), output="float")),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool"), QdqRule(inputs="first", output="float")),
        "Add": QdqRule(inputs="branch", output="float"),
    },
    activation=QSpec(),
    weight=QSpec(),
)

QDQ_TARGETS: Mapping[str, QdqTarget] = MappingProxyType({t.name: t for t in (ONNXRUNTIME, TENSORRT, OPENVINO)})
