"""Candidates: which nodes could be quantized, and every reason why one cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from amct_onnx.graph.access import is_standard
from amct_onnx.graph.layers import candidates, quantized_nodes
from amct_onnx.values.ascend_table import ASCEND, OpRule, Target
from amct_onnx.values.layers import LayerTraits


def _model(body: str, *, inputs: str = "float[1,4,8,8] x", imports: str = '"" : 17', **arrays: Any) -> ir.Model:
    """A model whose only output is `y`; types of inner values stay open."""
    text = f"<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => (float y) {{{body}}}"
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    return ir.from_proto(proto)


def _weight(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def _only(model: ir.Model) -> LayerTraits:
    (traits,) = candidates(model)
    return traits


# What can be quantized


@pytest.mark.parametrize(
    ("body", "weight", "channels", "input_channels"),
    [
        ("Conv (x, w)", (6, 4, 3), 6, 4),
        ("Conv (x, w)", (6, 4, 3, 3), 6, 4),
        ("Conv (x, w)", (6, 4, 2, 3, 3), 6, 4),
        ("Conv <group=2> (x, w)", (6, 2, 3, 3), 6, 4),
        ("Conv <group=4> (x, w)", (8, 1, 3, 3), 8, 4),
        ("ConvTranspose (x, w)", (4, 6, 3, 3), 6, 4),
        ("ConvTranspose <group=2> (x, w)", (4, 3, 3, 3), 6, 4),
        ("Gemm (x, w)", (4, 6), 1, 4),
        ("Gemm <transB=1> (x, w)", (6, 4), 1, 4),
        ("Gemm <alpha=0.5, beta=2.0, transA=1> (x, w)", (4, 6), 1, 4),
        ("MatMul (x, w)", (4, 6), 1, 4),
        ("MatMul (x, w)", (2, 4, 6), 1, 4),
    ],
)
def test_traits_of_a_layer(body: str, weight: tuple[int, ...], channels: int, input_channels: int) -> None:
    assert _only(_model(f"[layer] y = {body}", w=_weight(*weight))) == LayerTraits(
        name="layer",
        op_type=body.split(maxsplit=1)[0],
        reason=None,
        channels=channels,
        input_channels=input_channels,
        weight_rank=len(weight),
    )


def test_average_pool_has_no_weight() -> None:
    traits = _only(_model("[pool] y = AveragePool <kernel_shape=[2,2]> (x)"))
    assert traits == LayerTraits(name="pool", op_type="AveragePool")
    assert not traits.has_weight


@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,), ()])
def test_a_bias_of_one_row_is_fine(bias: tuple[int, ...]) -> None:
    assert _only(_model("[layer] y = Gemm (x, w, b)", w=_weight(4, 6), b=_weight(*bias))).reason is None


@pytest.mark.parametrize(
    "chain",
    [
        "w = Constant <value = float[4,6] {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24}> ()",
        "w = Transpose (v)",
        "w = Identity (u)",
        "w = Cast <to=1> (h)",
    ],
)
def test_a_weight_behind_a_chain_of_constants_is_constant(chain: str) -> None:
    arrays = {"v": _weight(6, 4), "u": _weight(4, 6), "h": _weight(4, 6, dtype=np.float16)}
    used = {name: array for name, array in arrays.items() if f"({name})" in chain}
    traits = _only(_model(f"{chain} [layer] y = MatMul (x, w)", **used))
    assert (traits.reason, traits.input_channels) == (None, 4)


def test_layers_come_in_graph_order_and_other_operators_do_not() -> None:
    model = _model(
        "[a] t = Conv (x, w) [b] u = Relu (t) [c] v = MaxPool <kernel_shape=[2,2]> (u) [d] s = GlobalAveragePool (v) "
        "[e] y = ConvTranspose (s, w)",
        w=_weight(4, 4, 1, 1),
    )
    assert [traits.name for traits in candidates(model)] == ["a", "e"]


def test_a_product_of_two_activations_is_a_candidate() -> None:
    traits = _only(_model("w = Relu (c) [l] y = MatMul (x, w)", c=_weight(4, 6)))
    assert traits == LayerTraits(name="l", op_type="MatMul", two_operands=True)
    assert not traits.has_weight
    assert ASCEND.judge(traits).reason is None
    assert ASCEND.judge(traits).symmetric_only


def test_operators_of_other_domains_are_not_candidates() -> None:
    model = _model("[a] y = other.Conv (x, w)", imports='"" : 17, "other" : 1', w=_weight(4, 4, 1, 1))
    assert list(candidates(model)) == []
    assert not is_standard(model.graph[0])


def test_the_default_domain_has_two_names() -> None:
    model = _model("[a] y = Conv (x, w)", w=_weight(4, 4, 1, 1))
    model.graph[0].domain = "ai.onnx"
    assert _only(model).reason is None


# Reasons of the graph


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        ("[l] y = Conv (x, v)", {}, "its weight is computed at run time"),
        ("w = Relu (c) [l] y = Gemm (x, w)", {"c": _weight(4, 6)}, "its weight is computed at run time"),
        ("[l] y = MatMul (w, x)", {"w": _weight(6, 4)}, "its constant operand is the first one"),
        ("[l] y = MatMul (x, v)", {}, "its operands must have 2 dimensions or more"),
        ("w = Cast <to=11> (x) [l] y = MatMul (w, w)", {}, "its input is DOUBLE, and only float32 is supported"),
        (
            "[l] y = Conv (x, w)",
            {"w": _weight(6, 4, 3, 3, dtype=np.float64)},
            "its weight is float64, and only float32 and float16",
        ),
        ("[l] y = Gemm (x, w)", {"w": _weight(4, 6, dtype=np.float64)}, "its weight is float64, and only float32"),
        ("[l] y = MatMul (x, w)", {"w": _weight(4, 6, dtype=np.int32)}, "its weight is int32, and only float32"),
        ("[l] y = MatMul (x, w)", {"w": _weight(4, 0)}, "its weight is empty"),
        ("[l] y = Conv (x, w)", {"w": _weight(0, 4, 3, 3)}, "its weight is empty"),
        ("[l] y = Conv (x, w, v)", {"w": _weight(6, 4, 3, 3)}, "its bias is computed at run time"),
        ("[l] y = ConvTranspose (x, w, v)", {"w": _weight(4, 6, 3, 3)}, "its bias is computed at run time"),
        ("[l] y = Gemm (x, w, v)", {"w": _weight(4, 6)}, "its bias is computed at run time"),
        ("[l] y = Gemm (x, w, b)", {"w": _weight(4, 6), "b": _weight(3, 6)}, "its bias differs from row to row"),
        ("[l] y = Gemm (x, w, b)", {"w": _weight(4, 6), "b": _weight(3, 1)}, "its bias differs from row to row"),
        ("[l] y = AveragePool <kernel_shape=[2]> (x)", {}, "its input does not have 4 dimensions"),
        ("[l] y = AveragePool <kernel_shape=[2,2,2]> (x)", {}, "its input does not have 4 dimensions"),
    ],
)
def test_reasons(body: str, arrays: dict[str, np.ndarray], reason: str) -> None:
    model = _model(body, inputs="float[1,4,8,8] x, float v", **arrays)
    got = _only(model).reason
    assert got is not None
    assert got.startswith(reason)


def test_a_pool_of_half_floats_is_left() -> None:
    model = _model("[l] y = AveragePool <kernel_shape=[2,2]> (x)", inputs="float16[1,4,8,8] x")
    reason = _only(model).reason
    assert reason is not None
    assert "only float32 is supported" in reason


@pytest.mark.parametrize("name", ["w", "b"])
def test_what_a_caller_may_override_is_not_constant(name: str) -> None:
    model = _model("[l] y = Conv (x, w, b)", w=_weight(6, 4, 3, 3), b=_weight(6))
    model.graph.inputs.append(model.graph.initializers[name])
    subject = "weight" if name == "w" else "bias"
    advice = "it is an input of the model too, remove it from the inputs of the graph"
    assert _only(model).reason == f"its {subject} ({name}) may be overridden: {advice}"


def test_layers_inside_a_subgraph_are_left() -> None:
    model = _model(
        """[before] a = Conv (x, w)
           [if] y = If (flag) <
             then_branch = g1 () => (float y1) {[inside] y1 = Conv (a, w)},
             else_branch = g2 () => (float y2) {[pool] y2 = AveragePool <kernel_shape=[1,1]> (a)} >""",
        inputs="float[1,4,8,8] x, bool flag",
        w=_weight(4, 4, 1, 1),
    )
    inside = "it is inside a subgraph"
    assert {t.name: t.reason for t in candidates(model)} == {"before": None, "inside": inside, "pool": inside}


# Reasons of the target


def _traits(op_type: str, rank: int, reason: str | None = None) -> LayerTraits:
    return LayerTraits(name="l", op_type=op_type, weight_rank=rank, reason=reason)


@pytest.mark.parametrize(
    ("op_type", "rank", "channel_wise", "symmetric_only"),
    [
        ("Conv", 3, True, False),
        ("Conv", 4, True, False),
        ("Conv", 5, True, True),
        ("ConvTranspose", 4, True, False),
        ("Gemm", 2, False, False),
        ("MatMul", 2, False, False),
        ("MatMul", 3, False, False),
        ("AveragePool", 0, False, False),
    ],
)
def test_what_ascend_takes(op_type: str, rank: int, channel_wise: bool, symmetric_only: bool) -> None:
    traits = _traits(op_type, rank)
    want = dataclasses.replace(traits, channel_wise=channel_wise, symmetric_only=symmetric_only)
    assert ASCEND.judge(traits) == want


@pytest.mark.parametrize(
    ("op_type", "rank", "takes"),
    [
        ("Conv", 2, "3, 4, 5"),
        ("Conv", 6, "3, 4, 5"),
        ("ConvTranspose", 3, "4"),
        ("ConvTranspose", 5, "4"),
        ("Gemm", 1, "2"),
        ("MatMul", 1, "2, 3"),
        ("MatMul", 4, "2, 3"),
    ],
)
def test_ranks_that_ascend_does_not_take(op_type: str, rank: int, takes: str) -> None:
    reason = f"its weight has {rank} dimensions, target ascend takes {takes}"
    assert ASCEND.judge(_traits(op_type, rank)).reason == reason


def test_the_reason_of_the_graph_comes_first() -> None:
    assert ASCEND.judge(_traits("Conv", 0, "its weight is computed at run time")).reason == (
        "its weight is computed at run time"
    )
    assert Target(name="t", rules={}).judge(_traits("Conv", 4, "why")).reason == "why"


def test_an_operator_that_the_target_does_not_know() -> None:
    target = Target(name="tiny", rules={"Gemm": OpRule(weight_ranks=frozenset((2,)))})
    assert target.judge(_traits("Conv", 4)).reason == "target tiny has no integer Conv"


@pytest.mark.parametrize(
    ("op_type", "rank", "balancing", "weight_bits"),
    [
        ("Conv", 3, False, (4, 8)),
        ("Conv", 4, True, (4, 6, 7, 8)),
        ("Conv", 5, True, (4, 8)),
        ("ConvTranspose", 4, True, (4, 8)),
        ("Gemm", 2, True, (4, 8)),
        ("MatMul", 2, True, (4, 8)),
        ("AveragePool", 0, False, (4, 8)),
        ("LSTM", 3, False, (8,)),
        ("GRU", 3, False, (8,)),
    ],
)
def test_extras_of_a_layer(op_type: str, rank: int, balancing: bool, weight_bits: tuple[int, ...]) -> None:
    traits = _traits(op_type, rank)
    assert (traits.supports_balancing, traits.weight_bits) == (balancing, weight_bits)


@pytest.mark.parametrize(
    ("op_type", "rank", "clusters"),
    [("Conv", 3, 0), ("Conv", 4, 1), ("Conv", 5, 0), ("ConvTranspose", 4, 0), ("Gemm", 2, 1), ("AveragePool", 0, 0)],
)
def test_layers_whose_weights_can_be_clustered(op_type: str, rank: int, clusters: bool) -> None:
    assert _traits(op_type, rank).supports_clusters == clusters
    assert not (op_type == "Conv" and dataclasses.replace(_traits(op_type, rank), dilated=True).supports_clusters)


@pytest.mark.parametrize(
    ("attribute", "dilated"), [("", False), ("<dilations=[1,1]>", False), ("<dilations=[1,2]>", True)]
)
def test_dilations(attribute: str, dilated: bool) -> None:
    assert _only(_model(f"[c] y = Conv {attribute} (x, w)", w=_weight(2, 4, 3, 3))).dilated == dilated


# Models that are quantized already


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ("AscendQuant (x)", True),
        ("AscendDequant (x, w)", True),
        ("QuantizeLinear (x, w)", True),
        ("MatMulInteger (x, w)", True),
        ("amct.customop.IFMR (x)", True),
        ("Relu (x)", False),
        ("other.AscendQuant (x)", False),
    ],
)
def test_quantized_nodes(node: str, found: bool) -> None:
    imports = '"" : 17, "amct.customop" : 1, "other" : 1'
    arrays = {"w": _weight(1)} if "w" in node else {}
    model = _model(f"[n] y = {node}", imports=imports, **arrays)
    assert [n.name for n in quantized_nodes(model)] == (["n"] if found else [])


def test_quantized_nodes_in_subgraphs() -> None:
    model = _model(
        """y = If (flag) <then_branch = g1 () => (float y1) {[hidden] y1 = DequantizeLinear (x, s)},
                          else_branch = g2 () => (float y2) {y2 = Relu (x)}>""",
        inputs="float x, bool flag",
        s=_weight(),
    )
    assert [n.name for n in quantized_nodes(model)] == ["hidden"]
