"""Networks that compute the rows of axis 0 one by one, by their operators: ONNX Runtime is asked whether it is true."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build, normal

from amct_onnx.graph.rows import is_rowwise

W44, W33, ROW, COLUMN = normal(1, 4, 4), normal(2, 4, 4, 3, 3), normal(3, 1, 4), normal(4, 3, 1)
LIFTED = {"w": W44, "k": W33, "row": ROW, "column": COLUMN, "axes": np.array([0]), "last": np.array([-1])}

ROWWISE = {
    "convolutions": """g (float[N,4,6,6] x) => (float[N,4,?,?] y) {
        a = Conv (x, k) b = Relu (a) y = MaxPool<kernel_shape=[2,2]> (b) }""",
    "residual": """g (float[N,4,6,6] x) => (float[N,8,?,?] y) {
        a = Conv<pads=[1,1,1,1]> (x, k) b = Add (a, x) y = Concat<axis=1> (b, x) }""",
    "classifier": """g (float[N,4,6,6] x) => (float[N,4] y) {
        a = GlobalAveragePool (x) f = Flatten (a) b = Gemm (f, w, row) y = Softmax<axis=-1> (b) }""",
    "product": "g (float[N,5,4] x) => (float[N,5,4] y) { a = MatMul (x, w) y = Mul (a, row) }",
    "mean of channels": "g (float[N,5,4] x) => (float[N,5] y) { y = ReduceMean<axes=[-1],keepdims=0> (x) }",
    "turned images": "g (float[N,3,4] x) => (float[N,4,3] y) { y = Transpose<perm=[0,2,1]> (x) }",
    "padded and sliced": """g (float[N,4,6] x) => (float[N,8,3] y)
        <int64[6] pads = {0, 2, 0, 0, 2, 0}, int64[1] two = {2}, int64[1] from = {0}, int64[1] to = {6}> {
        a = Pad (x, pads) y = Slice (a, from, to, two, two) }""",
    "two inputs": "g (float[N,4] x, float[N,4] z) => (float[N,4] y) { y = Add (x, z) }",
    "reshape that keeps": "g (float[N,4,4] x) => (float[N,16] y) <int64[2] s = {0, 16}> { y = Reshape (x, s) }",
    "reshape of known sizes": "g (float[N,4,4] x) => (float[N,2,8] y) <int64[3] s = {-1, 2, 8}> { y = Reshape (x, s) }",
}
OTHERS = {
    "mean of rows": "g (float[N,4] x) => (float[1,4] y) { y = ReduceMean<axes=[0]> (x) }",
    "mean of all": "g (float[N,4] x) => (float[1,1] y) { y = ReduceMean (x) }",
    "softmax of rows": "g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0> (x) }",
    "softmax from the end": "g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=-2> (x) }",
    "rows joined": "g (float[N,4] x) => (float[M,4] y) { y = Concat<axis=0> (x, x) }",
    "rows joined from the end": "g (float[N,4] x) => (float[M,4] y) { y = Concat<axis=-2> (x, x) }",
    "turned product": "g (float[N,4] x) => (float[4,4] y) { a = Gemm<transA=1> (x, x) y = Relu (a) }",
    "product of rows": "g (float[N,4] x) => (float[4,N] y) { t = Transpose<perm=[1,0]> (x) y = MatMul (w, t) }",
    "constant for each row": "g (float[N,4] x) => (float[3,4] y) { y = Add (x, column) }",
    "constant of more axes": "g (float[4] x) => (float[3,4] y) { y = Add (x, column) }",
    "reshape with a batch": "g (float[N,4] x) => (float[2,2,4] y) <int64[3] s = {2, 2, 4}> { y = Reshape (x, s) }",
    "reshape into rows": "g (float[N,4] x) => (float[M,2] y) <int64[2] s = {-1, 2}> { y = Reshape (x, s) }",
    "flattened rows": "g (float[N,4,4] x) => (float[M,4] y) { y = Flatten<axis=2> (x) }",
    "ranks that differ": "g (float[N,4] x, float[N,N,4] z) => (float[N,N,4] y) { y = Add (x, z) }",
    "turned rows": "g (float[N,4] x) => (float[4,N] y) { y = Transpose<perm=[1,0]> (x) }",
    "turned as a whole": "g (float[N,4] x) => (float[4,N] y) { y = Transpose (x) }",
    "more rows": "g (float[N,4] x) => (float[M,4] y) <int64[4] pads = {1, 0, 0, 0}> { y = Pad (x, pads) }",
    "some rows": """g (float[N,4] x) => (float[M,4] y) <int64[1] from = {0}, int64[1] to = {1}, int64[1] axis = {-2}> {
        y = Slice (x, from, to, axis) }""",
    "first axes": """g (float[N,4] x) => (float[M,4] y) <int64[1] from = {0}, int64[1] to = {1}> {
        y = Slice (x, from, to) }""",
    "number of rows": "g (float[N,4] x) => (int64[2] y) { y = Shape (x) }",
    "another output": "g (float[N,4] x) => (float[N,4] y, float[4,4] z) { y = Relu (x) z = Relu (w) }",
    "time first": """g (float[N,1,4] x) => (float[N,1,1,2] y) { y, h, c = LSTM<hidden_size=2> (x, lw, lr) }""",
}


def model_of(text: str) -> ir.Model:
    return ir.from_proto(build(text, lw=normal(5, 1, 8, 4), lr=normal(6, 1, 8, 2), **LIFTED))


@pytest.mark.parametrize("name", ROWWISE)
def test_networks_that_are_recognised_compute_their_rows_one_by_one(name: str) -> None:
    model = model_of(ROWWISE[name])
    inputs = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    assert is_rowwise(model, inputs)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    shapes = {value.name: [3, *value.shape[1:]] for value in session.get_inputs()}
    feed = {name: normal(7 + number, *shape) for number, (name, shape) in enumerate(shapes.items())}
    rows = [session.run(None, {name: array[row : row + 1] for name, array in feed.items()}) for row in range(3)]
    for whole, *pieces in zip(session.run(None, feed), *rows, strict=True):
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_of_others_nothing_is_said(name: str) -> None:
    model = model_of(OTHERS[name])
    assert not is_rowwise(model, [str(value.name) for value in model.graph.inputs])


def test_an_input_that_is_not_of_rows_is_not_taken_for_a_constant() -> None:
    model = model_of("g (float[N,4] x, float[K,4] z) => (float[N,4] y) { y = Add (x, z) }")
    assert not is_rowwise(model, ["x"])
    assert is_rowwise(model, ["x", "z"])
