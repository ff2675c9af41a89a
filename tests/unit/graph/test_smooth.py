"""Smoothing: the same function with fewer outliers, and where the factors go."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal

from amct_onnx.graph.passes.smooth import product_inputs, smooth_inputs

FACTORS = np.geomspace(0.1, 10, 6).astype(np.float32)
# Products of six terms in float32, with factors up to 10.
ROUNDING = 1e-4
X = normal(0, 3, 4, 6)
CONSTANTS = {"g": normal(1, 6) + 2, "b": normal(2, 6), "w": normal(3, 6, 5), "v": normal(4, 6, 5)}

PRE_LN = """g (float[N,L,6] x) => (float[N,L,5] y, float[N,L,5] z) {
    [norm] t = LayerNormalization <axis=-1> (x, g, b) [first] y = MatMul (t, w) [second] z = MatMul (t, v) }"""
POST_LN = """g (float[N,L,6] x) => (float[N,L,5] y, float[N,L,6] r) {
    [norm] t = LayerNormalization <axis=-1> (x, g, b) [first] y = MatMul (t, w) [residual] r = Add (t, x) }"""
DECOMPOSED = """g (float[N,L,6] x) => (float[N,L,5] y) {
    [scale] s = Mul (x, g) [shift] t = Add (b, s) [first] y = MatMul (t, w) }"""
GELU = "g (float[N,L,6] x) => (float[N,L,5] y) { [act] t = Tanh (x) [first] y = MatMul (t, w) }"
OUTPUT = """g (float[N,L,6] x) => (float[N,L,5] y, float[N,L,6] t) {
    [norm] t = LayerNormalization <axis=-1> (x, g, b) [first] y = MatMul (t, w) }"""
NO_BIAS = """g (float[N,L,6] x) => (float[N,L,5] y) {
    [norm] t = LayerNormalization <axis=-1> (x, g) [first] y = MatMul (t, w) }"""
SCALAR = """g (float[N,L,6] x) => (float[N,L,5] y) { [act] t = Mul (x, half) [first] y = MatMul (t, w) }"""


def model_of(text: str, **more: np.ndarray) -> onnx.ModelProto:
    used = {name: array for name, array in (CONSTANTS | more).items() if f"{name})" in text or f"{name}," in text}
    return build(text, **used)


def run(model: onnx.ModelProto, x: np.ndarray = X) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, {"x": x})


@pytest.mark.parametrize(
    ("text", "muls"),
    [(PRE_LN, 0), (NO_BIAS, 0), (DECOMPOSED, 1), (POST_LN, 1), (GELU, 1), (OUTPUT, 1), (SCALAR, 2)],
    ids=["pre-LN", "no bias", "decomposed", "post-LN", "activation", "graph output", "scalar in front"],
)
def test_the_function_stays_and_a_mul_comes_only_where_others_read(text: str, muls: int) -> None:
    proto = model_of(text, half=np.float32(0.5))
    model = ir.from_proto(proto)
    before = model.graph.initializers["w"].const_value.numpy()
    renamed = smooth_inputs(model, {"t": FACTORS})
    assert sum(node.op_type == "Mul" for node in model.graph) == muls
    assert (renamed["t"] == "t") == (text in (PRE_LN, NO_BIAS, DECOMPOSED))
    np.testing.assert_allclose(model.graph.initializers["w"].const_value.numpy(), before * FACTORS[:, None])
    smoothed = ir.to_proto(model)
    for exact, got in zip(run(proto), run(smoothed), strict=True):
        np.testing.assert_allclose(got, exact, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("text", [PRE_LN, POST_LN])
def test_what_the_products_read_is_divided(text: str) -> None:
    proto = model_of(text)
    model = ir.from_proto(proto)
    name = smooth_inputs(model, {"t": FACTORS})["t"]
    values = {value.name: value for node in model.graph for value in node.outputs}
    plain = ir.from_proto(proto)
    for graph, tensor in ((model.graph, values[name]), (plain.graph, plain.graph.node("norm").outputs[0])):
        tensor.type, tensor.shape = ir.TensorType(ir.DataType.FLOAT), None
        graph.outputs[:] = [tensor]
    got, exact = (run(ir.to_proto(each))[0] for each in (model, plain))
    np.testing.assert_allclose(got, exact / FACTORS, rtol=ROUNDING, atol=ROUNDING)


def test_a_shared_weight_is_scaled_for_this_tensor_only() -> None:
    proto = model_of(
        """g (float[N,L,6] x) => (float[N,L,5] y, float[N,L,5] z) {
            [act] t = Tanh (x) [first] y = MatMul (t, w) [other] z = MatMul (x, w) }"""
    )
    model = ir.from_proto(proto)
    smooth_inputs(model, {"t": FACTORS})
    for exact, got in zip(run(proto), run(ir.to_proto(model)), strict=True):
        np.testing.assert_allclose(got, exact, rtol=ROUNDING, atol=ROUNDING)


def test_a_gemm_with_a_turned_weight() -> None:
    proto = build(
        "g (float[N,6] x) => (float[N,5] y) { [act] t = Tanh (x) [first] y = Gemm <transB=1, alpha=2.0> (t, w) }",
        w=normal(3, 5, 6),
    )
    model = ir.from_proto(proto)
    assert product_inputs(model)["t"].channels == 6
    smooth_inputs(model, {"t": FACTORS})
    x = normal(5, 3, 6)
    np.testing.assert_allclose(run(ir.to_proto(model), x)[0], run(proto, x)[0], rtol=ROUNDING, atol=ROUNDING)


def test_what_is_no_input_of_a_product() -> None:
    model = ir.from_proto(
        build(
            """g (float[6,N] x, float[N,6] q) => (float[N,5] y, float[N,N] z, float[2,N,5] u) {
                y = Gemm <transA=1> (x, w) z = MatMul (q, x) u = MatMul (q, three) }""",
            w=normal(0, 6, 5),
            three=normal(1, 2, 6, 5),
        )
    )
    assert product_inputs(model) == {}
