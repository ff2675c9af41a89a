"""Models as the file formats see them, written down by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from amct_onnx.values.layers import GraphFacts, LayerTraits


def conv(name: str, channels: int, inputs: int, rank: int = 4, kind: str = "Conv") -> LayerTraits:
    return LayerTraits(
        name=name,
        op_type=kind,
        channels=channels,
        input_channels=inputs,
        weight_rank=rank,
        channel_wise=True,
        symmetric_only=rank == 5,
    )


def dense(name: str, inputs: int, kind: str = "Gemm", **more: object) -> LayerTraits:
    return LayerTraits(name=name, op_type=kind, input_channels=inputs, weight_rank=2, **more)  # type: ignore[arg-type]


def make_facts(*layers: LayerTraits, others: dict[str, str] | None = None, fusable: tuple[str, ...] = ()) -> GraphFacts:
    nodes = {layer.name: layer.op_type for layer in layers} | (others or {})
    return GraphFacts(nodes=nodes, layers={layer.name: layer for layer in layers}, fusable=frozenset(fusable))


@pytest.fixture
def facts() -> GraphFacts:
    """One layer of each kind that the rules tell apart."""
    return make_facts(
        conv("Conv_0", 4, 3),
        conv("Conv_1d", 4, 3, rank=3),
        conv("Conv_3d", 2, 3, rank=5),
        replace(conv("Conv_dilated", 4, 3), dilated=True),
        dense("Gemm_1", 8),
        dense("MatMul_2", 8, "MatMul"),
        LayerTraits(name="MatMul_vv", op_type="MatMul", symmetric_only=True),
        LayerTraits(name="Pool_3", op_type="AveragePool"),
        dense("Gemm_bad", 8, reason="alpha is 2.0"),
        *(conv(f"{kind}_{i}", 16, 3, rank=3, kind=kind) for i, kind in ((7, "LSTM"), (8, "GRU"))),
        others={"Relu_4": "Relu", "MaxPool_5": "MaxPool", "Add_6": "Add"},
        fusable=("Conv_0", "Conv_1d"),
    )


_CNN = (
    conv("stem", 16, 3),
    conv("b1.conv1", 32, 16),
    conv("b1.conv2", 32, 32),
    conv("b1.down", 32, 16),
    conv("dw", 32, 32),
    conv("up", 16, 32, kind="ConvTranspose"),
    LayerTraits(name="avg", op_type="AveragePool"),
    dense("fc", 1024),
)
_MLP = (dense("l1", 32, "MatMul"), dense("l2", 64, "MatMul"), dense("l3", 32, "MatMul"))
_INVERTED = (
    conv("stem", 8, 3),
    conv("e1", 48, 8),
    conv("d1", 48, 48),
    conv("p1", 8, 48),
    conv("e2", 40, 8),
    conv("g", 40, 40),
    dense("fc", 40),
)
GOLDEN = {
    "ifmr_asymmetric": _CNN,
    "ifmr_symmetric": _CNN,
    "hfmg": _CNN,
    "overrides": _CNN,
    "inverted": _INVERTED,
    "mlp": _MLP,
    "dmq": _MLP,
    "vol": (conv("c1", 6, 2, rank=5), conv("c2", 4, 6, rank=5)),
}


@pytest.fixture(params=sorted(GOLDEN))
def golden(request: pytest.FixtureRequest) -> tuple[str, GraphFacts]:
    """The name of a golden case and what is known of its model."""
    return request.param, make_facts(*GOLDEN[request.param], fusable=("stem",))
