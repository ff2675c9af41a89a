"""Which nodes and tensors a Q/DQ target gets quantized."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from amct_onnx.graph.naming import name_nodes
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.values.qdq_tables import ONNXRUNTIME, OPENVINO, QDQ_TARGETS, TENSORRT

W = "float[4,4,1,1] w = {" + ", ".join(["0.5"] * 16) + "}"


def build(
    body: str, *, constants: str = W, inputs: str = "float[N,4,8,8] x", outputs: str = "float[N,4,8,8] y"
) -> ir.Model:
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 13]> g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
    )
    name_nodes(model)
    return model


def groups(model: ir.Model, target=ONNXRUNTIME) -> set[frozenset[str]]:
    return {frozenset(group.tensors) for group in plan_qdq(model, target).groups}


def test_a_relu_behind_a_convolution_goes_into_the_grid_of_its_output() -> None:
    plan = plan_qdq(build("a = Conv(x, w) b = Relu(a) y = Conv(b, w)"), ONNXRUNTIME)
    assert {g.tensors for g in plan.groups} == {("x",), ("b",), ("y",)}
    assert plan.absorbed == {"Relu_1": "Conv_0"}


def test_a_relu_whose_input_others_read_stays() -> None:
    plan = plan_qdq(build("a = Conv(x, w) b = Relu(a) c = Conv(b, w) y = Add(a, c)"), ONNXRUNTIME)
    assert not plan.absorbed
    assert ("a",) in {g.tensors for g in plan.groups}


@pytest.mark.parametrize("body", ["a = Conv(x, w) b = Conv(x, w) y = Add(a, b)", "a = Conv(x, w) y = Mul(a, a)"])
def test_arithmetic_on_quantized_tensors_is_quantized(body: str) -> None:
    plan = plan_qdq(build(body), ONNXRUNTIME)
    assert all(decision.quantized for decision in plan.decisions)
    assert "y" in plan.integer


def test_arithmetic_on_a_float_tensor_is_not() -> None:
    plan = plan_qdq(build("a = Conv(x, w) b = Exp(a) y = Add(a, b)"), ONNXRUNTIME)
    assert [(d.layer, d.quantized) for d in plan.decisions] == [("Conv_0", True), ("Add_2", False)]
    assert "float" in plan.decisions[1].reason


def test_operators_that_move_elements_share_one_grid_with_what_they_read_and_give() -> None:
    model = build(
        "a = Conv(x, w) b = MaxPool<kernel_shape = [1, 1]>(a) c = Transpose<perm = [0, 1, 3, 2]>(b) y = Conv(c, w)"
    )
    assert frozenset({"a", "b", "c"}) in groups(model)
    assert next(g.sources for g in plan_qdq(model, ONNXRUNTIME).groups if "a" in g.tensors) == ("a",)


def test_a_concatenation_shares_one_grid_and_its_statistic_is_that_of_its_operands() -> None:
    model = build("a = Conv(x, w) b = Conv(x, w) y = Concat<axis = 1>(a, b)", outputs="float[N,8,8,8] y")
    group = next(g for g in plan_qdq(model, ONNXRUNTIME).groups if "y" in g.tensors)
    assert set(group.tensors) == {"a", "b", "y"}
    assert set(group.sources) == {"a", "b"}


def test_a_tensor_is_quantized_in_front_of_what_moves_it() -> None:
    model = build("a = Transpose<perm = [0, 1, 3, 2]>(x) y = Conv(a, w)")
    assert frozenset({"x", "a"}) in groups(model)


def test_the_result_of_the_last_product_stays_in_float() -> None:
    constants = "float[4,3] w = {" + ", ".join(["0.5"] * 12) + "}"
    plan = plan_qdq(
        build("y = Gemm(x, w)", constants=constants, inputs="float[N,4] x", outputs="float[N,3] y"), ONNXRUNTIME
    )
    assert {g.tensors for g in plan.groups} == {("x",)}


def test_a_node_that_is_switched_off_stays_in_float_and_says_why() -> None:
    model = build("a = Conv(x, w) b = Conv(a, w) y = Add(a, b)")
    plan = plan_qdq(model, ONNXRUNTIME, off={"Conv_1": "it is not wanted"})
    assert [d.quantized for d in plan.decisions] == [True, False, False]
    assert plan.decisions[1].reason == "it is not wanted"


def test_a_pad_with_something_else_than_zeros_stays_in_float() -> None:
    constants = f"{W}, int64[8] p = {{0, 0, 1, 1, 0, 0, 1, 1}}, float one = {{1}}"
    body = "a = Conv(x, w) b = Pad(a, p, one) y = Conv(b, w)"
    plan = plan_qdq(build(body, constants=constants, outputs="float[N,4,10,10] y"), ONNXRUNTIME)
    assert [(d.layer, d.quantized) for d in plan.decisions] == [("Conv_0", True), ("Pad_1", False), ("Conv_2", True)]


def test_tensorrt_quantizes_the_branch_of_a_sum_that_no_convolution_is_fused_with() -> None:
    plan = plan_qdq(build("a = Conv(x, w) y = Add(x, a)"), TENSORRT)
    assert ("Add_1", 0) in plan.reads
    assert ("Add_1", 1) not in plan.reads
    assert not plan.integer


def test_openvino_quantizes_both_operands_of_a_sum() -> None:
    plan = plan_qdq(build("a = Conv(x, w) y = Add(x, a)"), OPENVINO)
    assert {("Add_1", 0), ("Add_1", 1)} <= plan.reads


@pytest.mark.parametrize("target", QDQ_TARGETS.values(), ids=lambda target: target.name)
def test_nodes_in_subgraphs_and_of_other_types_stay_out(target) -> None:
    model = build("a = Conv(x, w) y = com.example.Thing(a)")
    assert [d.layer for d in plan_qdq(model, target).decisions] == ["Conv_0"]


@pytest.mark.parametrize("target", QDQ_TARGETS.values(), ids=lambda target: target.name)
def test_float16_stays_out(target) -> None:
    constants = "float16[4,4,1,1] w = {" + ", ".join(["14336"] * 16) + "}"  # the bits of 0.5
    model = build("y = Conv(x, w)", constants=constants, inputs="float16[N,4,8,8] x", outputs="float16[N,4,8,8] y")
    plan = plan_qdq(model, target)
    assert not plan.groups
    assert not plan.decisions[0].quantized


def sources(body: str, tensor: str, *, more: str = "") -> set[str]:
    model = build(body, constants=", ".join(part for part in (W, more) if part))
    return set(next(g.sources for g in plan_qdq(model, OPENVINO).groups if tensor in g.tensors))


def test_a_pool_is_on_integers_for_onnxruntime_where_a_convolution_has_put_the_channels_last() -> None:
    body = f"""p = {POOL}(x) a = Conv(p, w) b = {POOL}(a) c = Sigmoid(b) d = {POOL}(c) e = Add(x, a) f = {POOL}(e)
        z = Add(d, f) y = Conv(d, w)"""
    model = build(body, outputs="float[] y, float[] z")
    for target, left_out in ((ONNXRUNTIME, ["MaxPool_0", "Add_5", "MaxPool_6"]), (OPENVINO, [])):
        in_float = [d.layer for d in plan_qdq(model, target).decisions if not d.quantized]
        assert [name for name in in_float if name != "Add_7"] == left_out


@pytest.mark.parametrize(("size", "quantized"), [(2, False), (3, False), (7, True)])
def test_small_windows_are_averaged_in_float_for_onnxruntime(size: int, quantized: bool) -> None:
    body = f"a = Conv(x, w) b = AveragePool<kernel_shape = [{size}, {size}]>(a) y = Conv(b, w)"
    assert plan_qdq(build(body), ONNXRUNTIME).decisions[1].quantized == quantized
    assert plan_qdq(build(body), OPENVINO).decisions[1].quantized


POOL = "MaxPool<kernel_shape = [1, 1]>"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (f"p = Exp(x) m = {POOL}(p) y = Conv(m, w)", {"m"}),
        (f"p = Exp(x) t = Transpose<perm = [0, 1, 3, 2]>(p) m = {POOL}(t) n = {POOL}(m) y = Conv(n, w)", {"n"}),
        (f"p = Exp(x) m = {POOL}(p) n = {POOL}(p) a = Conv(m, w) b = Conv(n, w) y = Add(a, b)", {"m", "n"}),
        (f"p = Exp(x) m = {POOL}(p) n = Exp(m) a = Conv(m, w) y = Mul(a, n)", {"m"}),
        (f"p = Exp(x) m = {POOL}(p) n = Exp(p) a = Conv(m, w) y = Mul(a, n)", {"m"}),
        # A layer that reads all of it has a say, and so has what leaves the node as integers.
        (f"p = Exp(x) m = {POOL}(p) a = Conv(m, w) b = Conv(p, w) y = Add(a, b)", {"p"}),
        (f"p = Exp(x) i = Identity(p) m = {POOL}(i) n = Exp(i) a = Conv(m, w) y = Mul(a, n)", {"p"}),
        ("p = Exp(x) t = Transpose<perm = [0, 1, 3, 2]>(p) y = Conv(t, w)", {"p"}),
        (f"p = Conv(x, w) m = {POOL}(p) y = Conv(m, w)", {"p"}),
    ],
)
def test_what_is_picked_of_a_float_tensor_decides_about_its_range(body: str, wanted: set[str]) -> None:
    assert sources(body, "p") == wanted


MASK = "float[1] k = {-1000000000.0}"


def test_a_constant_does_not_widen_the_range_of_what_is_picked_of_a_sum() -> None:
    masked = f"a = Conv(x, w) p = Add(a, k) m = {POOL}(p)"
    assert sources(f"{masked} y = Conv(m, w)", "p", more=MASK) == {"m"}
    assert sources(f"{masked} n = Exp(p) b = Conv(m, w) y = Mul(b, n)", "p", more=MASK) == {"p"}


def test_what_may_be_picked_is_observed_as_well() -> None:
    body = f"a = Conv(x, w) p = Add(a, k) m = {POOL}(p) n = Exp(p) b = Conv(m, w) y = Mul(b, n)"
    assert plan_qdq(build(body, constants=f"{W}, {MASK}"), ONNXRUNTIME).observed[-1] == "m"
    assert "m" not in plan_qdq(build(f"p = Conv(x, w) m = {POOL}(p) y = Conv(m, w)"), ONNXRUNTIME).observed


def test_tensors_and_nodes_that_are_refused_stay_in_float_with_their_reason() -> None:
    model = build("a = Conv(x, w) b = Relu(a) c = Conv(b, w) y = Conv(c, w)")
    plan = plan_qdq(model, ONNXRUNTIME, in_float={"b": "b is bad"}, refused={"Conv_3": "its weight is bad"})
    assert [(d.layer, d.reason) for d in plan.decisions] == [
        ("Conv_0", "b is bad"), ("Conv_2", "b is bad"), ("Conv_3", "its weight is bad"),
    ]  # fmt: skip
    assert not plan.groups
