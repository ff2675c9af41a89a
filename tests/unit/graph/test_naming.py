from __future__ import annotations

import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.graph.naming import name_nodes


def _chain(names: list[str], op_types: list[str] | None = None) -> ir.Model:
    op_types = op_types or ["Relu"] * len(names)
    value = ir.Value(name="x")
    graph = ir.Graph([value], [], nodes=[], opset_imports={"": 17}, name="g")
    for index, (name, op_type) in enumerate(zip(names, op_types, strict=True)):
        node = ir.Node("", op_type, [value], outputs=[ir.Value(name=f"v{index}")], name=name)
        graph.append(node)
        value = node.outputs[0]
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def _names(model: ir.Model) -> list[str]:
    return [node.name or "" for graph in model.graphs() for node in graph]


def test_unnamed_nodes_get_type_and_position() -> None:
    model = _chain(["", "a", ""], ["Relu", "Exp", "Neg"])
    name_nodes(model)
    assert _names(model) == ["Relu_0", "a", "Neg_2"]


def test_a_position_that_is_taken_is_counted_up() -> None:
    model = _chain(["", "Relu_0", "Relu_1", ""])
    name_nodes(model)
    assert _names(model) == ["Relu_2", "Relu_0", "Relu_1", "Relu_3"]


def test_the_first_of_duplicates_keeps_its_name() -> None:
    model = _chain(["n", "n", "n_1", "n"])
    name_nodes(model)
    assert _names(model) == ["n", "n_2", "n_1", "n_3"]


def test_subgraphs_share_one_space_of_names_and_functions_have_their_own() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 17, "local" : 1]>
        g (float[1] x, bool flag) => (float[1] y) {
            [a] t = local.f (x)
            y = If (flag) <then_branch = g1 () => (float[1] y1) {[a] y1 = Relu (t)},
                           else_branch = g2 () => (float[1] y2) {[f] y2 = Relu (t)}>
        }
        <opset_import: ["" : 17], domain: "local"> f (fx) => (fy) { [a] ft = Relu (fx) fy = Relu (ft) }"""
    )
    name_nodes(model)
    assert _names(model) == ["a", "If_1", "a_1", "f"]
    (function,) = model.functions.values()
    assert [node.name for node in function] == ["a", ""]


@given(st.lists(st.sampled_from(["", "n", "n_1", "n_1_1", "Relu_0", "Relu_1", "other"]), max_size=12))
def test_laws(names: list[str]) -> None:
    model = _chain(names)
    name_nodes(model)
    after = _names(model)
    assert all(after)
    assert len(set(after)) == len(after)
    for name in set(names) - {""}:
        assert after[names.index(name)] == name  # the first holder, hence every unique name
    name_nodes(model)
    assert _names(model) == after
