"""A target that takes Q/DQ models, as data: which tensors of each operator it wants quantized, and on which grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from amct_onnx.numerics.grid import LEAST_SCALE, MOST_SCALE, QSpec
from amct_onnx.values.prices import ONNXRUNTIME_PRICES, Prices

OutputRule = Literal["required", "free", "same", "float"]
InputRule = Literal["all", "first", "branch"]


@dataclass(frozen=True, kw_only=True)
class QdqRule:
    """What a target wants of one operator type.

    leads: quantized on its own account; otherwise only among tensors that are quantized anyway. inputs: the variable
    inputs that are quantized: all, the first one, or of a sum all but the one that its producer is fused with.
    weight_ranks: ranks of the constant input 1 that becomes int8, empty for an operator without weight.
    output: "required" (the operator is an integer kernel only in front of a QuantizeLinear), "free" (its result may be
    float), "same" (it moves, picks or compares elements: input and output share one grid), "float" (the target wants no
    QuantizeLinear behind it). direct: written on the integers themselves, since the target has no integer kernel for it
    between DequantizeLinear and QuantizeLinear.
    """

    leads: bool = False
    inputs: InputRule = "all"
    weight_ranks: frozenset[int] = frozenset()
    output: OutputRule = "required"
    direct: bool = False


@dataclass(frozen=True, kw_only=True)
class QdqTarget:
    """A named table of rules.

    rules: by operator type. activation, weight: grids, of which the file has unsigned integers where
    `unsigned_activations`. absorbs: operators that become one with the kernel in front of them, so that the
    QuantizeLinear stands behind both; `drops_clamps`: they are left out, since the grid has their effect. int32_bias:
    biases are int32 behind a DequantizeLinear, also what an Add gives the columns of a MatMul, else float32.
    minimum_opset, maximum_opset: versions of the default domain whose QuantizeLinear and DequantizeLinear the target
    has. beyond: the domain of those in later models, "" for none. rounds_floats: operators that the target
    computes in integers by itself where a DequantizeLinear stands in front of the node and a QuantizeLinear behind it,
    with a rounded weight or a slow kernel; those that are to stay in float are set apart from the latter.
    looks_behind: operators behind which it looks for the QuantizeLinear of a product, which is no integer kernel where
    something else reads them. gathers_channels: channels are shuffled faster by a Gather than by a Transpose.
    splits_readers: it gives each reader of a DequantizeLinear one of its own, and fuses no nodes that read several of
    these. tables: nodes may look up rows in a table of integers; tied_tables: a layer that multiplies with the same
    table, turned, is in integers even where it reads those. own_weights: no two layers may read one initializer of int8
    weights, which the file has once all the same; the other targets take a weight from an initializer only. runs_here:
    the runtime that measures models on this machine is the target itself. packs_weights: it multiplies by weights that
    alone are in few bits. dynamic: it quantizes activations as they come. prices: what layers cost there, where that
    was measured.
    """

    name: str
    rules: Mapping[str, QdqRule]
    activation: QSpec
    weight: QSpec
    unsigned_activations: bool = False
    absorbs: frozenset[str] = frozenset()
    drops_clamps: bool = False
    int32_bias: bool = False
    minimum_opset: int = 13
    maximum_opset: int = 27
    beyond: str = ""
    rounds_floats: frozenset[str] = frozenset()
    looks_behind: frozenset[str] = frozenset()
    gathers_channels: bool = False
    splits_readers: bool = False
    tables: bool = False
    tied_tables: bool = False
    own_weights: bool = False
    runs_here: bool = False
    packs_weights: bool = False
    prices: Prices | None = None
    dynamic: bool = False


# The files have float32 scales, which are bounded by nothing else.
_SYMMETRIC = QSpec(least_scale=LEAST_SCALE, most_scale=MOST_SCALE)
_ASYMMETRIC = replace(_SYMMETRIC, symmetric=False)

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
    activation=_ASYMMETRIC,
    weight=_SYMMETRIC,
    unsigned_activations=True,
    absorbs=_CLAMPS,
    drops_clamps=True,
    beyond="com.microsoft",
    int32_bias=True,
    rounds_floats=frozenset(("Conv", "ConvTranspose", "Gemm", "AveragePool", "MaxPool")),
    looks_behind=_CLAMPS,
    gathers_channels=True,
    splits_readers=True,
    tables=True,
    tied_tables=True,
    own_weights=True,
    runs_here=True,
    packs_weights=True,
    prices=ONNXRUNTIME_PRICES,
    dynamic=True,
)

# What runs in u8 in OpenVINO's CPU plugin (tests/e2e/test_openvino.py). It reads Q/DQ as FakeQuantize, fuses clamps
# itself, and has an integer ConvTranspose.
OPENVINO = QdqTarget(
    name="openvino",
    rules=_LAYERS
    | dict.fromkeys(("Pad", "SpaceToDepth"), _SAME)
    | {"ConvTranspose": QdqRule(leads=True, weight_ranks=frozenset((3, 4, 5)), output="free")},
    activation=_ASYMMETRIC,
    weight=_SYMMETRIC,
    unsigned_activations=True,
    absorbs=_CLAMPS,
    tables=True,
    own_weights=True,
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
    activation=_SYMMETRIC,
    weight=_SYMMETRIC,
)

QDQ_TARGETS: Mapping[str, QdqTarget] = MappingProxyType({t.name: t for t in (ONNXRUNTIME, TENSORRT, OPENVINO)})
