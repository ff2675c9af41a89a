from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from amct_onnx.graph.constants import (
    ValueNames,
    add_initializer,
    constant_value,
    lift_ir3,
    own_constant,
    remove_unused,
)


def _model(body: str, *, inputs: str = "float[2] x", outputs: str = "float[2] y", **arrays: Any) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{{body}}}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    return ir.from_proto(proto)


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for graph in model.graphs() for node in graph if node.name == name)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _text(model: ir.Model) -> str:
    return ir.to_onnx_text(model)


A = np.array([1.0, 2.0], np.float32)
B = np.array([3.0, 5.0], np.float32)


class TestConstantValue:
    @pytest.mark.parametrize(
        ("attribute", "expected"),
        [
            ("value_float = 2.0", np.array(2.0, np.float32)),
            ("value_floats = [1.0, 2.0]", np.array([1.0, 2.0], np.float32)),
            ("value_int = 2", np.array(2, np.int64)),
            ("value_ints = [1, 2]", np.array([1, 2], np.int64)),
            ("value = float[2] {1, 2}", np.array([1.0, 2.0], np.float32)),
            ('value_string = "a"', None),
        ],
    )
    def test_constant_node(self, attribute: str, expected: np.ndarray | None) -> None:
        model = _model(f"[k] k = Constant <{attribute}> () [same] y = Identity (k)")
        actual = constant_value(_node(model, "k").outputs[0])
        assert constant_value(_node(model, "same").outputs[0]) is None if expected is None else True
        if expected is None:
            assert actual is None
        else:
            assert actual is not None
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)

    def test_no_value(self) -> None:
        assert constant_value(None) is None

    def test_initializer_is_known_and_read_only(self) -> None:
        model = _model("[add] y = Add (x, a)", a=A)
        array = constant_value(_input(_node(model, "add"), 1))
        assert array is not None
        np.testing.assert_array_equal(array, A)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7

    def test_input_and_overridable_initializer_are_unknown(self) -> None:
        model = _model("[add] y = Add (x, a)", inputs="float[2] x, float[2] a", a=A)
        add = _node(model, "add")
        assert _input(add, 1).is_initializer()
        assert constant_value(add.inputs[0]) is None
        assert constant_value(add.inputs[1]) is None

    def test_computed_value_is_unknown(self) -> None:
        model = _model("[neg] n = Neg (a) [add] y = Add (x, n)", a=A)
        assert constant_value(_node(model, "add").inputs[1]) is None

    def test_chain(self) -> None:
        w = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
        model = _model(
            "i = Identity (w) t = Transpose <perm=[2,0,1]> (i) r = Transpose (t) [up] y = Cast <to=1> (r)", w=w
        )
        array = constant_value(_node(model, "up").outputs[0])
        assert array is not None
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, w.transpose(2, 0, 1).transpose())

    @pytest.mark.parametrize(("to", "known"), [(1, True), (10, True), (11, True), (16, True), (6, False), (17, False)])
    def test_only_casts_to_float_are_followed(self, to: int, known: bool) -> None:
        model = _model(f"[cast] y = Cast <to={to}> (a)", a=np.array([1, 300], np.int32))
        array = constant_value(_node(model, "cast").outputs[0])
        assert (array is not None) == known
        if array is not None:
            assert array.dtype == ir.DataType(to).numpy()

    def test_bfloat16(self) -> None:
        model = _model("[cast] y = Cast <to=1> (a)", a=A.astype(ml_dtypes.bfloat16))
        np.testing.assert_array_equal(constant_value(_node(model, "cast").outputs[0]), A)

    def test_node_of_another_domain_is_unknown(self) -> None:
        model = _model("[same] y = custom.Identity (a)", a=A)
        assert constant_value(_node(model, "same").outputs[0]) is None

    def test_outer_value_seen_from_a_subgraph(self) -> None:
        model = _model(
            """y = If (flag) <then_branch = g1 () => (float[2] y1) {[add] y1 = Add (x, a)},
                              else_branch = g2 () => (float[2] y2) {y2 = Neg (x)}>""",
            inputs="float[2] x, bool flag",
            a=A,
        )
        np.testing.assert_array_equal(constant_value(_node(model, "add").inputs[1]), A)


class TestOwnConstant:
    def _own(self, model: ir.Model, node: str, index: int, array: np.ndarray = B) -> ir.Value:
        value = own_constant(_node(model, node), index, array, "hint", names=ValueNames(model))
        assert value is _node(model, node).inputs[index]
        assert value.is_initializer()
        assert [usage.node.name for usage in value.uses()] == [node]
        np.testing.assert_array_equal(constant_value(value), array)
        return value

    def test_private_initializer_is_reused(self) -> None:
        model = _model("[add] y = Add (x, a)", a=A)
        before = _input(_node(model, "add"), 1)
        assert self._own(model, "add", 1) is before
        assert list(model.graph.initializers) == ["a"]

    def test_type_and_shape_follow_the_array(self) -> None:
        model = _model("[add] y = Add (x, a) [z] z = Identity (y)", a=A)
        value = self._own(model, "add", 1, np.zeros((3, 1), np.float16))
        assert value.dtype == ir.DataType.FLOAT16
        assert value.shape == ir.Shape((3, 1))
        assert _input(_node(model, "add"), 0).dtype == ir.DataType.FLOAT

    def test_scalars_stay_scalars(self) -> None:
        model = _model("[add] y = Add (x, a)", a=A)
        assert self._own(model, "add", 1, np.array(2.0, np.float32)).shape == ir.Shape(())

    def test_later_changes_of_the_array_do_not_reach_the_model(self) -> None:
        model = _model("[add] y = Add (x, a)", a=A)
        array = B.copy()
        value = own_constant(_node(model, "add"), 1, array, "hint", names=ValueNames(model))
        array[:] = 0
        np.testing.assert_array_equal(constant_value(value), B)

    def test_shared_initializer_is_copied(self) -> None:
        model = _model("[one] t = Add (x, a) [two] y = Mul (t, a)", a=A)
        assert self._own(model, "one", 1).name == "a.one"
        np.testing.assert_array_equal(constant_value(_node(model, "two").inputs[1]), A)
        assert self._own(model, "two", 1).name == "a"

    def test_used_twice_by_the_same_node(self) -> None:
        model = _model("[add] y = Add (a, a)", a=A)
        assert self._own(model, "add", 1).name == "a.add"
        assert _input(_node(model, "add"), 0).name == "a"

    def test_graph_output_is_copied(self) -> None:
        model = _model("[add] y = Add (x, a)", outputs="float[2] y, float[2] a", a=A)
        assert self._own(model, "add", 1).name == "a.add"
        np.testing.assert_array_equal(constant_value(model.graph.outputs[1]), A)

    def test_overridable_initializer_is_copied(self) -> None:
        model = _model("[add] y = Add (x, a)", inputs="float[2] x, float[2] a", a=A)
        assert self._own(model, "add", 1).name == "a.add"
        assert [value.name for value in model.graph.inputs] == ["x", "a"]
        assert "a" in model.graph.initializers

    def test_name_of_a_copy_is_unique_in_the_whole_model(self) -> None:
        model = _model(
            """[one] t = Add (x, a) [two] u = Add (t, a)
               y = If (flag) <then_branch = g1 () => (float[2] y1) {w = Neg (u) y1 = Neg (w)},
                              else_branch = g2 () => (float[2] y2) {y2 = Neg (u)}>""",
            inputs="float[2] x, bool flag",
            a=A,
        )
        next(graph for graph in model.graph.subgraphs())[0].outputs[0].name = "a.one"
        assert self._own(model, "one", 1).name == "a.one_1"

    def test_private_constant_node_gives_its_name(self) -> None:
        model = _model("[k] k = Constant <value_floats = [1.0, 2.0]> () [add] y = Add (x, k)")
        assert self._own(model, "add", 1).name == "k"
        assert [node.op_type for node in model.graph] == ["Add"]

    def test_shared_constant_node_stays(self) -> None:
        model = _model("[k] k = Constant <value_floats = [1.0, 2.0]> () [add] t = Add (x, k) [mul] y = Mul (t, k)")
        assert self._own(model, "add", 1).name == "k.add"
        assert [node.op_type for node in model.graph] == ["Constant", "Add", "Mul"]

    def test_private_chain_collapses_onto_its_initializer(self) -> None:
        model = _model("t = Transpose (a) i = Identity (t) [add] y = Add (x, i)", a=A.reshape(1, 2))
        assert self._own(model, "add", 1).name == "a"
        assert [node.op_type for node in model.graph] == ["Add"]
        assert list(model.graph.initializers) == ["a"]

    def test_chain_with_a_shared_start(self) -> None:
        model = _model("t = Transpose (a) [add] u = Add (x, t) [mul] y = Mul (u, a)", a=A)
        assert self._own(model, "add", 1).name == "t"
        assert [node.op_type for node in model.graph] == ["Add", "Mul"]
        np.testing.assert_array_equal(constant_value(_node(model, "mul").inputs[1]), A)

    def test_chain_with_a_shared_middle(self) -> None:
        model = _model("t = Transpose (a) i = Identity (t) [add] u = Add (x, i) [mul] y = Mul (u, t)", a=A)
        assert self._own(model, "add", 1).name == "i"
        assert [node.op_type for node in model.graph] == ["Transpose", "Add", "Mul"]

    @pytest.mark.parametrize("inputs", ["x, w", "x, w, "])
    def test_missing_and_empty_input(self, inputs: str) -> None:
        model = _model(
            f"[conv] y = Conv ({inputs})", inputs="float[1,1,3] x", outputs="float[1,2,3] y", w=np.ones((2, 1, 1), "f")
        )
        assert self._own(model, "conv", 2).name == "hint"
        assert len(_node(model, "conv").inputs) == 3
        assert self._own(model, "conv", 2, A).name == "hint"

    def test_inputs_in_between_stay_empty(self) -> None:
        model = _model("[clip] y = Clip (x)")
        self._own(model, "clip", 2, np.array(6.0, np.float32))
        assert _node(model, "clip").inputs[1] is None

    def test_is_idempotent(self) -> None:
        model = _model("[one] t = Add (x, a) [two] y = Mul (t, a)", a=A)
        self._own(model, "one", 1)
        once = _text(model)
        self._own(model, "one", 1)
        assert _text(model) == once

    def test_node_in_a_subgraph(self) -> None:
        body = """k = Constant <value_floats = [1.0, 2.0]> ()
            y = If (flag) <then_branch = g1 () => (float[2] y1) {[p] t1 = Add (x, a) [q] u1 = Add (t1, b)
                                                                 [r] y1 = Add (u1, k)},
                           else_branch = g2 () => (float[2] y2) {[s] y2 = Add (x, b)}>"""
        model = _model(body, inputs="float[2] x, bool flag", a=A, b=A)
        assert self._own(model, "p", 1).graph is model.graph  # the only reader: changed where it is
        assert self._own(model, "q", 1).graph is _node(model, "q").graph
        assert self._own(model, "r", 1).name == "k"
        assert sorted(model.graph.initializers) == ["a", "b"]
        assert len(model.graph) == 1


def test_add_initializer_is_unique() -> None:
    model = _model("[add] y = Add (x, a)", a=A)
    names = ValueNames(model)
    added = [add_initializer(model.graph, name, B, names=names).name for name in ("new", "new", "x", "y")]
    assert added == ["new", "new_1", "x_1", "y_1"]
    assert list(model.graph.initializers) == ["a", *added]


def test_remove_unused_only_takes_what_was_given() -> None:
    model = _model("d = Identity (a) e = Neg (a) [add] y = Add (x, b)", a=A, b=B, junk=A)
    add = _node(model, "add")
    freed = _input(add, 1)
    assert not remove_unused((freed, None))
    add.replace_input_with(1, model.graph.inputs[0])
    assert remove_unused((freed, model.graph.inputs[0]))
    assert list(model.graph.initializers) == ["a", "junk"]
    assert not remove_unused((model.graph[1].outputs[0],))  # Neg may be anybody's; it stays
    assert remove_unused((model.graph[0].outputs[0],))
    assert [node.op_type for node in model.graph] == ["Neg", "Add"]


def test_lift_ir3() -> None:
    model = _model("[add] y = Add (x, a)", inputs="float[2] x, float[2] a", a=A)
    assert not lift_ir3(model)
    model.ir_version = 3
    assert lift_ir3(model)
    assert model.ir_version == 4
    assert [value.name for value in model.graph.inputs] == ["x"]
    np.testing.assert_array_equal(constant_value(_node(model, "add").inputs[1]), A)
    assert not lift_ir3(model)
