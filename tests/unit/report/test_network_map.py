"""The map of a network: what it shows, and how it is folded."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from flow import build, normal, two_convs
from many_nodes import deep_resnet

from amct_onnx.graph.naming import name_nodes, name_values
from amct_onnx.report.network_map import NetworkMap, network_map


def drawn(model: onnx.ModelProto) -> NetworkMap:
    made = ir.from_proto(model)
    name_nodes(made)
    name_values(made)
    return network_map(made)


def paths(found: NetworkMap) -> list[list[int]]:
    """The blocks around each node, the outermost first."""
    result = []
    for node in found.nodes:
        path, block = [], node.block
        while block >= 0:
            path.insert(0, block)
            block = found.blocks[block].parent
        result.append(path)
    return result


def check_folding(found: NetworkMap) -> None:
    """Each block is an interval of nodes, and no edge leads back."""
    assert all(one < two for one, two in found.edges)
    for block in range(len(found.blocks)):
        inside = [number for number, path in enumerate(paths(found)) if block in path]
        assert inside == list(range(inside[0], inside[-1] + 1))
        assert found.blocks[block].parent < block


def test_nodes_edges_and_no_constants() -> None:
    model = build(
        """g (float[N,4] x) => (float[N,4] y) {
            [shape] s = Constant <value_ints=[-1, 4]> () [re] r = Reshape (x, s) [a] a = Relu (r) [b] b = Sigmoid (r)
            [c] y = Add (a, b) }"""
    )
    found = drawn(model)
    assert [node.name for node in found.nodes] == ["re", "a", "b", "c"]
    assert set(found.edges) == {(0, 1), (0, 2), (1, 3), (2, 3)}
    assert found.places == {"re": 0, "a": 1, "b": 2, "c": 3}


def test_few_nodes_are_not_folded() -> None:
    assert drawn(two_convs()).blocks == ()


def test_names_with_parts_make_blocks() -> None:
    parts = "\n".join(
        f"[enc_layer{layer}_{part}] t{4 * layer + part + 1} = Relu (t{4 * layer + part})"
        for layer in range(5)
        for part in range(4)
    )
    model = build(f"g (float[N,4] t0) => (float[N,4] t20) {{ {parts} }}")
    for node in model.graph.node:
        node.name = "/" + node.name.replace("_", "/")
    found = drawn(model)
    check_folding(found)
    assert [block.name for block in found.blocks] == [f"layer{layer}" for layer in range(5)]
    assert [path[0] for path in paths(found)] == [layer for layer in range(5) for _ in range(4)]


@pytest.mark.parametrize("blocks", [4, 40, 250])
def test_residual_blocks_without_names_are_found_and_grouped(blocks: int) -> None:
    found = drawn(deep_resnet(blocks))
    check_folding(found)
    assert len(found.nodes) == 6 * blocks + 3
    children: dict[int, int] = {}
    for node in found.nodes:
        children[node.block] = children.get(node.block, 0) + 1
    for block in found.blocks:
        children[block.parent] = children.get(block.parent, 0) + 1
    assert max(children.values()) <= 25
    # No residual block is torn apart: its first and its last node are in the same block, on some level.
    around = paths(found)
    whole = [start for start in range(0, 6 * blocks, 6) if set(around[start]) & set(around[start + 5])]
    assert len(whole) >= 0.9 * blocks


def test_nodes_inside_of_bodies_are_where_their_node_is() -> None:
    model = build(
        """g (float[N,4] x, bool c) => (float[N,4] y) {
            [pre] p = Relu (x)
            [choice] y = If (c) <then_branch = t () => (float[N,4] u) { [inner] u = MatMul (p, w) },
                                 else_branch = e () => (float[N,4] v) { [other] v = Relu (p) }> }""",
        w=normal(0, 4, 4),
    )
    found = drawn(model)
    assert found.places["inner"] == found.places["choice"] == 1
    assert (0, 1) in found.edges
