"""Weights as rows: one row holds exactly the weights that one output channel is computed from, whatever the view."""

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
    channel_rows,
    from_channel_rows,
    from_kernel_rows,
    from_output_rows,
    group_of,
    input_channel_maxima,
    kernel_rows,
    output_rows,
    output_rows_shape,
    row_scales,
    scaled_by_input_channel,
    split_groups,
    weight_axis,
)


def _node(op_type: str, group: int = 1) -> ir.Node:
    attributes = {"group": group} if group > 1 else {}
    return ir.node(op_type, [ir.val("x"), ir.val("w")], attributes)


@st.composite
def _layers(draw: st.DrawFn) -> tuple[str, int, tuple[int, ...]]:
    op_type = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    a, b = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if op_type in ("Gemm", "MatMul"):
        return op_type, 1, (*draw(st.lists(st.integers(1, 3), max_size=2 if op_type == "MatMul" else 0)), a, b)
    group = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return op_type, group, (a * group, b, *kernel)


@given(_layers())
def test_rows_round_trip(layer: tuple[str, int, tuple[int, ...]]) -> None:
    op_type, group, shape = layer
    weight, node = np.arange(math.prod(shape), dtype=np.float32).reshape(shape), _node(op_type, group)
    rows = output_rows(weight, node)
    assert rows.shape == output_rows_shape(shape, node)
    np.testing.assert_array_equal(from_output_rows(rows, shape, node), weight)
    np.testing.assert_array_equal(from_kernel_rows(kernel_rows(weight, node), shape, node), weight)
    assert channel_rows(weight, node).shape[0] == channel_count(shape, node)
    rows = channel_rows(weight, node)
    np.testing.assert_array_equal(from_channel_rows(2 * rows, weight.shape, node), 2 * weight)
    for view in (rows, kernel_rows(weight, node), channel_rows(weight, node)):
        assert sorted(view.reshape(-1).tolist()) == sorted(weight.reshape(-1).tolist())


@given(_layers())
def test_views_have_the_rows_of_the_one_layout(layer: tuple[str, int, tuple[int, ...]]) -> None:
    """Each row of AMCT's channels is a row of it; in those of kernels the inputs of a row stand in another order."""
    op_type, group, shape = layer
    weight, node = np.arange(math.prod(shape), dtype=np.float32).reshape(shape), _node(op_type, group)
    rows = output_rows(weight, node)
    split = split_groups(kernel_rows(weight, node), output_rows_shape(shape, node), node)
    np.testing.assert_array_equal(np.sort(split, axis=2), np.sort(rows, axis=2))
    if op_type != "Conv":
        np.testing.assert_array_equal(split, rows)
    if "Conv" in op_type:
        np.testing.assert_array_equal(channel_rows(weight, node).reshape(rows.shape), rows)


@given(_layers())
def test_rows_of_kernels_share_an_index_of_the_axis_of_scales(layer: tuple[str, int, tuple[int, ...]]) -> None:
    op_type, group, shape = layer
    node = _node(op_type, group)
    axis = weight_axis(node, len(shape))
    scale = np.arange(1, shape[axis] + 1, dtype=np.float32)
    weight = np.broadcast_to(np.expand_dims(scale, tuple(k for k in range(len(shape)) if k != axis)), shape)
    rows = kernel_rows(weight, node)
    np.testing.assert_array_equal(rows, np.broadcast_to(scale[:, None], rows.shape))
    by_row = row_scales(scale, output_rows_shape(shape, node))
    np.testing.assert_array_equal(
        output_rows(weight, node), by_row[..., None] * np.ones(output_rows(weight, node).shape)
    )


def test_kernels_read_the_channels_of_a_position_one_after_the_other() -> None:
    """A weight [1, 2, 3]: two channels, three positions of the kernel."""
    rows = kernel_rows(np.arange(6, dtype=np.float32).reshape(1, 2, 3), _node("Conv"))
    assert rows.tolist() == [[0, 3, 1, 4, 2, 5]]


@pytest.mark.parametrize(("scale", "expected"), [([7], [[7] * 3] * 2), ([1, 2, 3], [[1, 2, 3]] * 2),
                                                 ([1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]])])  # fmt: skip
def test_scales_of_rows(scale: list[float], expected: list[list[float]]) -> None:
    assert row_scales(np.float32(scale), (2, 3, 5)).tolist() == expected


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
    rows = channel_rows(np.ones(shape, np.float32), node)
    channels_in = shape[0] if op_type == "ConvTranspose" else shape[1] * group
    for channel in range(rows.shape[0]):
        one = np.zeros_like(rows)
        one[channel] = 1
        weight = from_output_rows(one.reshape(output_rows_shape(shape, node)), shape, node)
        assert _outputs_that_a_row_reaches(op_type, group, weight, channels_in).tolist() == [channel]


@pytest.mark.parametrize(("op_type", "shape"), [("Gemm", (4, 6)), ("MatMul", (4, 6)), ("MatMul", (2, 4, 6))])
def test_matrices_have_a_single_row(op_type: str, shape: tuple[int, ...]) -> None:
    assert channel_rows(np.zeros(shape, np.float32), _node(op_type)).shape == (1, math.prod(shape))
    assert channel_count(shape, _node(op_type)) == 1


def test_group_is_one_unless_the_node_says_otherwise() -> None:
    assert group_of(_node("Conv")) == 1
    assert group_of(_node("Conv", 4)) == 4


def test_depthwise_channels_with_a_multiplier() -> None:
    """Two outputs for each of three inputs: Conv counts them on axis 0, ConvTranspose on axis 1 within a group."""
    weight: np.ndarray[Any, Any] = np.arange(6, dtype=np.float32)
    conv = channel_rows(weight.reshape(6, 1, 1), _node("Conv", 3))
    transposed = channel_rows(weight.reshape(3, 2, 1), _node("ConvTranspose", 3))
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
