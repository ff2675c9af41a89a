"""Weights that are equal become one initializer, whatever graph they are in; the function stays, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, build, normal
from graphs import graphs

from amct_onnx.graph.passes.share_weights import copy_shared_weights, share_weights
from amct_onnx.graph.qdq_grids import GridConstant, grid_constant

WIDTH = 48
GRIDS = {
    "s": np.full(WIDTH, 0.02, np.float32),
    "z": np.zeros(WIDTH, np.int8),
    "sx": np.float32(0.03),
    "zx": np.uint8(128),
}


def product(name: str, *, scale: str = "s", zero: str = "z") -> str:
    return f"""{name}d = DequantizeLinear <axis = 1> ({name}, {scale}, {zero})
        {name}q = QuantizeLinear (x, sx, zx)
        {name}x = DequantizeLinear ({name}q, sx, zx)
        {name}y = MatMul ({name}x, {name}d)"""


def model_of(*, inside: bool = False, **weights: np.ndarray) -> onnx.ModelProto:
    """The sum of products of x with each weight, the last of which is in a body where `inside`."""
    *first, last = weights
    lines = "\n".join(map(product, first))
    tail = product(last)
    if inside:
        tail = f"""{last}y = If (yes) <then_branch = t () => (float[N,{WIDTH}] o) {{ {tail} o = Identity ({last}y) }},
            else_branch = e () => (float[N,{WIDTH}] p) {{ p = Identity (x) }}>"""
        tail = tail.replace(f"{last}y = MatMul", f"{last}m = MatMul").replace(
            f"Identity ({last}y)", f"Identity ({last}m)"
        )
    total = ", ".join(f"{name}y" for name in weights)
    text = f"g (float[N,{WIDTH}] x, bool yes) => (float[N,{WIDTH}] y) {{ {lines} {tail} y = Sum ({total}) }}"
    return build(text, **weights, **GRIDS)


def integers(seed: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, (width, width)).astype(np.int8)


def changed(proto: onnx.ModelProto, *, copies: bool) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    for _ in range(2):  # the second time changes nothing
        share_weights(model)
        if copies:
            copy_shared_weights(model)
    return ir.to_proto(model)


def stored(proto: onnx.ModelProto) -> list[str]:
    """The names of all int8 matrices."""
    return [t.name for g in graphs(proto.graph) for t in g.initializer if t.data_type == 3 and len(t.dims) == 2]


def outputs(proto: onnx.ModelProto, *, exact: bool = False, plain: bool = False) -> list[np.ndarray]:
    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=CPU)
    return [session.run(None, {"x": normal(5, 3, WIDTH), "yes": np.array(yes)})[0] for yes in (True, False)]


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_equal_weights_are_stored_once(inside: bool, copies: bool) -> None:
    proto = model_of(inside=inside, a=integers(1), b=integers(2), c=integers(1), d=integers(1))
    shared = changed(proto, copies=copies)
    onnx.checker.check_model(shared, full_check=True)
    assert len(stored(shared)) == 2
    for got, expected in zip(outputs(shared), outputs(proto), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_other_scales_and_other_shapes_are_other_weights() -> None:
    scales = {"s2": np.full(WIDTH, 0.03, np.float32), "z2": np.zeros(WIDTH, np.int8)}
    text = f"g (float[N,{WIDTH}] x, bool yes) => (float[N,{WIDTH}] y) {{ {product('a')} "
    proto = build(
        text + product("b", scale="s2", zero="z2") + " y = Sum (ay, by) }",
        **{"a": integers(1), "b": integers(1)},
        **GRIDS,
        **scales,
    )
    assert len(stored(changed(proto, copies=False))) == 2


def test_small_weights_are_left_alone() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { p = MatMul (x, a) y = MatMul (p, b) }"
    proto = build(text, a=normal(1, 4, 4), b=normal(1, 4, 4))
    assert len(changed(proto, copies=True).graph.initializer) == 2


def test_plain_weights_of_layers_are_shared() -> None:
    weight = normal(1, WIDTH, WIDTH)
    text = f"g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ p = MatMul (x, a) y = Gemm <transB = 1> (p, b) }}"
    shared = changed(build(text, a=weight, b=weight.copy()), copies=False)
    assert [t.name for t in shared.graph.initializer] == ["a"]


def test_onnx_runtime_opens_copies_where_it_makes_weights_uint8() -> None:
    proto = model_of(a=integers(1), b=integers(1))
    with pytest.raises(Exception, match="replace the existing tensor"):
        outputs(changed(proto, copies=False), exact=True)
    shared = changed(proto, copies=True)
    assert len(stored(shared)) == 1
    for got, wanted in zip(outputs(shared, exact=True), outputs(shared, plain=True), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-4)


def test_the_grid_of_a_copy_is_known() -> None:
    weight = integers(1)
    shared = ir.from_proto(changed(model_of(a=weight, b=weight.copy()), copies=True))
    for node in shared.graph:
        if node.op_type == "MatMul":
            grid = grid_constant(node.inputs[1])
            assert isinstance(grid, GridConstant)
            np.testing.assert_array_equal(grid.steps, weight)
