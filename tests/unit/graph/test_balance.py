"""The balancing pass: names, shapes and what it leaves alone (that it keeps the function is a contract)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from flow import build, normal

from amct_onnx.graph.passes.balance import balance_factors, balance_layers, constant_first, weight_maxima
from amct_onnx.graph.passes.normalize_layers import normalize_layers

CASES = {
    "Conv": ("float[N,4,H,W] x", "Conv <group=2> (x, w)", (6, 2, 3, 3), 4, (1, 4, 1, 1)),
    "Conv 1-D": ("float[N,4,L] x", "Conv (x, w)", (6, 4, 3), 4, (1, 4, 1)),
    "Conv 3-D": ("float[N,2,D,H,W] x", "Conv (x, w)", (3, 2, 1, 1, 1), 2, (1, 2, 1, 1, 1)),
    "ConvTranspose": ("float[N,4,H,W] x", "ConvTranspose <group=2> (x, w)", (4, 3, 2, 2), 4, (1, 4, 1, 1)),
    "Gemm": ("float[N,4] x", "Gemm <transB=1, alpha=-3.0> (x, w)", (5, 4), 4, (1, 4)),
    "MatMul": ("float[N,7,4] x", "MatMul (x, w)", (4, 5), 4, (1, 4)),
    "MatMul 3-D": ("float[2,7,4] x", "MatMul (x, w)", (2, 4, 5), 4, (1, 4)),
}


def layer(case: str, more: str = "", **constants: np.ndarray) -> tuple[ir.Model, ir.Node]:
    inputs, call, shape, _, _ = CASES[case]
    proto = build(f"g ({inputs}) => (float y) {{[layer] y = {call} {more}}}", w=normal(0, *shape), **constants)
    model = ir.from_proto(proto)
    return model, next(node for node in model.graph if node.name == "layer")


@pytest.mark.parametrize("case", CASES)
def test_the_mul_and_its_constant_are_amcts(case: str) -> None:
    model, node = layer(case)
    normalize_layers(model, {"layer"})
    factors = np.geomspace(0.5, 4, CASES[case][3], dtype=np.float32)
    before = weight_maxima(node)
    balance_layers(model, {"layer": factors})
    mul = node.inputs[0].producer()
    assert mul is not None
    assert (mul.name, mul.op_type) == ("layer.mul", "Mul")
    x, constant = mul.inputs
    assert x is model.graph.inputs[0]
    assert constant is not None
    assert constant.name == "layer.tensor_balance_factor"
    value = constant.const_value.numpy()
    assert value.shape == CASES[case][4]
    np.testing.assert_array_equal(value.reshape(-1), np.float32(1) / factors)
    np.testing.assert_allclose(weight_maxima(node), before * factors, rtol=1e-6)
    np.testing.assert_allclose(balance_factors(node), factors, rtol=1e-6)


def test_maxima_are_those_of_the_weight_as_it_is_multiplied() -> None:
    model, node = layer("Gemm")
    before = weight_maxima(node)
    np.testing.assert_array_equal(before, np.abs(normal(0, 5, 4) * np.float32(3)).max(axis=0))
    normalize_layers(model, {"layer"})
    np.testing.assert_array_equal(weight_maxima(node), before)


def test_names_that_are_taken_get_a_number() -> None:
    text = "[other] layer__mul__output0 = Relu (layer__tensor_balance_factor)"
    model, node = layer("MatMul", text.replace("__", "_"), layer_tensor_balance_factor=normal(1, 3))
    for value in [*model.graph.initializers.values(), *(out for n in model.graph for out in n.outputs)]:
        if value.name and value.name.startswith("layer_"):
            value.name = value.name.replace("layer_", "layer.").replace("mul_", "mul.")
    balance_layers(model, {"layer": np.full(4, 2, np.float32)})
    mul = node.inputs[0].producer()
    assert mul is not None
    assert mul.inputs[1].name == "layer.tensor_balance_factor_1"
    assert mul.outputs[0].name == "layer.mul.output0_1"
    np.testing.assert_array_equal(balance_factors(node), np.full(4, 2))


def test_a_mul_of_the_model_is_no_balancing() -> None:
    proto = build(
        "g (float[N,4] x) => (float y) {[scale] a = Mul (x, c) [layer] y = MatMul (a, w)}",
        w=normal(0, 4, 5), c=normal(1, 4),
    )  # fmt: skip
    model = ir.from_proto(proto)
    mul, node = model.graph
    assert balance_factors(node) is None
    constant_first(model, {"layer"})
    assert [value.name for value in mul.inputs] == ["x", "c"]
    balance_layers(model, {"layer": np.full(4, 2, np.float32)})
    constant_first(model, {"layer"})
    added = node.inputs[0].producer()
    assert [value.name for value in added.inputs] == ["layer.tensor_balance_factor", "a"]
