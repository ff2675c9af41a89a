"""A node of an optimised graph goes by its name in the file, whichever form a CPU gives the graph."""

from __future__ import annotations

import re

import onnx_ir as ir
import pytest

from amct_onnx.graph.source_nodes import SourceNodes

HEAD = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "com.microsoft.nchwc": 1]>
    g (float[1,16,6,6] x, float[16,16,1,1] w) => (float[1,16,5,5] y) """
FILE = """{ [conv] c = Conv (x, w) [act] r = Relu (c) [conv2] e = Conv (r, w) [sum] t = Add (e, c) [act2] v = Relu (t)
    [pool] p = MaxPool <kernel_shape=[2,2]> (v) [tail] y = Softmax (p) }"""
# Each as ONNX Runtime 1.32 writes it: without blocked channels, and with them.
PLAIN = """{ [conv] r = com.microsoft.FusedConv <activation="Relu"> (x, w) [conv2] e = Conv (r, w) [sum] t = Add (e, r)
    [act2] v = Relu (t) [pool] p = MaxPool <kernel_shape=[2,2]> (v) [tail] y = Softmax (p) }"""
BLOCKED = """{ [ReorderInput] reorder_token_0 = com.microsoft.nchwc.ReorderInput (x)
    [r_nchwc] reorder_token_1 = com.microsoft.nchwc.Conv <activation="Relu"> (reorder_token_0, w)
    [e_nchwc_token_5] reorder_token_2 = com.microsoft.nchwc.Conv (reorder_token_1, w, , reorder_token_1)
    [act2] reorder_token_4 = Relu (reorder_token_2)
    [p_nchwc] reorder_token_3 = com.microsoft.nchwc.MaxPool <kernel_shape=[2,2]> (reorder_token_4)
    [ReorderOutput] p = com.microsoft.nchwc.ReorderOutput (reorder_token_3) [tail] y = Softmax (p) }"""
REORDERS = ("ReorderInput", "ReorderOutput")


def names(optimised: str, file: str) -> dict[str, str]:
    """For each node of the optimised graph, by its first output, its name in the file."""
    source = SourceNodes(ir.from_onnx_text(HEAD + file))
    nodes = ir.from_onnx_text(HEAD + optimised).graph
    return {node.outputs[0].name or "": source.name_of(node) for node in nodes if node.op_type not in REORDERS}


@pytest.mark.parametrize(
    ("optimised", "expected"),
    [
        (PLAIN, ["conv", "conv2", "sum", "act2", "pool", "tail"]),
        (BLOCKED, ["conv", "conv2", "act2", "pool", "tail"]),
    ],
    ids=["plain", "blocked"],
)
def test_names_are_those_of_the_file(optimised: str, expected: list[str]) -> None:
    assert list(names(optimised, FILE).values()) == expected


@pytest.mark.parametrize(
    ("optimised", "expected"),
    [(PLAIN, ["c", "e", "t", "v", "p", "y"]), (BLOCKED, ["c", "e", "v", "p", "y"])],
    ids=["plain", "blocked"],
)
def test_a_node_without_a_name_goes_by_its_output(optimised: str, expected: list[str]) -> None:
    """Also in the graph of the runtime, which names only the nodes that it makes itself."""
    labels = re.compile("|".join(re.escape(label) for label in re.findall(r"\[\w+\] ", FILE)))
    assert list(names(labels.sub("", optimised), labels.sub("", FILE)).values()) == expected


def test_a_node_that_is_not_in_the_file_keeps_its_name() -> None:
    text = "{ [inlined_token_3] a = Sigmoid (x) b = Exp (a) [y_nchwc] y = com.microsoft.nchwc.MaxPool (b) }"
    assert names(text, "{ [function] y = MaxPool <kernel_shape=[2,2]> (x) }") == {
        "a": "inlined", "b": "b", "y": "function",
    }  # fmt: skip


def test_a_tensor_in_the_file_may_have_the_name_of_another_node() -> None:
    file = "{ [p] c = Relu (x) [c] p = MaxPool <kernel_shape=[2,2]> (c) [y] y = Softmax (p) }"
    blocked = """{ [p] c = Relu (x) [p_nchwc] reorder = com.microsoft.nchwc.MaxPool <kernel_shape=[2,2]> (c)
        [ReorderOutput] p = com.microsoft.nchwc.ReorderOutput (reorder) [y] y = Softmax (p) }"""
    assert list(names(blocked, file).values()) == ["p", "c", "y"]
