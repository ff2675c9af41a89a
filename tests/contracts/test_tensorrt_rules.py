"""NVIDIA's rules of explicit quantization, as "Working with Quantized Types" of the TensorRT documentation has them.

TensorRT does not run here. Each rule is a function that lists what breaks it; they hold for small models of every kind
and for the shared ones, and each finds a model that breaks its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from qdq_cases import Case
from qdq_graph import WEIGHTED, array, dequantizers, producer_type, quantizers

import amct_onnx
from amct_onnx.graph.layers import default_opset

Rule = Callable[[ir.Model], Iterator[str]]


def zero_points_are_zero(model: ir.Model) -> Iterator[str]:
    """Quantization is symmetric."""
    for node in (*quantizers(model), *dequantizers(model)):
        if len(node.inputs) > 2 and node.inputs[2] is not None and array(node.inputs[2]).any():
            yield node.name or ""


def integers_are_int8(model: ir.Model) -> Iterator[str]:
    """INT8 is signed; a zero point says which type a QuantizeLinear gives."""
    for node in quantizers(model):
        if len(node.inputs) < 3 or array(node.inputs[2]).dtype != np.int8:
            yield node.name or ""
    for node in dequantizers(model):
        source = node.inputs[0]
        if source.is_initializer() and array(source).dtype != np.int8:
            yield node.name or ""


def activations_have_one_scale(model: ir.Model) -> Iterator[str]:
    """Activations are quantized per tensor."""
    for node in quantizers(model):
        if array(node.inputs[1]).size != 1:
            yield node.name or ""


def scales_are_positive_constants(model: ir.Model) -> Iterator[str]:
    for node in (*quantizers(model), *dequantizers(model)):
        if not (array(node.inputs[1]) > 0).all():
            yield node.name or ""


def weights_are_per_output_channel(model: ir.Model) -> Iterator[str]:
    """Axis 0 of a convolution, 1 of a transposed one, the columns of a product."""
    for node in model.graph:
        if node.op_type in WEIGHTED and producer_type(node.inputs[1]) == "DequantizeLinear":
            dequantize = node.inputs[1].producer()
            if not dequantize.inputs[0].is_initializer():
                continue
            axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, 1)
            if dequantize.attributes.get_int("axis", 1) != axis:
                yield node.name or ""


def both_operands_of_a_layer_are_quantized_or_none(model: ir.Model) -> Iterator[str]:
    """A layer with one quantized operand runs in float, with conversions around it."""
    for node in model.graph:
        if node.op_type in WEIGHTED:
            kinds = [producer_type(value) == "DequantizeLinear" for value in node.inputs[:2]]
            if kinds[0] != kinds[1]:
                yield node.name or ""


def each_quantizer_is_followed_by_a_dequantizer(model: ir.Model) -> Iterator[str]:
    """Q without DQ would make an integer network of the rest."""
    for node in quantizers(model):
        if {use.node.op_type for use in node.outputs[0].uses()} != {"DequantizeLinear"}:
            yield node.name or ""


def biases_are_float(model: ir.Model) -> Iterator[str]:
    """A bias is not quantized: the layer adds it in int32 on its own."""
    for node in model.graph:
        if node.op_type in WEIGHTED and len(node.inputs) > 2 and producer_type(node.inputs[2]) == "DequantizeLinear":
            yield node.name or ""


def nothing_stands_between_a_layer_and_its_relu(model: ir.Model) -> Iterator[str]:
    """Q/DQ there keeps the two from being fused."""
    for node in model.graph:
        if node.op_type in ("Relu", "Clip") and producer_type(node.inputs[0]) == "DequantizeLinear":
            quantize = node.inputs[0].producer().inputs[0].producer()
            if quantize is not None and producer_type(quantize.inputs[0]) in WEIGHTED:
                yield node.name or ""


def a_sum_leaves_the_output_of_its_convolution_in_float(model: ir.Model) -> Iterator[str]:
    """The convolution takes in the sum, and only the other branch is quantized."""
    for node in model.graph:
        if node.op_type != "Add":
            continue
        kinds = [producer_type(value) for value in node.inputs]
        if "DequantizeLinear" in kinds and not any(kind in WEIGHTED for kind in kinds):
            yield node.name or ""


RULES: tuple[Rule, ...] = (
    zero_points_are_zero,
    integers_are_int8,
    activations_have_one_scale,
    scales_are_positive_constants,
    weights_are_per_output_channel,
    both_operands_of_a_layer_are_quantized_or_none,
    each_quantizer_is_followed_by_a_dequantizer,
    biases_are_float,
    nothing_stands_between_a_layer_and_its_relu,
    a_sum_leaves_the_output_of_its_convolution_in_float,
)


def test_models_of_every_kind_follow_the_rules(tensorrt_case: Case) -> None:
    model = tensorrt_case.quantize().model()
    for rule in RULES:
        assert not list(rule(model)), rule.__name__


@pytest.mark.parametrize(
    ("name", "data"),
    [("resnet20_cifar10", (3, 32, 32)), ("squeezenet1.1", (3, 224, 224)), ("mobilenetv2_tv1", (3, 224, 224))],
)
def test_shared_models_follow_the_rules(test_data: Callable[..., Path], name: str, data: tuple[int, ...]) -> None:
    path = test_data("models", f"{name}.onnx")
    images = np.random.default_rng(0).normal(size=(2, *data)).astype(np.float32)
    result = amct_onnx.quantize(path, images, target="tensorrt")
    model = result.model()
    assert default_opset(model) >= 13  # per-channel DequantizeLinear
    for rule in RULES:
        assert not list(rule(model)), rule.__name__
    layers = [node for node in model.graph if node.op_type in WEIGHTED]
    assert all(producer_type(node.inputs[0]) == "DequantizeLinear" for node in layers)


_W = "int8[1,1,1,1] wi = {1}, float[1] ws = {0.1}, float s = {0.1}, int8 z = {0}, int8[1] z1 = {0}"
_DQW = "w = DequantizeLinear<axis = 0>(wi, ws, z1)"
_QX = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
BROKEN = {
    zero_points_are_zero: (
        f"{_W}, int8 three = {{3}}",
        "q = QuantizeLinear(x, s, three) y = DequantizeLinear(q, s, three)",
    ),
    integers_are_int8: ("float s = {0.1}, uint8 u = {0}", "q = QuantizeLinear(x, s, u) y = DequantizeLinear(q, s, u)"),
    activations_have_one_scale: (
        "float[2] s2 = {0.1, 0.2}, int8[2] z2 = {0, 0}",
        "q = QuantizeLinear<axis = 0>(x, s2, z2) y = DequantizeLinear<axis = 0>(q, s2, z2)",
    ),
    scales_are_positive_constants: (
        "float s0 = {0}, int8 z = {0}",
        "q = QuantizeLinear(x, s0, z) y = DequantizeLinear(q, s0, z)",
    ),
    weights_are_per_output_channel: (_W, f"{_QX} w = DequantizeLinear<axis = 1>(wi, ws, z1) y = Conv(d, w)"),
    both_operands_of_a_layer_are_quantized_or_none: (_W, f"{_DQW} y = Conv(x, w)"),
    each_quantizer_is_followed_by_a_dequantizer: (_W, "q = QuantizeLinear(x, s, z) y = Cast<to = 1>(q)"),
    biases_are_float: (
        f"{_W}, int32[1] bi = {{1}}, float[1] bs = {{0.01}}",
        f"{_QX} {_DQW} b = DequantizeLinear<axis = 0>(bi, bs) y = Conv(d, w, b)",
    ),
    nothing_stands_between_a_layer_and_its_relu: (
        _W,
        f"{_QX} {_DQW} c = Conv(d, w) e = QuantizeLinear(c, s, z) f = DequantizeLinear(e, s, z) y = Relu(f)",
    ),
    a_sum_leaves_the_output_of_its_convolution_in_float: (_W, f"{_QX} y = Add(d, d)"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_finds_what_breaks_it(rule: Rule) -> None:
    constants, body = BROKEN[rule]
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[N,1,4,4] x) => (float[N,1,4,4] y) <{constants}> {{ {body} }}'
    )
    assert list(rule(model))
