"""First layers in float: where that is free, kept only where it helps, told, and off on request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build
from hypothesis import given
from hypothesis import strategies as st
from pattern_models import build as pattern
from pattern_models import data

import amct_onnx
from amct_onnx.graph.naming import name_nodes
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.recipe.placement import first_layers
from amct_onnx.values.findings import Step
from amct_onnx.values.prices import ONNXRUNTIME_PRICES, Work

SLOW = "it takes longer in integers, with what is rounded around it; full_int8=True has it there"
IMAGES = np.random.default_rng(1).standard_normal((48, 3, 64, 64)).astype(np.float32)


def network(*, wild: float = 1.0, width: int = 128) -> ir.Model:
    """A stem and a narrow depthwise convolution, which int8 makes slower, then wide ones, of which the first is cheap.
    `wild`: how large one channel behind that is."""
    random = np.random.default_rng(0)
    spread = np.ones(width)
    spread[0] = wild

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    text = """g (float[n,3,64,64] x) => (float[n,8,16,16] y) {
        a = Conv<strides=[2,2],pads=[1,1,1,1]>(x, stem)
        b = Relu(a)
        c = Conv<group=16,pads=[1,1,1,1]>(b, deep)
        d = Relu(c)
        e = Conv<strides=[2,2]>(d, wide)
        f = Relu(e)
        g = Conv<pads=[2,2,2,2]>(f, wider)
        h = Relu(g)
        i = Conv(h, more)
        j = Relu(i)
        y = Conv(j, last)
    }"""
    model = ir.from_proto(
        build(
            text,
            stem=normal(16, 3, 3, 3),
            deep=normal(16, 1, 3, 3),
            wide=normal(width, 16, 1, 1) * spread[:, None, None, None].astype(np.float32),
            wider=normal(width, width, 5, 5) / spread[None, :, None, None].astype(np.float32),
            more=normal(width, width, 1, 1),
            last=normal(8, width, 1, 1),
        )
    )
    name_nodes(model)
    return model


def in_float(result: QuantizedModel) -> list[str]:
    return [decision.layer for decision in result.decisions if not decision.quantized]


def about_first_layers(result: QuantizedModel) -> Sequence[Step]:
    return [step for step in result.steps if "in float" in step.name]


def convolutions(model: ir.Model) -> list[str]:
    return [node.name or "" for node in model.graph if node.op_type == "Conv"]


@pytest.mark.parametrize("effort", ["default", "best"])
def test_first_layers_that_make_the_noise_stay_in_float_and_the_user_is_told(effort: str) -> None:
    model = network(wild=100.0)
    result = amct_onnx.quantize(model, IMAGES, effort=effort)
    step = about_first_layers(result)[0]
    assert (step.name, step.kept) == ("the first 3 layers in float", True)
    assert in_float(result)[:3] == convolutions(model)[:3]
    reasons = [decision.reason for decision in result.decisions if not decision.quantized]
    assert reasons[:3] == [
        SLOW,
        SLOW,
        "int8 costs accuracy in the first layers and wins no time; full_int8 quantizes them",
    ]
    nodes = {node.name: node for node in result.model().graph}
    for name in convolutions(model)[:3]:
        assert nodes[name].inputs[0].producer() is None or nodes[name].inputs[0].producer().op_type == "Relu"


def segmentation(*, classes: int) -> ir.Model:
    """Three wide convolutions, and a narrow one that gives the scores of classes at each place."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    text = """g (float[n,3,64,64] x) => (float[n,%d,16,16] y) {
        a = Conv<strides=[4,4],pads=[1,1,1,1],kernel_shape=[5,5]>(x, stem)
        b = Relu(a)
        c = Conv<pads=[1,1,1,1]>(b, wide)
        d = Relu(c)
        e = Conv<pads=[1,1,1,1]>(d, wider)
        f = Relu(e)
        y = Conv(f, last)
    }"""
    weights = {"stem": normal(64, 3, 5, 5), "wide": normal(64, 64, 3, 3), "wider": normal(64, 64, 3, 3)}
    model = ir.from_proto(build(text % classes, **weights, last=normal(classes, 64, 1, 1)))
    name_nodes(model)
    return model


def test_scores_of_places_are_not_rounded_where_that_costs_little() -> None:
    """Rounded scores are equal at many places, and the first of two classes wins there."""
    model = segmentation(classes=8)
    result = amct_onnx.quantize(model, IMAGES)
    assert convolutions(model)[-1] in in_float(result)
    (step,) = [step for step in result.steps if step.name == "the last layer in float"]
    assert step.kept
    (scores,) = run(result.model(), IMAGES[:4])
    (all_int8,) = run(amct_onnx.quantize(model, IMAGES, full_int8=True).model(), IMAGES[:4])
    assert ties(scores) < 0.1 * ties(all_int8)


def test_last_layers_that_hold_much_of_the_weights_stay_in_int8() -> None:
    result = amct_onnx.quantize(segmentation(classes=512), IMAGES)
    assert not [step for step in result.steps if step.name == "the last layer in float"]


def run(model: ir.Model, images: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"x": images})
    return outputs


def ties(scores: np.ndarray) -> int:
    """At how many places the two highest scores are equal."""
    highest = np.sort(scores, axis=1)
    return int((highest[:, -1] == highest[:, -2]).sum())


@pytest.mark.parametrize("effort", ["default", "best"])
def test_on_request_every_layer_is_in_int8(effort: str) -> None:
    result = amct_onnx.quantize(network(wild=100.0), IMAGES, effort=effort, full_int8=True)
    assert not in_float(result)
    assert not about_first_layers(result)


def test_fast_leaves_in_float_what_is_slower_in_int8_and_nothing_else() -> None:
    model = network(wild=100.0)
    result = amct_onnx.quantize(model, IMAGES, effort="fast")
    assert in_float(result) == convolutions(model)[:2]
    assert {decision.reason for decision in result.decisions if not decision.quantized} == {SLOW}
    assert not result.steps


def test_what_is_in_float_is_what_the_steps_have_kept() -> None:
    """Most of the noise is made behind the first layers: channels of very different size are rounded alike there."""
    model = network()
    spread = np.geomspace(1, 300, 128)
    for name, factors in (("wider", spread[:, None, None, None]), ("more", 1 / spread[None, :, None, None])):
        weight = model.graph.initializers[name]
        weight.const_value = ir.tensor((weight.const_value.numpy() * factors).astype(np.float32))
    result = amct_onnx.quantize(model, IMAGES)
    steps = about_first_layers(result)
    assert steps
    assert all(step.kept == (step.after - step.before > step.error) for step in steps)
    assert (len(in_float(result)) > 2) == any(step.kept for step in steps)


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "ascend"])
def test_targets_whose_kernels_were_not_timed_quantize_all(target: str) -> None:
    model = network(wild=100.0)
    assert not in_float(amct_onnx.quantize(model, IMAGES, target=target))
    here = amct_onnx.quantize(model, IMAGES)
    assert in_float(here)
    assert not in_float(here.to(target))
    wide = convolutions(model)[3]
    assert wide not in in_float(here)
    assert set(in_float(here.to(skip_layers=[wide]))) == {*in_float(here), wide}


def test_layers_that_gain_time_from_int8_are_no_prefix() -> None:
    model = ir.from_proto(pattern("image", ("conv", "conv", "conv", "conv")))
    name_nodes(model)
    result = amct_onnx.quantize(model, data("image", 8), effort="fast")
    assert not in_float(result)
    assert not first_layers(result.calibration.source.model, result.lowered)


def test_no_prefix_is_more_than_half_of_the_layers() -> None:
    random = np.random.default_rng(0)
    text = "g (float[n,64,64,64] x) => (float[n,64,62,62] y) { y = Conv(x, w) }"
    model = ir.from_proto(build(text, w=random.standard_normal((64, 64, 3, 3)).astype(np.float32)))
    result = amct_onnx.quantize(model, np.repeat(IMAGES, 22, axis=1)[:, :64])
    assert not in_float(result)


def deep(layers: int) -> ir.Model:
    """A stem and a narrow depthwise convolution, which int8 makes slower, and many of 32 channels behind them."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    steps = "".join(f"c{n} = Conv(a{n}, w{n}) a{n + 1} = Relu(c{n})\n" for n in range(layers))
    text = f"""g (float[n,3,64,64] x) => (float[n,32,32,32] a{layers}) {{
        s = Conv<strides=[2,2],pads=[1,1,1,1]>(x, stem)
        r = Relu(s)
        d = Conv<group=16,pads=[1,1,1,1]>(r, deep)
        e = Relu(d)
        b = Conv(e, wide)
        a0 = Relu(b)
        {steps}
    }}"""
    weights = {f"w{n}": normal(32, 32, 1, 1) for n in range(layers)}
    first = {"stem": normal(16, 3, 3, 3), "deep": normal(16, 1, 3, 3), "wide": normal(32, 16, 1, 1)}
    model = ir.from_proto(build(text, **first, **weights))
    name_nodes(model)
    return model


def test_more_first_layers_never_cost_less_so_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep(40)
    lowered = amct_onnx.quantize(model, IMAGES[:8], effort="fast").lowered
    names = convolutions(model)
    affordable = [lowered.affords(names[:count], 0.1) for count in range(1, len(names) + 1)]
    assert affordable == sorted(affordable, reverse=True)
    asked, affords = 0, type(lowered).affords

    def counted(*arguments: Any) -> bool:
        nonlocal asked
        asked += 1
        return affords(*arguments)

    monkeypatch.setattr(type(lowered), "affords", counted)
    assert [one.count for one in first_layers(model, lowered)] == [3, sum(affordable)]
    assert 3 < sum(affordable) < len(names) // 4
    assert asked <= np.ceil(np.log2(len(names)))


@given(st.integers(1, 512), st.integers(1, 512), st.sampled_from([1, 9, 25, 49]), st.floats(1.0, 1e6), st.booleans())
def test_prices_grow_with_the_work(inputs: int, channels: int, taps: int, positions: float, deep: bool) -> None:
    def price(scale: float) -> tuple[float, float]:
        work = Work(
            outputs=positions * scale * channels,
            terms=taps if deep else taps * inputs,
            channels=channels,
            inputs=1 if deep else inputs,
            groups=channels if deep else 1,
        )
        found = ONNXRUNTIME_PRICES.of(work)
        return found.in_float, found.in_int8

    one, two = price(1.0), price(2.0)
    assert all(first < second for first, second in zip(one, two, strict=True))
    assert min(one) > 0
