"""What ONNX Runtime computes faster in float stays there, by the table of prices."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import build as build_text
from pattern_models import build, data

import amct_onnx
from amct_onnx.ptq.quantized_model import QuantizedModel


def quantized(model: Any, feeds: Any, **options: Any) -> QuantizedModel:
    return amct_onnx.quantize(model, feeds, effort="fast", algorithm="min_max", **options)


def convolutions_in_int8(model: onnx.ModelProto, result: QuantizedModel) -> int:
    kinds = {node.name: node.op_type for node in model.graph.node}
    return sum(decision.quantized for decision in result.decisions if kinds[decision.layer] == "Conv")


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        (("conv", "relu"), 1),
        (("conv", "conv"), 2),
        (("point", "point"), 2),
        (("conv", "depthwise"), 1),
        (("depthwise", "relu"), 0),
        (("depthwise", "depthwise"), 0),
        (("point", "turn"), 0),
        (("turn", "point"), 0),
        (("relu", "squeeze"), 0),
        (("depthwise", "squeeze"), 0),
        (("grouped", "relu"), 0),
        (("grouped", "grouped"), 0),
        (("point", "shuffle", "point"), 2),
    ],
)
def test_what_int8_makes_slower_is_in_float(steps: tuple[str, ...], count: int) -> None:
    model, feeds = build("image", steps), data("image")
    every = sum(node.op_type == "Conv" for node in model.graph.node)
    assert convolutions_in_int8(model, quantized(model, feeds)) == count
    assert convolutions_in_int8(model, quantized(model, feeds, full_int8=True)) == every
    assert convolutions_in_int8(model, quantized(model, feeds, target="openvino")) == every


def test_open_shapes_are_placed_by_what_the_data_have() -> None:
    fixed = build("image", ("conv", "depthwise"))
    opened = onnx.ModelProto()
    opened.CopyFrom(fixed)
    for dim in opened.graph.input[0].type.tensor_type.shape.dim:
        dim.ClearField("dim_value")
    here, there = quantized(fixed, data("image")), quantized(opened, data("image"))
    assert here.decisions == there.decisions


def test_a_batch_changes_nothing() -> None:
    model = build("image", ("point", "swish"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    samples = [feed["x"] for feed in data("image", 4)]
    alone = quantized(model, [{"x": sample} for sample in samples])
    together = quantized(model, [{"x": np.concatenate(samples)}])
    assert alone.decisions == together.decisions


@pytest.mark.parametrize(("groups", "in_int8"), [(1, True), (2, True), (16, False), (32, False)])
def test_a_convolution_of_small_groups_is_in_float(groups: int, in_int8: bool) -> None:
    text = f"""g (float[1,64,56,56] x) => (float[] y) {{
        a = Conv (x, w) b = Conv<group = {groups}, pads = [1, 1, 1, 1]>(a, v) y = Conv (b, w) }}"""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((64, 64, 1, 1)), "v": random.standard_normal((64, 64 // groups, 3, 3))}
    model = build_text(text, **{name: weight.astype(np.float32) for name, weight in weights.items()})
    decisions = quantized(model, random.standard_normal((4, 64, 56, 56)).astype(np.float32)).decisions
    assert decisions[1].quantized == in_int8


@pytest.mark.parametrize(("kernel", "sizes"), [((11,), (512,)), ((3, 3, 3), (8, 14, 14))])
def test_depthwise_convolutions_of_signals_and_volumes_are_in_int8(
    kernel: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    pads, words = [size // 2 for size in kernel] * 2, ",".join(map(str, sizes))
    text = f"""g (float[1,128,{words}] x) => (float[] y) {{
        a = Conv<group = 128, pads = {pads}>(x, v) y = Conv (a, w) }}"""
    random = np.random.default_rng(0)
    weights = {
        "v": random.standard_normal((128, 1, *kernel)),
        "w": random.standard_normal((128, 128, *[1] * len(sizes))),
    }
    model = build_text(text, **{name: weight.astype(np.float32) for name, weight in weights.items()})
    feeds = random.standard_normal((4, 128, *sizes)).astype(np.float32)
    assert all(decision.quantized for decision in quantized(model, feeds).decisions)


def test_a_tensor_of_which_parts_were_to_be_enough_is_in_float_where_more_is_read() -> None:
    text = """g (float[1,64,28,28] x) => (float[] y) {
        r = Reshape (x, rows) t = Transpose<perm = [0, 2, 1]> (r) a = Reshape (t, image)
        b = Slice (a, start, middle, channels) c = Slice (a, middle, end, channels)
        d = Conv<pads = [1, 1, 1, 1]> (c, w) e = Concat<axis = 1> (b, d) y = Exp (e) }"""
    random = np.random.default_rng(0)
    places = {"start": 0, "middle": 32, "end": 64, "channels": 1}
    shapes = {"rows": np.array([1, 64, 784]), "image": np.array([1, 64, 28, 28])}
    weight = random.standard_normal((32, 32, 3, 3)).astype(np.float32)
    model = build_text(text, w=weight, **shapes, **{name: np.array([place]) for name, place in places.items()})
    result = quantized(model, random.standard_normal((4, 64, 28, 28)).astype(np.float32))
    assert [decision.layer for decision in result.decisions if decision.quantized] == ["Slice_4", "Conv_5"]


def test_a_batch_that_the_model_fixes_is_run_as_a_whole() -> None:
    model = build("rows", ("gemm",))  # one row alone would be faster in float
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 128
    (decision,) = quantized(model, data("rows")).decisions
    assert decision.quantized


def test_a_small_network_is_quantized_as_a_whole() -> None:
    random = np.random.default_rng(0)
    text = "g (float[n,4,8,8] x) => (float[n,4,8,8] y) { y = Conv<group=4,pads=[1,1,1,1]>(x, w) }"
    model = ir.from_proto(build_text(text, w=random.standard_normal((4, 1, 3, 3)).astype(np.float32)))
    result = quantized(model, random.standard_normal((8, 4, 8, 8)).astype(np.float32))
    assert all(decision.quantized for decision in result.decisions)


def test_where_nothing_gains_from_int8_the_user_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        quantized(build("image", ("depthwise", "relu")), data("image"))
    assert any("all in float" in text and "full_int8=True" in text for text in caplog.messages)
