"""What every Q/DQ target promises, whatever the model looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from qdq_cases import Case
from qdq_graph import array, dequantizers, producer_type, quantizers

import amct_onnx
from amct_onnx.errors import ModelError
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.naming import name_nodes
from amct_onnx.values.qdq_tables import QDQ_TARGETS

# The largest error of an output, relative to its largest magnitude: a few steps of 8 bits through a few layers.
CLOSE = 0.15


def run(model: onnx.ModelProto, feed: Any) -> list[np.ndarray]:
    """The outputs without any optimization; node names, which ONNX Runtime wants to be unique, do not matter."""
    named = ir.from_proto(model)
    name_nodes(named)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(
        ir.to_proto(named).SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, feed)


def test_it_computes_what_the_float_model_computes(case: Case) -> None:
    before = case.model.SerializeToString()
    result = case.result
    assert case.model.SerializeToString() == before
    quantized = ir.to_proto(result.model())
    onnx.checker.check_model(quantized)
    for feed in case.feeds:
        for expected, got in zip(run(case.model, feed), run(quantized, feed), strict=True):
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() <= CLOSE * np.abs(expected).max()


def test_what_cannot_be_quantized_is_refused_with_the_reason(refused_case: tuple[Case, str]) -> None:
    case, reason = refused_case
    with pytest.raises(ModelError, match=reason):
        case.quantize().model()


def test_names_shapes_and_metadata_stay(case: Case) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    onnx.helper.set_model_props(proto, {"author": "somebody"})
    after = replace(case, model=proto).quantize().model()
    before = ir.from_proto(proto)
    for old, new in ((before.graph.inputs, after.graph.inputs), (before.graph.outputs, after.graph.outputs)):
        given = [(v.name, v.dtype, None if v.shape is None else list(v.shape)) for v in old]
        assert [(v.name, v.dtype, None if v.shape is None else list(v.shape)) for v in new] == given
    assert after.metadata_props == {"author": "somebody"}
    assert default_opset(after) == max(default_opset(before), case.target.minimum_opset)
    added = {case.target.beyond} if default_opset(before) > case.target.maximum_opset else set()
    assert set(after.opset_imports) == {*before.opset_imports, *added}


def test_a_tensor_is_quantized_once_and_nothing_is_dequantized_to_be_quantized_again(case: Case) -> None:
    model = case.result.model()
    sources = [node.inputs[0] for node in quantizers(model)]
    assert len(set(sources)) == len(sources)
    assert not [value for value in sources if producer_type(value) == "DequantizeLinear"]


def test_weights_are_integers_per_output_channel(case: Case) -> None:
    result = case.result
    model = result.model()
    for node in model.graph:
        if node.name in result.weights:
            dequantize = node.inputs[1].producer()
            assert dequantize.op_type == "DequantizeLinear"
            assert array(dequantize.inputs[0]).dtype == np.int8
            assert not array(dequantize.inputs[2]).any()
            axis = dequantize.attributes.get_int("axis", 1)
            assert array(dequantize.inputs[1]).shape == (array(dequantize.inputs[0]).shape[axis],)


def test_the_result_is_the_same_bytes_in_every_run(case: Case) -> None:
    first, second = (ir.to_proto(case.quantize().model()) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_what_a_caller_does_to_a_model_reaches_no_other(case: Case) -> None:
    result = case.quantize()
    before = ir.to_proto(result.model()).SerializeToString(deterministic=True)
    model = result.model()
    for node in model.graph:
        node.name = "changed"
    for value in model.graph.initializers.values():
        value.const_value = None
    assert ir.to_proto(result.model()).SerializeToString(deterministic=True) == before


def test_a_bias_that_int32_cannot_hold_makes_the_steps_of_its_channel_wider() -> None:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 13]> g (float[N,1,4,4] x) => (float[N,2,4,4] y)
        <float[2,1,1,1] w = {1e-20, 0.5}, float[2] b = {3, 1}> { y = Conv(x, w, b) }""")
    data = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    result = amct_onnx.quantize(model, data, target="onnxruntime")
    (got,) = run(ir.to_proto(result.model()), {"x": data})
    (expected,) = run(ir.to_proto(model), {"x": data})
    assert np.abs(got - expected).max() <= CLOSE * np.abs(expected).max()


def test_no_initializer_is_left_that_nobody_reads(case: Case) -> None:
    def unread(model: ir.Model) -> set[str | None]:
        values = model.graph.initializers.values()
        return {value.name for value in values if not value.uses() and not value.is_graph_output()}

    assert unread(case.result.model()) <= unread(ir.from_proto(case.model))


def test_dequantizers_of_weights_are_not_shared_between_nodes(case: Case) -> None:
    model = case.result.model()
    weights = [node for node in dequantizers(model) if node.inputs[0].is_initializer()]
    assert all(len(node.outputs[0].uses()) == 1 for node in weights)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_weights_keep_their_values_where_a_bias_makes_the_steps_wider(reduce_range: bool) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(2, 64, 1, 1)) * [[[[1e-5]]], [[[1.0]]]]).astype(np.float32)
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 13]> g (float[N,64,1,1] x) => (float[N,2,1,1] y)
        <float[2,64,1,1] w = {0}, float[2] b = {300, 1}> { y = Conv(x, w, b) }""".replace(
        "w = {0}", f"w = {{{', '.join(map(repr, weight.ravel().tolist()))}}}"
    ))  # fmt: skip
    data = rng.normal(size=(8, 64, 1, 1)).astype(np.float32)
    result = amct_onnx.quantize(model, data, reduce_range=reduce_range)
    (node,) = (node for node in dequantizers(result.model()) if node.inputs[0].dtype == ir.DataType.INT8)
    integers, scale = array(node.inputs[0]), array(node.inputs[1]).reshape(2, 1, 1, 1)
    assert scale[0] > 10 * np.abs(weight[0]).max() / 127  # the bias did that
    assert np.abs(integers * scale - weight).max(axis=(1, 2, 3)).tolist() <= (scale.ravel() / 2 * 1.001).tolist()


@pytest.mark.parametrize("target", QDQ_TARGETS)
def test_a_constant_that_is_reshaped_in_the_graph_is_a_tensor_like_others(target: str) -> None:
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 13]> g (float[N,1,4,4] x) => (float[N,2,4,4] y)
        <float[2,1,1,1] w = {1, -2}, float[2] k = {3, 1}, int64[4] s = {1, 2, 1, 1}> {
        c = Reshape(k, s) a = Conv(x, w) y = Add(a, c) }""")
    data = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    (got,) = run(ir.to_proto(amct_onnx.quantize(model, data, target=target).model()), {"x": data})
    (expected,) = run(ir.to_proto(model), {"x": data})
    assert np.abs(got - expected).max() <= CLOSE * np.abs(expected).max()
