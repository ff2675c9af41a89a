from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.passes.fuse_affine import fuse_affine_into_batch_norm
from amct_onnx.graph.passes.fusion import Fusion

_BN = "[bn] n = BatchNormalization (x, s, o, m, v)"
_PARAMETERS = {
    "s": np.array([1.0, 2.0], np.float32),
    "o": np.array([3.0, 4.0], np.float32),
    "m": np.array([0.5, 0.5], np.float32),
    "v": np.array([1.0, 4.0], np.float32),
}
_C = np.array([10.0, 100.0], np.float32).reshape(2, 1, 1)


def _model(
    body: str, *, x: str = "float[1,2,3,3] x", y: str = "float[1,2,3,3] y", opset: int = 17, **arrays: Any
) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g ({x}) => ({y}) {{{body}}}'
    proto = parser.parse_model(text)
    constants = {**_PARAMETERS, **arrays}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    return ir.from_proto(proto)


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for graph in model.graphs() for node in graph if node.name == name)


def _parameters(model: ir.Model) -> list[list[float]]:
    arrays = [constant_value(value) for value in _node(model, "bn").inputs[1:3]]
    return [array.tolist() for array in arrays if array is not None]


def _op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("operands", ["n, c", "c, n"])
@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1, 1)])
def test_mul_per_channel(operands: str, shape: tuple[int, ...]) -> None:
    model = _model(f"{_BN} [mul] y = Mul ({operands})", c=_C.reshape(shape))
    assert fuse_affine_into_batch_norm(model) == [Fusion(kept="bn", absorbed="mul")]
    assert _op_types(model) == ["BatchNormalization"]
    assert _parameters(model) == [[10.0, 200.0], [30.0, 400.0]]
    assert list(model.graph.initializers) == ["s", "o", "m", "v"]
    assert _node(model, "bn").outputs[0].name == "y"
    assert model.graph.outputs[0] is _node(model, "bn").outputs[0]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
def test_one_number(shape: tuple[int, ...]) -> None:
    model = _model(f"{_BN} [add] y = Add (n, c)", c=np.full(shape, 7.0, np.float32))
    fuse_affine_into_batch_norm(model)
    assert _parameters(model) == [[1.0, 2.0], [10.0, 11.0]]


def test_a_chain_folds_in_order() -> None:
    model = _model(
        f"{_BN} [mul] p = Mul (n, c) [add] q = Add (c, p) [mul2] r = Mul (q, two) [relu] y = Relu (r)",
        c=_C, two=np.float32(2),
    )  # fmt: skip
    result = fuse_affine_into_batch_norm(model)
    assert [fusion.absorbed for fusion in result] == ["mul", "add", "mul2"]
    assert _op_types(model) == ["BatchNormalization", "Relu"]
    assert _parameters(model) == [[20.0, 400.0], [80.0, 1000.0]]
    assert _node(model, "bn").outputs[0].name == "n"  # no graph output: the name stays


@pytest.mark.parametrize(
    ("tail", "constant"),
    [
        ("[mul] y = Mul (n, c)", np.ones(3, np.float32)),  # along the last axis
        ("[mul] y = Mul (n, c)", np.ones((2, 1, 3), np.float32)),
        ("[mul] y = Mul (n, c)", np.ones((2, 3, 3), np.float32)),
        ("[mul] y = Mul (n, c)", np.ones((1, 1, 1, 1, 1), np.float32)),  # raises the rank
    ],
)
def test_constant_that_is_not_per_channel(tail: str, constant: np.ndarray) -> None:
    model = _model(f"{_BN} {tail}", c=constant)
    assert fuse_affine_into_batch_norm(model) == []
    assert len(model.graph) == 2


def test_vector_as_long_as_the_channels_is_along_the_last_axis() -> None:
    model = _model(f"{_BN} [mul] y = Mul (n, c)", x="float[1,2,3,2] x", y="float[1,2,3,2] y", c=_C.reshape(2))
    assert fuse_affine_into_batch_norm(model) == []


def test_vector_is_per_channel_on_a_matrix() -> None:
    model = _model(f"{_BN} [mul] y = Mul (n, c)", x="float[5,2] x", y="float[5,2] y", c=_C.reshape(2))
    fuse_affine_into_batch_norm(model)
    assert _parameters(model) == [[10.0, 200.0], [30.0, 400.0]]


@pytest.mark.parametrize(("shape", "folds"), [((), True), ((1,), True), ((1, 1, 1), False), ((2, 1, 1), False)])
def test_unknown_rank(shape: tuple[int, ...], folds: bool) -> None:
    model = _model(f"{_BN} [mul] y = Mul (n, c)", x="float x", y="float y", c=np.full(shape, 2.0, np.float32))
    model.graph.inputs[0].shape = None
    assert (len(fuse_affine_into_batch_norm(model)) == 1) == folds


def test_rank_is_known_from_the_convolution_before() -> None:
    model = _model(
        "[conv] t = Conv (x, w) [bn1] u = BatchNormalization (t, s, o, m, v) "
        "[bn] n = BatchNormalization (u, s, o, m, v) [mul] y = Mul (n, c)",
        x="float x", y="float y", w=np.ones((2, 1, 1, 1), np.float32), c=_C,
    )  # fmt: skip
    model.graph.inputs[0].shape = None
    assert [fusion.absorbed for fusion in fuse_affine_into_batch_norm(model)] == ["mul"]


@pytest.mark.parametrize(
    "body",
    [
        f"{_BN} [mul] p = Mul (n, c) [add] y = Add (n, p)",  # the output of bn feeds two nodes
        f"{_BN} [mul] y = Mul (n, huge)",  # fused parameters are not finite
        "[neg] ns = Neg (s) [bn] n = BatchNormalization (x, ns, o, m, v) [mul] y = Mul (n, c)",  # not constant
    ],
)
def test_non_matches_change_nothing(body: str) -> None:
    model = _model(body, c=_C, huge=np.float32(3e38))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert fuse_affine_into_batch_norm(model) == []
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "body",
    [
        f"{_BN} [mul] y = Mul (n, n)",
        f"{_BN} [add] y = Add (n, x)",
        f"{_BN} [div] y = Div (n, c)",
        f"{_BN} [mul] y = custom.Mul (n, c)",
        "[bn] n = BatchNormalization <training_mode=1> (x, s, o, m, v) [mul] y = Mul (n, c)",
        "[bn] n, m1, v1 = BatchNormalization <training_mode=1> (x, s, o, m, v) [mul] y = Mul (n, c)",
    ],
)
def test_no_candidates(body: str) -> None:
    model = _model(body, c=_C)
    assert fuse_affine_into_batch_norm(model) == []
    assert len(model.graph) == 2


@pytest.mark.parametrize("skip", ["bn", "conv"])
def test_listed_batch_norm_or_convolution_keeps_what_follows(skip: str) -> None:
    body = "[conv] t = Conv (x, w) [bn] n = BatchNormalization (t, s, o, m, v) [mul] y = Mul (n, c)"
    model = _model(body, c=_C, w=np.ones((2, 2, 1, 1), np.float32))
    assert fuse_affine_into_batch_norm(model, skip=[skip]) == []
    assert len(model.graph) == 3
    assert len(fuse_affine_into_batch_norm(model, skip=["other"])) == 1


def test_shared_parameters_and_constants_keep_their_value_elsewhere() -> None:
    model = _model(
        f"{_BN} [mul] p = Mul (n, c) [bn2] q = BatchNormalization (p, s, o, m, v) [add] y = Add (q, c)", c=_C
    )
    fuse_affine_into_batch_norm(model)
    assert _op_types(model) == ["BatchNormalization"] * 2
    assert _parameters(model) == [[10.0, 200.0], [30.0, 400.0]]
    second = [constant_value(value) for value in _node(model, "bn2").inputs[1:3]]
    assert [array.tolist() for array in second if array is not None] == [[1.0, 2.0], [13.0, 104.0]]
    assert sorted(model.graph.initializers) == ["m", "o", "o.bn", "s", "s.bn", "v"]


def test_float16_parameters_stay_float16() -> None:
    half: dict[str, Any] = {name: array.astype(np.float16) for name, array in _PARAMETERS.items()}
    model = _model(
        f"{_BN} [mul] y = Mul (n, c)", x="float16[1,2,3,3] x", y="float16[1,2,3,3] y", c=_C.astype(np.float16), **half
    )
    fuse_affine_into_batch_norm(model)
    assert {value.dtype for value in _node(model, "bn").inputs if value is not None} == {ir.DataType.FLOAT16}
