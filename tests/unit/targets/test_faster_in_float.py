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
