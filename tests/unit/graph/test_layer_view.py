"""A layer, and the index of a graph: what they say of a node, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import (
    bodies_of,
    graph_of,
    input_of,
    label_of,
    maker_of,
    name_of,
    optional_input,
    producer_of,
    values_read,
)
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, as_layer, constant_input, layer_of


def _model(body: str, **arrays: Any) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 17]> g (float[1,4,8,8] x) => (float y) {{{body}}}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    return ir.from_proto(proto)


def _ones(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def _layer(body: str, **arrays: Any) -> Layer:
    return index_graph(_model(f"[layer] y = {body}", **arrays)).layer("layer")


@pytest.mark.parametrize(
    ("body", "weight", "inputs", "outputs", "groups"),
    [
        ("Conv (x, w)", (6, 4, 3), 4, 6, 1),
        ("Conv <group=2> (x, w)", (6, 2, 3, 3), 4, 6, 2),
        ("ConvTranspose (x, w)", (4, 6, 3, 3), 4, 6, 1),
        ("ConvTranspose <group=2> (x, w)", (4, 3, 3, 3), 4, 6, 2),
        ("Gemm (x, w)", (4, 6), 4, 6, 1),
        ("Gemm <transB=1> (x, w)", (6, 4), 4, 6, 1),
        ("MatMul (x, w)", (4, 6), 4, 6, 1),
        ("MatMul (x, w)", (2, 4, 6), 4, 6, 1),
    ],
)
def test_channels(body: str, weight: tuple[int, ...], inputs: int, outputs: int, groups: int) -> None:
    layer = _layer(body, w=_ones(*weight))
    assert (layer.input_channels, layer.output_channels, layer.groups) == (inputs, outputs, groups)
    assert (layer.name, layer.op_type, layer.shape, layer.half) == ("layer", body.split(maxsplit=1)[0], weight, False)


def test_values_and_data() -> None:
    layer = _layer("Conv (x, w, b)", w=_ones(6, 4, 3, 3), b=np.arange(6, dtype=np.float32))
    assert layer.input.name == "x"
    assert layer.bias_value is not None
    assert layer.bias_value.name == "b"
    np.testing.assert_array_equal(layer.array(), _ones(6, 4, 3, 3))
    np.testing.assert_array_equal(layer.bias, np.arange(6))


def test_float16() -> None:
    assert _layer("Conv (x, w)", w=_ones(6, 4, 3, 3, dtype=np.float16)).half


def test_without_bias() -> None:
    layer = _layer("Conv (x, w)", w=_ones(6, 4, 3, 3))
    assert (layer.bias_value, layer.bias) == (None, None)


def test_bias_of_run_time() -> None:
    model = _model("b = ReduceSum (x) [layer] y = Conv (x, w, b)", w=_ones(6, 4, 3, 3))
    layer = index_graph(model).layer("layer")
    assert layer.bias_value is not None
    assert layer.bias is None


def test_weight_behind_a_chain() -> None:
    model = _model("t = Transpose (w) [layer] y = MatMul (x, t)", w=np.arange(12, dtype=np.float32).reshape(3, 4))
    layer = index_graph(model).layer("layer")
    assert (layer.node.inputs[1].name, layer.shape) == ("t", (4, 3))
    np.testing.assert_array_equal(layer.array(), np.arange(12).reshape(3, 4).T)


def test_it_follows_the_node() -> None:
    model = _model("[layer] y = Conv (x, w) [other] z = Conv (x, w)", w=_ones(6, 4, 3, 3))
    layer, names = index_graph(model).layer("layer"), ValueNames(model)
    layer.replace_weight(2 * _ones(6, 4, 3, 3), names=names)
    layer.replace_bias(_ones(6), names=names)
    np.testing.assert_array_equal(layer.array(), 2 * _ones(6, 4, 3, 3))
    np.testing.assert_array_equal(layer.bias, _ones(6))
    assert layer.node.inputs[1].name == "w.layer"
    assert layer.bias_value is not None
    assert layer.bias_value.name == "layer.bias"
    np.testing.assert_array_equal(index_graph(model).layer("other").array(), _ones(6, 4, 3, 3))


def test_weight_on_disk_is_not_read(tmp_path: Path) -> None:
    model = _model("[layer] y = Conv (x, w)", w=_ones(6, 4, 3, 3))
    missing = ir.ExternalTensor("missing", 0, 864, ir.DataType.FLOAT, shape=ir.Shape((6, 4, 3, 3)), name="w")
    model.graph.initializers["w"].const_value = missing
    layer = index_graph(model).layer("layer")
    assert (layer.shape, layer.weight, layer.input_channels, layer.half) == ((6, 4, 3, 3), missing, 4, False)
    with pytest.raises(FileNotFoundError):
        layer.array()


@pytest.mark.parametrize(
    "body",
    [
        "[layer] y = Relu (x)",
        "v = Relu (x) [layer] y = Conv (x, v)",
        "[layer] y = AveragePool <kernel_shape=[2,2]> (x)",
        "[layer] y = com.microsoft.Gemm (x, w)",
    ],
)
def test_no_layer(body: str) -> None:
    node = _model(body, w=_ones(4, 6)).graph[-1]
    assert as_layer(node) is None
    with pytest.raises(ModelError, match=r'"layer" .*is no convolution or product with a constant weight'):
        layer_of(node)


def test_no_node_is_no_layer() -> None:
    assert as_layer(None) is None


def test_constant_input_names_the_node() -> None:
    node = _model("[sum] y = Add (x, w)", w=_ones(4)).graph[0]
    assert constant_input(node, 1).size == 4
    for index in (0, 2):
        with pytest.raises(ModelError, match=f'Input {index} of "sum" \\(Add\\) is no constant of the model'):
            constant_input(node, index)


# What onnx_ir leaves optional


def test_what_is_there() -> None:
    model = _model("[first] t = Relu (x) [second] y = Clip (t, , w)", w=_ones())
    first, second = model.graph
    assert name_of(first) == label_of(first) == "first"
    assert label_of(ir.node("Relu", [None])) == "Relu"
    assert name_of(input_of(first, 0)) == "x"
    assert optional_input(second, 1) is None
    assert optional_input(second, 3) is None
    assert producer_of(second, 0) is first
    assert [producer_of(second, index) for index in (1, 2, 3)] == [None] * 3
    assert maker_of(input_of(second, 0)) is first
    assert graph_of(first) is graph_of(model.graph.inputs[0]) is model.graph


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (name_of, "The Relu None has no name"),
        (lambda node: name_of(node.outputs[0]), "The tensor None has no name"),
        (lambda node: maker_of(ir.val("x")), "The tensor 'x' is made by no node"),
        (lambda node: input_of(node, 0), "has no input 0"),
        (lambda node: input_of(node, 1), "has no input 1"),
        (graph_of, "is in no graph"),
    ],
)
def test_what_is_not_there(ask: Callable[[ir.Node], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ask(ir.node("Relu", [None]))


# The index


def _nested() -> ir.Model:
    body = """
        [before] c = Cast <to=9> (w)
        [if] t = If (c) <
            then_branch = then () => (float inner) { [deep] inner = Relu (x) },
            else_branch = other () => (float inner2) { [deeper] inner2 = Neg (x) }
        >
        [after] y = Relu (t)
    """
    return _model(body, w=_ones())


def test_index_of_the_main_graph() -> None:
    model = _nested()
    index = index_graph(model)
    assert dict(index.positions) == {"before": 0, "if": 1, "after": 2}
    assert list(index.nodes.values()) == list(model.graph)
    assert list(index.values) == ["x", "w", "c", "t", "y"]
    assert index.values["w"] is model.graph.initializers["w"]


def test_index_with_subgraphs() -> None:
    index = index_graph(_nested(), subgraphs=True)
    assert dict(index.positions) == {"before": 0, "if": 1, "deep": 2, "deeper": 3, "after": 4}
    assert list(index.values) == ["x", "w", "c", "t", "y"]


def test_bodies_and_what_they_read() -> None:
    node = index_graph(_nested()).nodes["if"]
    assert [graph.name for graph in bodies_of(node)] == ["then", "other"]
    assert {value.name for value in values_read(node)} == {"c", "x"}


def test_index_is_a_snapshot() -> None:
    model = _nested()
    index = index_graph(model)
    model.graph.append(ir.node("Relu", [model.graph.inputs[0]], name="new"))
    index.nodes["after"].name = "renamed"
    assert list(index.nodes) == ["before", "if", "after"]
    assert name_of(index.nodes["after"]) == "renamed"


def test_unnamed_nodes_are_counted_and_not_found() -> None:
    index = index_graph(_model("t = Relu (x) [named] y = Relu (t)"))
    assert dict(index.positions) == {"named": 1}


def test_unknown_names() -> None:
    index = index_graph(_nested())
    with pytest.raises(KeyError):
        index.layer("nobody")
    with pytest.raises(ModelError, match="after"):
        index.layer("after")
