"""Bodies as models of their own: closed and put back they compute the same, and names are unique."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from flow import build, normal

from amct_onnx.graph.bodies import all_values, bodies_with_layers, close_body, closed_copies, outside_reads
from amct_onnx.graph.naming import name_nodes, name_values


def branches() -> onnx.ModelProto:
    return build(
        """g (float[N,4] x, bool c, bool d) => (float[N,4] y) {
            s = Relu (x)
            flip = Transpose <perm=[1,0]> (w)
            y = If (c) <
                then_branch = yes () => (float[N,4] o) {
                    a = MatMul (s, flip)
                    o = If (d) <
                        then_branch = deep () => (float[N,4] p) { q = MatMul (a, w) p = Add (q, s) },
                        else_branch = flat () => (float[N,4] q) { q = Relu (a) }> },
                else_branch = no () => (float[N,4] a) { a = Abs (s) }>
        }""",
        w=normal(1, 4, 4),
    )


def named(model: onnx.ModelProto) -> ir.Model:
    taken = ir.from_proto(model)
    name_nodes(taken)
    name_values(taken)
    return taken


def outputs(model: ir.Model | onnx.ModelProto) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    session = ort.InferenceSession(proto.SerializeToString())
    found = []
    for c in (True, False):
        for d in (True, False):
            found += session.run(None, {"x": normal(2, 3, 4), "c": np.array(c), "d": np.array(d)})
    return found


def test_names_in_bodies_become_unique_and_the_model_stays_the_same() -> None:
    model = branches()
    taken = named(model)
    made = [value.name for graph in taken.graphs() for node in graph for value in node.outputs]
    assert len(set(made)) == len(made)
    assert set(all_values(taken)) >= set(made)
    for before, after in zip(outputs(model), outputs(taken), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_innermost_bodies_come_first() -> None:
    assert [place.graph.name for place in bodies_with_layers(named(branches()))] == ["deep", "yes"]


def test_a_closed_body_reads_nothing_around_it_and_goes_back() -> None:
    model = branches()
    taken = named(model)
    reads = outside_reads(taken)
    for place in bodies_with_layers(taken):
        closed = close_body(taken, place, reads)
        alone = closed.model.clone()  # onnx_ir clones no graph that reads what is around it
        closed.put_back(alone)
    for before, after in zip(outputs(model), outputs(taken), strict=True):
        np.testing.assert_array_equal(before, after)
    assert set(all_values(taken)) == set(all_values(named(model)))


def test_closed_copies_leave_the_model_alone() -> None:
    taken = named(branches())
    before = ir.to_proto(taken).SerializeToString()
    inputs = [[value.name for value in model.graph.inputs] for model in closed_copies(taken)]
    assert inputs == [["a", "s"], ["s", "d"]]
    assert ir.to_proto(taken).SerializeToString() == before


def test_a_name_that_a_body_shares_with_the_caller_s_tensor_is_changed_in_the_copy_only() -> None:
    model = branches()
    model.graph.node[2].attribute[0].g.initializer.append(onnx.numpy_helper.from_array(normal(5, 4, 4), "w"))
    before = model.SerializeToString()
    named(model)
    assert model.SerializeToString() == before
