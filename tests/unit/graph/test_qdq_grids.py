"""Constants behind QuantizeLinear and DequantizeLinear, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import build, normal
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.graph.qdq_grids import GridConstant, activation_params, commutes, grid_constant, grid_of

F, I8, U8 = np.float32, np.int8, np.uint8
Q8 = np.arange(-128, 112, dtype=np.int16).astype(I8).reshape(2, 3, 40)


def both(body: str, opset: int = 17, **weights: Any) -> tuple[object, np.ndarray]:
    """What is read of output y, and what ONNX Runtime makes of it."""
    proto = build(f"g () => (float y) {{{body}}}", opset=opset, ir_version=10, **weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return grid_constant(ir.from_proto(proto).graph.outputs[0]), session.run(None, {})[0]


CONSTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "per tensor": ("y = DequantizeLinear (q, s, z)", {"q": Q8, "s": F(0.013), "z": I8(3)}),
    "negative axis": (
        "y = DequantizeLinear <axis=-2> (q, s, z)",
        {"q": Q8, "s": F([0.1, 0.2, 0.3]), "z": np.array([1, 0, -5], I8)},
    ),
    "default axis": ("y = DequantizeLinear (q, s)", {"q": Q8, "s": F([0.1, 0.2, 0.3])}),
    "rounded here": (
        "i = QuantizeLinear <axis=0> (x, s, z) y = DequantizeLinear <axis=0> (i, s, z)",
        {"x": normal(1, 2, 3, 40), "s": F([0.011, 0.02]), "z": np.zeros(2, I8)},
    ),
    "clipped and moved": (
        """i = QuantizeLinear (x, s, z) c = Clip (i, low, high) t = Transpose <perm=[2,0,1]> (c)
        d = DequantizeLinear (t, s, z) r = Reshape (d, shape) f = Flatten <axis=-1> (r) u = Unsqueeze (f, axes)
        y = Squeeze (u, axes)""",
        {
            "x": normal(2, 2, 3, 40), "s": F(0.03), "z": U8(128), "low": U8(100), "high": U8(150),
            "shape": np.array([0, -1, 2], np.int64), "axes": np.array([1], np.int64),
        },
    ),
    "saturated": (
        "i = QuantizeLinear (x, s, z) y = DequantizeLinear (i, s, z)",
        {"x": 100 * normal(3, 50), "s": F(0.1), "z": U8(9)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_values_are_those_of_the_runtime(name: str) -> None:
    body, weights = CONSTANTS[name]
    constant, expected = both(body, **weights)
    assert isinstance(constant, GridConstant)
    assert constant.steps.shape == constant.scale.shape == expected.shape
    np.testing.assert_array_equal(constant.values(), expected)


@given(st.floats(2**-20, 1024, width=32), st.integers(0, 2**32 - 1))
def test_rounding_is_that_of_the_runtime(scale: float, seed: int) -> None:
    """Halves included: x is a multiple of scale / 2."""
    x = (np.random.default_rng(seed).integers(-300, 300, 64) * F(scale / 2)).astype(F)
    body = "i = QuantizeLinear (x, s, z) y = DequantizeLinear (i, s, z)"
    constant, expected = both(body, x=x, s=F(scale), z=I8(0))
    assert isinstance(constant, GridConstant)
    np.testing.assert_array_equal(constant.values(), expected)


UNREADABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "zero scale": ("", {"s": F(0)}, "not a positive number"),
    "NaN": ("", {"s": F("nan")}, "not a positive number"),
    "double": ("", {"s": np.float64(1)}, "float64, and only float32"),
    "blocks": ("axis=0, block_size=2", {"s": F([[1, 2, 3]])}, "in blocks"),
    "shape": ("", {"s": F([[1, 2], [3, 4]])}, "differ in shape"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_grids_that_cannot_be_read(name: str) -> None:
    attributes, weights, reason = UNREADABLE[name]
    text = f"g (int8[4,3] q) => (float[4,3] y) {{ y = DequantizeLinear <{attributes}> (q, s) }}"
    proto = build(text.replace(" <>", ""), opset=21, **weights)
    grid = grid_of(ir.from_proto(proto).graph[0])
    assert isinstance(grid, str)
    assert reason in grid


@pytest.mark.parametrize(
    ("zero_point", "expected"),
    [(I8(-128), -128), (I8(127), 127), (U8(0), -128), (U8(128), 0), (U8(255), 127)],
)
def test_uint8_moves_by_128(zero_point: Any, expected: int) -> None:
    text = "g (float[4] x) => (float[4] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    for node in ir.from_proto(build(text, s=F(0.5), z=zero_point)).graph:
        grid = grid_of(node)
        assert not isinstance(grid, str)
        params = activation_params(grid)
        assert not isinstance(params, str)
        assert (params.scale.item(), params.zero_point.item()) == (0.5, expected)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("y = Relu (x)", True),
        ("y = Transpose (x)", True),
        ("y = MaxPool <kernel_shape=[2,2]> (x)", True),
        ("y, i = MaxPool <kernel_shape=[2,2]> (x)", False),
        ("y = Pad (x, p)", True),
        ("y = Pad (x, p, zero)", True),
        ("y = Pad (x, p, one)", False),
        ("y = Pad <mode=\"edge\"> (x, p)", True),
        ("y = AveragePool <kernel_shape=[2,2]> (x)", False),
        ("y = Sigmoid (x)", False),
        ("y = Clip (x, zero, one)", False),
    ],
)  # fmt: skip
def test_what_commutes_with_rounding(node: str, expected: bool) -> None:
    text = f"g (float[1,1,4,4] x) => (float y) {{{node}}}"
    weights = {"p": np.zeros(8, np.int64), "zero": F(0), "one": F(1)}
    assert commutes(ir.from_proto(build(text, **weights)).graph[0]) == expected
