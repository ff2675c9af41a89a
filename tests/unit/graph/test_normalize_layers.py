"""Normal forms of layers; ONNX Runtime on the original is the oracle."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.passes.normalize_layers import normalize_layers

# alpha * w and beta * c are rounded once more than before.
ROUNDING_TOLERANCE = 1e-6


def _proto(body: str, inputs: str, outputs: str = "float y", **arrays: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{{body}}}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def _normalized(proto: onnx.ModelProto, *layers: str) -> ir.Model:
    model = ir.from_proto(proto)
    normalize_layers(model, layers)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def _run(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(0, 1, shape).astype(np.float32)


def _node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def _constant(model: ir.Model, name: str, index: int) -> np.ndarray:
    array = constant_value(_node(model, name).inputs[index])
    assert array is not None
    return array


_BIASES: list[tuple[int, ...] | None] = [(6,), (1, 6), (1,), (), (1, 1), None]


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product([0, 1], [0, 1])))
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.3, 1.0), (1.0, -2.5), (0.7, 0.0)])
@pytest.mark.parametrize("bias", _BIASES, ids=str)
def test_gemm(trans_a: int, trans_b: int, alpha: float, beta: float, bias: tuple[int, ...] | None) -> None:
    arrays = {"w": _normal(6, 4) if trans_b else _normal(4, 6)}
    if bias is not None:
        arrays["b"] = _normal(*bias) + np.float32(1)
    body = (
        f"[fc] y = Gemm <alpha={alpha}, beta={beta}, transA={trans_a}, transB={trans_b}> ({', '.join(['x', *arrays])})"
    )
    shape = (4, 5) if trans_a else (5, 4)
    before = _proto(body, f"float[{shape[0]},{shape[1]}] x", "float[5,6] y", **arrays)
    model = _normalized(before, "fc")
    x = _normal(*shape)
    (want,), (got,) = _run(before, x=x), _run(ir.to_proto(model), x=x)
    assert np.abs(got - want).max() <= ROUNDING_TOLERANCE * np.abs(want).max()
    fc = _node(model, "fc")
    assert {name: attribute.value for name, attribute in fc.attributes.items()} == {"alpha": 1.0, "beta": 1.0}
    assert _constant(model, "fc", 1).shape == (4, 6)
    if bias is None:
        assert len(fc.inputs) == 2
    else:
        assert _constant(model, "fc", 2).shape == (6,)
    assert [node.op_type for node in model.graph] == (["Transpose"] if trans_a else []) + ["Gemm"]
    assert set(model.graph.initializers) == set(arrays)  # in place, under their own names


def test_gemm_without_its_optional_bias() -> None:
    proto = _proto("[fc] y = Gemm <alpha=2.0> (x, w, none)", "float[5,4] x", "float[5,6] y", w=_normal(4, 6))
    proto.graph.node[0].input[2] = ""
    model = _normalized(proto, "fc")
    x = _normal(5, 4)
    np.testing.assert_allclose(_run(ir.to_proto(model), x=x)[0], _run(proto, x=x)[0], rtol=ROUNDING_TOLERANCE)


def test_two_layers_that_share_a_weight_get_one_each() -> None:
    before = _proto(
        "[one] a = MatMul (x, w) [two] b = MatMul (a, w) y = Add (b, w)",
        "float[4,4] x", "float[4,4] y", w=_normal(4, 4),
    )  # fmt: skip
    model = _normalized(before, "one", "two")
    weights = [_node(model, name).inputs[1] for name in ("one", "two")]
    assert all(value is not None and value.is_initializer() and len(value.uses()) == 1 for value in weights)
    assert weights[0] is not weights[1]
    x = _normal(4, 4)
    np.testing.assert_array_equal(_run(ir.to_proto(model), x=x)[0], _run(before, x=x)[0])


def test_gemm_and_another_reader_of_its_weight() -> None:
    """The transposed copy belongs to the Gemm; who else reads the weight sees it as it was."""
    before = _proto(
        "[fc] a = Gemm <transB=1, alpha=3.0> (x, w) y = Add (a, w)",
        "float[4,4] x", "float[4,4] y", w=_normal(4, 4),
    )  # fmt: skip
    model = _normalized(before, "fc")
    np.testing.assert_allclose(_constant(model, "fc", 1), 3 * _normal(4, 4).T, rtol=ROUNDING_TOLERANCE)
    x = _normal(4, 4)
    np.testing.assert_allclose(_run(ir.to_proto(model), x=x)[0], _run(before, x=x)[0], rtol=1e-5)


def test_a_weight_behind_a_chain_becomes_an_initializer() -> None:
    before = _proto(
        "t = Transpose <perm=[1,0,2,3]> (w) i = Identity (t) j = Identity (b) [conv] y = Conv (x, i, j)",
        "float[1,4,5,5] x", "float[1,6,3,3] y", w=_normal(4, 6, 3, 3), b=_normal(6),
    )  # fmt: skip
    model = _normalized(before, "conv")
    assert [node.op_type for node in model.graph] == ["Conv"]
    assert all(value is not None and value.is_initializer() for value in _node(model, "conv").inputs[1:])
    x = _normal(1, 4, 5, 5)
    np.testing.assert_array_equal(_run(ir.to_proto(model), x=x)[0], _run(before, x=x)[0])


def test_other_layers_stay_as_they_are() -> None:
    before = _proto(
        "[a] t = Gemm <transB=1, alpha=2.0> (x, w) [b] y = Gemm <transB=1, alpha=2.0> (t, w)",
        "float[4,4] x", "float[4,4] y", w=_normal(4, 4),
    )  # fmt: skip
    model = _normalized(before, "b")
    untouched = _node(model, "a")
    assert untouched.attributes.get_int("transB", 0) == 1
    np.testing.assert_array_equal(_constant(model, "a", 1), _normal(4, 4))
    same: Any = ir.from_proto(before)
    normalize_layers(same, ())
    assert ir.to_proto(same) == ir.to_proto(ir.from_proto(before))


def test_the_transposed_input_finds_a_free_name() -> None:
    body = "fc__transpose__output0 = Relu (x) [fc] y = Gemm <transA=1> (fc__transpose__output0, w)"
    before = _proto(body, "float[4,5] x", "float[5,6] y", w=_normal(4, 6))
    for node in before.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    model = _normalized(before, "fc")
    x = _normal(4, 5)
    np.testing.assert_allclose(_run(ir.to_proto(model), x=x)[0], _run(before, x=x)[0], rtol=1e-5, atol=1e-6)
