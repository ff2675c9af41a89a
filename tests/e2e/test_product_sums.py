"""A product with a weight runs in integers whatever is added to it, for any number of dimensions, fixed or open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import tensor
from qdq_graph import exact_session, kernels

import amct_onnx

FLOATS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
INTEGERS = ("QLinearMatMul", "QGemm", "MatMulIntegerToFloat")
WIDTH = 32
SHAPES = {
    "flat": ("8,32", (8, 32)),
    "rows": ("N,32", (8, 32)),
    "fixed": ("1,8,32", (1, 8, 32)),
    "batch": ("N,8,32", (2, 8, 32)),
    "open": ("N,L,32", (2, 8, 32)),
    "four": ("2,2,4,32", (2, 2, 4, 32)),
    "unknown": ("", (2, 8, 32)),
}
# What computes y from x, and how many products with a weight it has.
BODIES = {
    "bias": ("a = MatMul(x, A) y = Add(a, p)", 1),
    "bias first": ("a = MatMul(x, A) y = Add(p, a)", 1),
    "relu": ("a = MatMul(x, A) b = Add(a, p) c = Relu(b) d = MatMul(c, B) y = Add(d, q)", 2),
    "clip": ("a = MatMul(x, A) b = Add(a, p) c = Clip(b, low, high) d = MatMul(c, B) y = Add(d, q)", 2),
    "one row": ("a = MatMul(x, A) b = Add(a, row) y = MatMul(b, B)", 2),
    "one number": ("a = MatMul(x, A) b = Add(a, one) y = MatMul(b, B)", 2),
    "several sums": ("a = MatMul(x, A) b = Add(a, p) c = Add(b, q) y = MatMul(c, B)", 2),
    "residual": ("a = MatMul(x, A) b = Add(a, x) y = MatMul(b, B)", 2),
    "bias and residual": ("a = MatMul(x, A) b = Add(a, p) c = Add(x, b) y = MatMul(c, B)", 2),
    "two of one input": ("a = MatMul(x, A) b = Add(a, p) c = MatMul(x, B) d = Add(q, c) y = Mul(b, d)", 2),
    "a sum that others read": ("a = MatMul(x, A) b = Add(a, p) c = MatMul(b, B) d = Add(c, q) y = Add(d, b)", 2),
    "a sum that is an output": ("a = MatMul(x, A) b = Add(a, p) c = MatMul(b, B) y = Add(c, q)", 2),
    "turned": ("T = Transpose<perm = [1, 0]>(A) a = MatMul(x, T) y = Add(a, p)", 1),
    "one bias for two": ("a = MatMul(x, A) b = Add(a, p) c = Relu(b) d = MatMul(c, B) y = Add(p, d)", 2),
    "behind a normalization": ("s = Softmax<axis = -1>(x) a = MatMul(s, A) y = Add(a, p)", 1),
    "written out gelu": (
        "a = MatMul(x, A) b = Add(a, p) s = Div(b, root) e = Erf(s) f = Add(e, one) g = Mul(b, f) h = Mul(g, half) "
        "d = MatMul(h, B) y = Add(d, q)",
        2,
    ),
}


def build(body: str, declared: str, opset: int, outputs: str = "float[] y") -> ir.Model:
    chance = np.random.default_rng(0)
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{declared}] x) => ({outputs}) {{ {body} }}'
    )
    if not declared:
        model.graph.inputs[0].shape = None
    constants = {
        "A": chance.normal(size=(WIDTH, WIDTH)) / 6,
        "B": chance.normal(size=(WIDTH, WIDTH)) / 6,
        "p": chance.normal(size=WIDTH),
        "q": chance.normal(size=WIDTH),
        "row": chance.normal(size=(1, WIDTH)),
        "one": 1.0,
        "half": 0.5,
        "root": 2**0.5,
        "low": -1.0,
        "high": 2.0,
    }
    for output in model.graph.outputs:
        output.shape = None
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() is None and value.name in constants:
                name = str(value.name)
                if name not in model.graph.initializers:
                    array = np.asarray(constants[name], np.float32)
                    model.graph.register_initializer(ir.Value(name=name, const_value=tensor(array, name=name)))
                node.replace_input_with(index, model.graph.initializers[name])
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", BODIES)
def test_products_are_integer_kernels(case: str, shape: str, tmp_path: Path) -> None:
    opset = (11, 13, 17, 21)[(len(case) + len(shape)) % 4]
    (body, products), (declared, size) = BODIES[case], SHAPES[shape]
    model = build(body, declared, opset, "float[] y, float[] b" if "output" in case else "float[] y")
    x = np.random.default_rng(1).normal(size=size).astype(np.float32)
    result = amct_onnx.quantize(model, [{"x": x}] * 4, effort="fast", reduce_range=True)
    file = result.save(tmp_path / "m", inspect=False).files[0]
    found = kernels(file, tmp_path)
    assert not [kind for kind in FLOATS if found[kind]]
    assert sum(found[kind] for kind in INTEGERS) == products
    ir.save(model, tmp_path / "float.onnx")
    (exact,) = exact_session(tmp_path / "float.onnx").run(["y"], {"x": x})
    (got,) = exact_session(file).run(["y"], {"x": x})
    assert got.shape == exact.shape
    assert np.abs(got - exact).max() <= 0.06 * np.abs(exact).max()


def test_a_constant_that_no_int32_holds_stays_in_float(tmp_path: Path) -> None:
    """A mask in the columns is added in float; the product beside it is in integers all the same."""
    model = build("a = MatMul(x, A) y = Add(a, p)", "8,32", 17)
    mask = np.zeros(WIDTH, np.float32)
    mask[::2] = -np.inf
    model.graph.initializers["p"].const_value = tensor(mask, name="p")
    x = np.random.default_rng(1).normal(size=(8, WIDTH)).astype(np.float32)
    result = amct_onnx.quantize(model, [{"x": x}] * 4, effort="fast")
    found = kernels(result.save(tmp_path / "m", inspect=False).files[0], tmp_path)
    assert not [kind for kind in FLOATS if found[kind]]
    reasons = {decision.layer: decision.reason for decision in result.decisions}
    assert "NaN or Inf" in str(next(reason for name, reason in reasons.items() if name.startswith("Add")))


def test_a_sum_that_is_left_out_leaves_the_product_in_integers(tmp_path: Path) -> None:
    model = build("a = MatMul(x, A) [sum] b = Add(a, p) y = MatMul(b, B)", "8,32", 17)
    x = np.random.default_rng(1).normal(size=(8, WIDTH)).astype(np.float32)
    result = amct_onnx.quantize(model, [{"x": x}] * 4, effort="fast", skip_layers=["sum"])
    found = kernels(result.save(tmp_path / "m", inspect=False).files[0], tmp_path)
    assert not [kind for kind in FLOATS if found[kind]]
    assert found["Add"] == 1
