"""Weights as rows: one row holds exactly the weights that one output channel is computed from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from amct_onnx.graph.tensors import array_of
from amct_onnx.graph.weights import (
    channel_count,
    group_of,
    input_channel_maxima,
    rows_to_weight,
    scaled_by_input_channel,
    weight_rows,
)


def _node(op_type: str, group: int = 1) -> ir.Node:
    attributes = {"group": group} if group > 1 else {}
    return ir.node(op_type, [ir.val("x"), ir.val("w")], attributes)


@st.composite
def _layers(draw: st.DrawFn) -> tuple[str, int, tuple[int, ...]]:
    op_type = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    a, b = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if op_type in ("Gemm", "MatMul"):
        return op_type, 1, (a, b)
    group = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return op_type, group, (a * group, b, *kernel)


@given(_layers())
def test_rows_round_trip(layer: tuple[str, int, tuple[int, ...]]) -> None:
    op_type, group, shape = layer
    weight, node = np.arange(math.prod(shape), dtype=np.float32).reshape(shape), _node(op_type, group)
    rows = weight_rows(weight, node)
    assert rows.shape[0] == channel_count(shape, node)
    assert sorted(rows.reshape(-1).tolist()) == sorted(weight.reshape(-1).tolist())
    np.testing.assert_array_equal(rows_to_weight(rows, shape, node), weight)


def _outputs_that_a_row_reaches(op_type: str, group: int, weight: np.ndarray, channels_in: int) -> np.ndarray:
    """The output channels of ONNX Runtime that are not zero on an input of ones."""
    rank = weight.ndim - 2
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"], group=group)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": np.ones((1, channels_in, *[4] * rank), np.float32)})[0]
    return np.flatnonzero(np.abs(y[0]).reshape(y.shape[1], -1).sum(axis=1))


@settings(max_examples=examples(40))
@given(_layers().filter(lambda layer: "Conv" in layer[0]))
def test_a_row_is_one_output_channel(layer: tuple[str, int, tuple[int, ...]]) -> None:
    """Keep one row, clear all others: ONNX Runtime computes something in that channel and in no other."""
    op_type, group, shape = layer
    node = _node(op_type, group)
    rows = weight_rows(np.ones(shape, np.float32), node)
    channels_in = shape[0] if op_type == "ConvTranspose" else shape[1] * group
    for channel in range(rows.shape[0]):
        one = np.zeros_like(rows)
        one[channel] = 1
        weight = np.ascontiguousarray(rows_to_weight(one, shape, node))
        assert _outputs_that_a_row_reaches(op_type, group, weight, channels_in).tolist() == [channel]


@pytest.mark.parametrize(("op_type", "shape"), [("Gemm", (4, 6)), ("MatMul", (4, 6)), ("MatMul", (2, 4, 6))])
def test_matrices_have_a_single_row(op_type: str, shape: tuple[int, ...]) -> None:
    assert weight_rows(np.zeros(shape, np.float32), _node(op_type)).shape == (1, math.prod(shape))
    assert channel_count(shape, _node(op_type)) == 1


def test_group_is_one_unless_the_node_says_otherwise() -> None:
    assert group_of(_node("Conv")) == 1
    assert group_of(_node("Conv", 4)) == 4


def test_depthwise_channels_with_a_multiplier() -> None:
    """Two outputs for each of three inputs: Conv counts them on axis 0, ConvTranspose on axis 1 within a group."""
    weight: np.ndarray[Any, Any] = np.arange(6, dtype=np.float32)
    conv = weight_rows(weight.reshape(6, 1, 1), _node("Conv", 3))
    transposed = weight_rows(weight.reshape(3, 2, 1), _node("ConvTranspose", 3))
    assert conv.tolist() == transposed.tolist() == [[0], [1], [2], [3], [4], [5]]


def _input_channel(op_type: str, group: int, shape: tuple[int, ...], index: tuple[int, ...]) -> int:
    """The channel of the layer's input that the weight at `index` is multiplied with, by the letter of ONNX."""
    if op_type == "Conv":
        return index[0] // (shape[0] // group) * shape[1] + index[1]
    return index[0] if op_type == "ConvTranspose" else index[-2]


@given(_layers())
def test_input_channels(layer: tuple[str, int, tuple[int, ...]]) -> None:
    op_type, group, shape = layer
    weight = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    node = _node(op_type, group)
    channels = {"Conv": shape[1] * group, "ConvTranspose": shape[0]}.get(op_type, shape[-2])
    factors = np.arange(1, channels + 1, dtype=np.float32)
    scaled, maxima = np.empty_like(weight), np.zeros(channels, np.float32)
    for index in np.ndindex(*shape):
        channel = _input_channel(op_type, group, shape, index)
        scaled[index] = weight[index] * factors[channel]
        maxima[channel] = max(maxima[channel], abs(weight[index]))
    np.testing.assert_array_equal(array_of(scaled_by_input_channel(ir.tensor(weight), factors, node)), scaled)
    np.testing.assert_array_equal(input_channel_maxima(weight, node), maxima)
