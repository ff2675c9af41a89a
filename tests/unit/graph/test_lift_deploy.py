"""`lift_deploy`: what comes out computes exactly the integers that the deploy model stands for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from opsets import newest_opset

from amct_onnx.errors import ModelError
from amct_onnx.graph.read.lift_deploy import has_ascend_operators, lift_deploy
from amct_onnx.numerics.packing import pack_dequant

F32 = TensorProto.FLOAT
RNG_SEED = 20240607


# Building and running


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=f"the_{outputs[0]}", **attributes)


def quant(x: str, q: str, *, offset: float = 0.0, scale: float = 1.0, **attributes: Any) -> onnx.NodeProto:
    return node("AscendQuant", [x], [q], **{"scale": scale, "offset": offset, "dst_type": "INT8", **attributes})


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    outputs: dict[str, int],
    inputs: dict[str, int] | None = None,
    opset: int = 11,
    value_info: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A deploy model; all inputs (default: float `x`) and outputs have unknown shapes."""
    graph = helper.make_graph(
        list(nodes),
        "deploy",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (inputs or {"x": F32}).items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
        value_info=list(value_info),
    )
    # The default domain is not the first import on purpose.
    imports = [helper.make_opsetid("ai.onnx.ml", 2), helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=6 if opset < 15 else 10)


def lifted(model: onnx.ModelProto) -> onnx.ModelProto:
    result = ir.from_proto(model)
    lift_deploy(result)
    return ir.to_proto(result)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(lifted(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def run_layer(
    op: str,
    q: np.ndarray,
    offset: int,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    opset: int = 11,
    **attributes: Any,
) -> np.ndarray:
    """The int32 result of one layer on the int8 tensor `q` with the given offset."""
    constants = {"w": weight} | ({"b": bias} if bias is not None else {})
    nodes = [quant("x", "q", offset=offset), node(op, ["q", *constants], ["y"], **attributes)]
    model = model_of(nodes, constants, outputs={"y": TensorProto.INT32}, opset=opset)
    result = run(model, x=(q.astype(np.float32) - offset))[0]
    assert result.dtype == np.int32
    return result


def int8s(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    return rng.integers(-128, 128, tuple(shape), dtype=np.int64).astype(np.int8)


# Oracles, in int64


def conv_oracle(
    x: np.ndarray, w: np.ndarray, strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], group: int
) -> np.ndarray:
    rank = w.ndim - 2
    x = np.pad(x.astype(np.int64), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    size = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], w.shape[2:], dilations, strides, strict=True)
    ]
    xg = x.reshape(x.shape[0], group, -1, *x.shape[2:])
    wg = w.astype(np.int64).reshape(group, -1, *w.shape[1:])
    out = np.zeros((x.shape[0], group, wg.shape[1], *size), np.int64)
    for tap in itertools.product(*map(range, w.shape[2:])):
        spot = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in zip(tap, dilations, size, strides, strict=True)
        )
        out += np.einsum("ngc...,gmc->ngm...", xg[(..., *spot)], wg[(slice(None),) * 3 + tap])
    return out.reshape(x.shape[0], -1, *size)


def conv_transpose_oracle(
    x: np.ndarray,
    w: np.ndarray,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    group: int,
    extra: Sequence[int],
) -> np.ndarray:
    rank = w.ndim - 2
    full = [
        (n - 1) * s + (k - 1) * d + 1 + p
        for n, s, k, d, p in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)
    ]
    xg = x.astype(np.int64).reshape(x.shape[0], group, -1, *x.shape[2:])
    wg = w.astype(np.int64).reshape(group, -1, *w.shape[1:])
    out = np.zeros((x.shape[0], group, w.shape[1], *full), np.int64)
    for tap in itertools.product(*map(range, w.shape[2:])):
        spot = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        out[(..., *spot)] += np.einsum("ngc...,gcm->ngm...", xg, wg[(slice(None),) * 3 + tap])
    out = out.reshape(x.shape[0], -1, *full)
    return out[(..., *(slice(b, n - e) for b, e, n in zip(pads[:rank], pads[rank:], full, strict=True)))]


# The convolution family


@st.composite
def convolutions(draw: st.DrawFn, *, transpose: bool) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    each = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    group = draw(st.integers(1, 3))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    case: dict[str, Any] = {
        "group": group,
        "strides": strides,
        "dilations": dilations,
        "kernel": kernel,
        "batch": draw(st.integers(1, 2)),
        "c": draw(st.integers(1, 3)),
        "m": draw(st.integers(1, 3)),
        "offset": draw(st.sampled_from([-128, -5, 0, 77, 127])),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }
    if not transpose:
        case["pads"] = each(0, 3) + each(0, 3)
        case["size"] = [draw(st.integers(r + 1, r + 5)) for r in reach]
        return case
    case["extra"] = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
    case["size"] = each(1, 4)
    full = [(n - 1) * s + r + 1 + p for n, s, r, p in zip(case["size"], strides, reach, case["extra"], strict=True)]
    begin = [draw(st.integers(0, min(4, f - 1))) for f in full]
    end = [draw(st.integers(0, min(4, f - 1 - b))) for f, b in zip(full, begin, strict=True)]
    case["pads"] = begin + end
    return case


@settings(max_examples=examples(60))
@given(convolutions(transpose=False))
def test_conv_is_the_integer_convolution(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    group, offset = case["group"], case["offset"]
    q = int8s(rng, [case["batch"], case["c"] * group, *case["size"]])
    w = int8s(rng, [case["m"] * group, case["c"], *case["kernel"]])
    b = rng.integers(-(2**30), 2**30, w.shape[0]).astype(np.int32) if case["bias"] else None
    attributes = {key: case[key] for key in ("strides", "dilations", "pads", "group")}
    got = run_layer("Conv", q, offset, w, b, **attributes)
    want = conv_oracle(q.astype(np.int64) - offset, w, **attributes)
    if b is not None:
        want = want + b.reshape(-1, *[1] * len(case["size"]))
    np.testing.assert_array_equal(got, want)


@settings(max_examples=examples(80))
@given(convolutions(transpose=True))
def test_conv_transpose_is_the_integer_transposed_convolution(case: dict[str, Any]) -> None:
    rng = np.random.default_rng(case["seed"])
    group, offset = case["group"], case["offset"]
    q = int8s(rng, [case["batch"], case["c"] * group, *case["size"]])
    w = int8s(rng, [case["c"] * group, case["m"], *case["kernel"]])
    b = rng.integers(-(2**30), 2**30, case["m"] * group).astype(np.int32) if case["bias"] else None
    attributes = {key: case[key] for key in ("strides", "dilations", "pads", "group")}
    opset = 11 if case["seed"] % 2 else 13  # Unsqueeze differs
    got = run_layer("ConvTranspose", q, offset, w, b, opset=opset, output_padding=case["extra"], **attributes)
    want = conv_transpose_oracle(q.astype(np.int64) - offset, w, **attributes, extra=case["extra"])
    if b is not None:
        want = want + b.reshape(-1, *[1] * len(case["size"]))
    np.testing.assert_array_equal(got, want)


def float_layer(op: str, x: np.ndarray, w: np.ndarray, **attributes: Any) -> np.ndarray:
    """ONNX Runtime's float kernel on small integers, where it is exact: the reference for what it makes of auto_pad."""
    model = model_of([node(op, ["x", "w"], ["y"], **attributes)], {"w": w.astype(np.float32)}, outputs={"y": F32})
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2), (3, 2), (2, 3), (4, 2)])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_auto_pad_as_onnx_runtime_reads_it(op: str, rank: int, auto_pad: str, kernel: int, stride: int) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [1, 2, *[7] * rank]), int8s(rng, [2, 2, *[kernel] * rank])
    attributes = {"auto_pad": auto_pad, "strides": [stride] * rank, "kernel_shape": [kernel] * rank}
    got = run_layer(op, q, 19, w, **attributes)
    np.testing.assert_array_equal(got, float_layer(op, q.astype(int) - 19, w, **attributes))


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [[7, 8], [8, 9], [9, 6]])
@pytest.mark.parametrize("group", [1, 2])
def test_output_shape_cuts_the_middle_out(auto_pad: str, size: list[int], group: int) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [2, 2, 4, 4]), int8s(rng, [2, 3, 4, 3])
    attributes = {"auto_pad": auto_pad, "strides": [2, 2], "output_shape": size, "group": group}
    got = run_layer("ConvTranspose", q, -7, w, **attributes)
    assert got.shape[2:] == tuple(size)
    np.testing.assert_array_equal(got, float_layer("ConvTranspose", q.astype(int) + 7, w, **attributes))


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [[11, 10], [7, 10], [11, 6]])
def test_output_shape_larger_than_the_full_output_is_filled_with_zeros(auto_pad: str, size: list[int]) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [2, 2, 4, 4]), int8s(rng, [2, 3, 4, 3])
    attributes = {"auto_pad": auto_pad, "strides": [2, 2], "output_shape": size}
    got = run_layer("ConvTranspose", q, -7, w, **attributes)
    assert got.shape[2:] == tuple(size)
    np.testing.assert_array_equal(got, float_layer("ConvTranspose", q.astype(int) + 7, w, **attributes))


@pytest.mark.parametrize("activation", [-128, 127])
@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("offset", [-128, 0, 127])
@pytest.mark.parametrize("group", [1, 64])
def test_extreme_values_do_not_saturate(activation: int, value: int, offset: int, group: int) -> None:
    q = np.full((1, 64, 6, 6), activation, np.int8)
    w = np.full((64, 64 // group, 3, 3), value, np.int8)
    attributes = {"pads": [1, 1, 1, 1], "group": group}
    got = run_layer("Conv", q, offset, w, **attributes)
    want = conv_oracle(q.astype(np.int64) - offset, w, (1, 1), (1, 1), (1, 1, 1, 1), group)
    np.testing.assert_array_equal(got, want)
    matrix = np.full((512, 7), value, np.int8)
    rows = np.full((3, 512), activation, np.int8)
    got = run_layer("Gemm", rows, offset, matrix)
    np.testing.assert_array_equal(got, (rows.astype(np.int64) - offset) @ matrix.astype(np.int64))


# Gemm, MatMul, AveragePool


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias_shape", [None, (5,), (1, 5), (3, 5), (1,)])
def test_gemm(trans_b: int, bias_shape: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [3, 40]), int8s(rng, [40, 5])
    b = None if bias_shape is None else rng.integers(-(2**30), 2**30, bias_shape).astype(np.int32)
    got = run_layer("Gemm", q, 3, w.T.copy() if trans_b else w, b, transB=trans_b, alpha=1.0, beta=1.0)
    want = (q.astype(np.int64) - 3) @ w.astype(np.int64) + (0 if b is None else b)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("left", "right"), [((3, 8), (8, 5)), ((2, 4, 8), (8, 5)), ((2, 3, 4, 8), (2, 3, 8, 5)), ((2, 1, 4, 8), (3, 8, 5))]
)
def test_matmul_with_a_constant_on_either_side(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rng = np.random.default_rng(RNG_SEED)
    a, b = int8s(rng, left), int8s(rng, right)
    want = (a.astype(np.int64) - 9) @ b.astype(np.int64)
    np.testing.assert_array_equal(run_layer("MatMul", a, 9, b), want)
    nodes = [quant("x", "q", offset=9), node("MatMul", ["w", "q"], ["y"])]
    got = run(model_of(nodes, {"w": a}, outputs={"y": TensorProto.INT32}), x=b.astype(np.float32) - 9)[0]
    np.testing.assert_array_equal(got, a.astype(np.int64) @ (b.astype(np.int64) - 9))


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_two_quantized_inputs(op: str) -> None:
    rng = np.random.default_rng(RNG_SEED)
    shapes = ([3, 8], [8, 5]) if op == "Gemm" else ([2, 3, 8], [2, 8, 5])
    a, b = (int8s(rng, shape) for shape in shapes)
    nodes = [quant("x", "qa", offset=-3), quant("z", "qb", offset=11), node(op, ["qa", "qb"], ["y"])]
    model = model_of(nodes, outputs={"y": TensorProto.INT32}, inputs={"x": F32, "z": F32})
    got = run(model, x=a.astype(np.float32) + 3, z=b.astype(np.float32) - 11)[0]
    np.testing.assert_array_equal(got, (a.astype(np.int64) + 3) @ (b.astype(np.int64) - 11))


def test_int32_bias_added_between_matmul_and_dequant() -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w, b = int8s(rng, [2, 3, 8]), int8s(rng, [8, 5]), np.arange(5, dtype=np.int32) * 1000
    nodes = [
        quant("x", "q", offset=4),
        node("MatMul", ["q", "w"], ["m"]),
        node("Add", ["b", "m"], ["s"]),
        node("AscendDequant", ["s", "p"], ["y"], dtype=0),
    ]
    model = model_of(nodes, {"w": w, "b": b, "p": pack_dequant(0.25)}, outputs={"y": F32})
    got = run(model, x=q.astype(np.float32) - 4)[0]
    want = ((q.astype(np.int64) - 4) @ w.astype(np.int64) + b).astype(np.float32) * np.float32(0.25)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("include", [0, 1])
def test_average_pool_is_the_mean_of_the_integers(include: int) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, offset, scale = int8s(rng, [2, 3, 7, 7]), -100, np.float32(0.0123)
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "count_include_pad": include}
    nodes = [
        quant("x", "q", offset=offset),
        node("AveragePool", ["q"], ["a"], **attributes),
        node("AscendDequant", ["a", "p"], ["y"]),
    ]
    x = q.astype(np.float32) - offset
    got = run(model_of(nodes, {"p": pack_dequant(scale)}, outputs={"y": F32}), x=x)[0]
    plain = model_of([node("AveragePool", ["x"], ["y"], **attributes)], outputs={"y": F32})
    session = ort.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    mean = session.run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, mean * scale)
    ones = float_layer("Conv", np.ones((2, 1, 7, 7)), np.ones((1, 1, 3, 3)), pads=[1] * 4, strides=[2, 2])
    sums = conv_oracle(x.astype(np.int64), np.eye(3)[:, :, None, None] * np.ones((3, 3)), (2, 2), (1, 1), (1,) * 4, 1)
    np.testing.assert_allclose(mean, sums / (9 if include else ones), rtol=1e-6)


# The Ascend operators


@settings(max_examples=examples(40))
@given(st.integers(-128, 127), st.floats(2**-10, 2**14, width=32), st.integers(0, 2**31))
def test_quant_is_mul_round_add_clip_in_float32(offset: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    factor = np.float32(scale)
    ties = (np.arange(-300, 300) + 0.5).astype(np.float32) / factor
    odd = np.array([np.inf, -np.inf, 3e38, -3e38, 1e-40, 0.0, -0.0, 2.0**31, -(2.0**31)], np.float32)
    x = np.concatenate([rng.normal(0, 60, 500).astype(np.float32) / factor, ties, odd])
    with np.errstate(over="ignore"):
        want = np.clip(np.round(x * factor) + np.float32(offset), np.float32(-128), np.float32(127)).astype(np.int8)
    got = run(model_of([quant("x", "q", offset=offset, scale=scale)], outputs={"q": TensorProto.INT8}), x=x)[0]
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, want)


def test_quant_and_dequant_in_float16() -> None:
    x = np.linspace(-3, 3, 64).astype(np.float16).reshape(1, 64)
    eye = np.eye(64, dtype=np.int8)
    nodes = [
        quant("x", "q", offset=5, scale=30.3),
        node("Gemm", ["q", "w"], ["v"]),
        node("AscendDequant", ["v", "p"], ["y"], dtype=1),
    ]
    f16 = TensorProto.FLOAT16
    model = model_of(nodes, {"w": eye, "p": pack_dequant(1 / 30.3)}, inputs={"x": f16}, outputs={"y": f16})
    got = run(model, x=x)[0]
    want = (np.round(x.astype(np.float32) * np.float32(30.3)) * np.float32(1 / 30.3)).astype(np.float16)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 17, 18, 19, *range(21, newest_opset() + 1)])
def test_each_opset_with_quant_transposed_conv_pool_and_anti_quant(opset: int) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [1, 2, 5, 5]), int8s(rng, [2, 3, 3, 3])
    nodes = [
        quant("x", "q", offset=2),
        node("MaxPool", ["q"], ["m"], kernel_shape=[2, 2]),
        node("ConvTranspose", ["m", "w"], ["v"], strides=[2, 2]),
        node("AscendDequant", ["v", "p"], ["y"]),
        node("AscendAntiQuant", ["m"], ["z"], scale=0.5, offset=2.0),
    ]
    constants = {"w": w, "p": pack_dequant([0.5, 0.25, 2], 3)}
    model = model_of(nodes, constants, outputs={"y": F32, "z": F32}, opset=opset)
    got, back = run(model, x=q.astype(np.float32) - 2)
    pooled = np.lib.stride_tricks.sliding_window_view(q, (2, 2), (2, 3)).max((4, 5)).astype(np.int64) - 2
    v = conv_transpose_oracle(pooled, w, (2, 2), (1, 1), (0,) * 4, 1, (0, 0))
    scales = np.float32([0.5, 0.25, 2]).reshape(3, 1, 1)
    np.testing.assert_array_equal(got, np.clip(v // 8, -32768, 32767).astype(np.float32) * scales * np.float32(8))
    np.testing.assert_array_equal(back, pooled * np.float32(0.5))
    assert [entry.version for entry in lifted(model).opset_import if entry.domain == ""] == [opset]


@settings(max_examples=examples(40))
@given(st.lists(st.integers(0, 16), min_size=4, max_size=4), st.integers(0, 2**31))
def test_shift_divides_rounds_down_and_saturates(shifts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    v = rng.integers(-(2**31), 2**31, (3, 4, 5)).astype(np.int32)
    v[0] = rng.integers(-70000, 70000, (4, 5))
    scale = rng.uniform(1e-6, 1, 4).astype(np.float32)
    model = model_of(
        [node("AscendDequant", ["x", "p"], ["y"])],
        {"p": pack_dequant(scale, shifts)},
        inputs={"x": TensorProto.INT32},
        outputs={"y": F32},
    )
    n = np.array(shifts).reshape(4, 1)
    moved = np.clip(v.astype(np.int64) >> n, -32768, 32767) if any(shifts) else v
    want = moved.astype(np.float32) * scale.reshape(4, 1) * np.exp2(n).astype(np.float32)
    np.testing.assert_array_equal(run(model, x=v)[0], want)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_per_channel_is_axis_1_when_the_rank_is_known_at_run_time_only(rank: int) -> None:
    v = np.arange(2 * 3 * 4 ** (rank - 2), dtype=np.int32).reshape(2, 3, *[4] * (rank - 2))
    scale = np.float32([1, 10, 100])
    model = model_of(
        [node("AscendDequant", ["x", "p"], ["y"])],
        {"p": pack_dequant(scale)},
        inputs={"x": TensorProto.INT32},
        outputs={"y": F32},
    )
    np.testing.assert_array_equal(run(model, x=v)[0], v * scale.reshape(3, *[1] * (rank - 2)))


def test_anti_quant_of_an_int8_input() -> None:
    model = model_of(
        [node("AscendAntiQuant", ["x"], ["y"], scale=0.1, offset=-7.0)],
        inputs={"x": TensorProto.INT8},
        outputs={"y": F32},
    )
    x = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(run(model, x=x)[0], (x.astype(np.float32) + 7) * np.float32(0.1))


# Between an AscendQuant and its layer


def test_moves_between_quant_and_layer() -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [2, 3, 4, 6]), int8s(rng, [4, 3, 3, 3])
    offset = 31
    nodes = [
        quant("x", "q", offset=offset),
        node("Identity", ["q"], ["i"]),
        node("Transpose", ["i"], ["t"], perm=[0, 1, 3, 2]),
        node("Unsqueeze", ["t"], ["u"], axes=[0]),
        node("Squeeze", ["u"], ["s"], axes=[0]),
        node("Slice", ["s", "from", "to", "axes"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Concat", ["r", "c"], ["j"], axis=0),
        node("Pad", ["j", "pads"], ["d"]),
        node("Conv", ["d", "w"], ["y"]),
        node("Shape", ["d"], ["shape"]),
    ]
    constants = {
        "w": w,
        "from": np.array([1]),
        "to": np.array([6]),
        "axes": np.array([2]),
        "pads": np.array([0, 0, 2, 0, 0, 0, 1, 3]),
    }
    model = model_of(nodes, constants, outputs={"y": TensorProto.INT32, "shape": TensorProto.INT64})
    got, shape = run(model, x=q.astype(np.float32) - offset)
    x = q.astype(np.int64).swapaxes(2, 3)[:, :, 1:6] - offset
    x = np.concatenate([np.maximum(x, 0), x])
    np.testing.assert_array_equal(got, conv_oracle(x, w, (1, 1), (1, 1), (2, 0, 1, 3), 1))
    np.testing.assert_array_equal(shape, [4, 3, 8, 7])


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("value", [None, np.float32(0), np.int8(0)])
def test_pad_before_average_pool_pads_with_the_zero_point(opset: int, value: np.generic | None) -> None:
    q = np.arange(-8, 8).astype(np.int8).reshape(1, 1, 4, 4)
    constants: dict[str, np.ndarray] = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "p": pack_dequant(1.0)}
    if value is not None:
        constants["value"] = np.asarray(value)
    nodes = [
        quant("x", "q", offset=-50),
        node("Pad", ["q", "pads", *(["value"] if value is not None else [])], ["d"], mode="constant"),
        node("AveragePool", ["d"], ["a"], kernel_shape=[2, 2]),
        node("AscendDequant", ["a", "p"], ["y"]),
    ]
    got = run(model_of(nodes, constants, outputs={"y": F32}, opset=opset), x=q.astype(np.float32) + 50)[0]
    padded = np.pad(q.astype(np.int64) + 50, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 2), (2, 3))
    np.testing.assert_array_equal(got, windows.mean((4, 5)))


def test_split_and_flatten_and_reshape() -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [2, 4, 3]), int8s(rng, [6, 5])
    nodes = [
        quant("x", "q", offset=-9),
        node("Split", ["q"], ["left", "right"], axis=1),
        node("Flatten", ["left"], ["f"]),
        node("Reshape", ["right", "shape"], ["r"]),
        node("Gemm", ["f", "w"], ["y"]),
        node("Gemm", ["r", "w"], ["z"]),
    ]
    i32 = TensorProto.INT32
    model = model_of(nodes, {"w": w, "shape": np.array([2, 6])}, outputs={"y": i32, "z": i32})
    y, z = run(model, x=q.astype(np.float32) + 9)
    x = q.astype(np.int64) + 9
    np.testing.assert_array_equal(y, x[:, :2].reshape(2, 6) @ w.astype(np.int64))
    np.testing.assert_array_equal(z, x[:, 2:].reshape(2, 6) @ w.astype(np.int64))
    # one weight in the file, one in the lifted model
    assert sum(t.dims == [6, 5] for t in lifted(model).graph.initializer) == 1


def test_one_quant_feeds_several_layers_and_a_graph_output() -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w, v = int8s(rng, [1, 2, 5, 5]), int8s(rng, [3, 2, 3, 3]), int8s(rng, [4, 2, 1, 1])
    nodes = [
        quant("x", "q", offset=6),
        node("Conv", ["q", "w"], ["y"]),
        node("Conv", ["q", "v"], ["z"]),
    ]
    i32 = TensorProto.INT32
    model = model_of(nodes, {"w": w, "v": v}, outputs={"q": TensorProto.INT8, "y": i32, "z": i32})
    back, y, z = run(model, x=q.astype(np.float32) - 6)
    x = q.astype(np.int64) - 6
    np.testing.assert_array_equal(back, q)
    np.testing.assert_array_equal(y, conv_oracle(x, w, (1, 1), (1, 1), (0,) * 4, 1))
    np.testing.assert_array_equal(z, conv_oracle(x, v, (1, 1), (1, 1), (0,) * 4, 1))


@pytest.mark.parametrize("how", ["Constant", "Identity", "Transpose"])
def test_a_weight_behind_another_node(how: str) -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [3, 4]), int8s(rng, [4, 5])
    constants: dict[str, np.ndarray] = {}
    if how == "Constant":
        source = node("Constant", [], ["w"], value=numpy_helper.from_array(w))
    else:
        constants["w0"] = w.T.copy() if how == "Transpose" else w
        source = node(how, ["w0"], ["w"], **({"perm": [1, 0]} if how == "Transpose" else {}))
    nodes = [source, quant("x", "q"), node("MatMul", ["q", "w"], ["y"])]
    got = run(model_of(nodes, constants, outputs={"y": TensorProto.INT32}), x=q.astype(np.float32))[0]
    np.testing.assert_array_equal(got, q.astype(np.int64) @ w.astype(np.int64))


# The whole model


def test_subgraphs_see_the_quantized_value_of_the_outer_graph() -> None:
    rng = np.random.default_rng(RNG_SEED)
    q, w = int8s(rng, [3, 4]), int8s(rng, [4, 5])
    branches = {}
    for name, factor in (("then_branch", 1.0), ("else_branch", 2.0)):
        nodes = [node("MatMul", ["q", "w"], [f"{name}_v"]), node("AscendDequant", [f"{name}_v", f"{name}_p"], [name])]
        branches[name] = helper.make_graph(
            nodes,
            name,
            [],
            [helper.make_tensor_value_info(name, F32, None)],
            [numpy_helper.from_array(pack_dequant(factor), f"{name}_p")],
        )
    nodes = [quant("x", "q", offset=12), node("If", ["cond"], ["y"], **branches)]
    model = model_of(nodes, {"w": w}, outputs={"y": F32}, inputs={"x": F32, "cond": TensorProto.BOOL})
    want = (q.astype(np.int64) - 12) @ w.astype(np.int64)
    for cond, factor in ((True, 1), (False, 2)):
        got = run(model, x=q.astype(np.float32) - 12, cond=np.array(cond))[0]
        np.testing.assert_array_equal(got, want * factor)
    assert not has_ascend_operators(ir.from_proto(lifted(model)))


def test_a_loop_body_and_an_int8_tensor_carried_through_it() -> None:
    body = helper.make_graph(
        [
            node("Identity", ["c"], ["c_out"]),
            node("AscendAntiQuant", ["carried"], ["plain"], scale=1.0, offset=3.0),
            quant("plain", "q2", offset=3),
            node("MatMul", ["q2", "w"], ["v"]),
            node("AscendDequant", ["v", "p"], ["plain_out"]),
            quant("plain_out", "carried_out", offset=3),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.INT8, None),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.INT8, None),
        ],
    )
    nodes = [quant("x", "q", offset=3), node("Loop", ["count", "", "q"], ["y"], body=body)]
    twice = np.eye(4, dtype=np.int8) * 2
    constants = {"w": twice, "p": pack_dequant(1.0), "count": np.array(3)}
    x = np.array([[1, -2, 3, 4]], np.float32)
    got = run(model_of(nodes, constants, outputs={"y": TensorProto.INT8}), x=x)[0]
    np.testing.assert_array_equal(got, x * 8 + 3)


def test_a_function_with_ascend_operators_is_inlined() -> None:
    model = model_of(
        [helper.make_node("Half", ["x", "w", "p"], ["y"], domain="local")],
        {"w": np.eye(3, dtype=np.int8), "p": pack_dequant(0.5)},
        outputs={"y": F32},
    )
    nodes = [quant("a", "q"), node("MatMul", ["q", "b"], ["v"]), node("AscendDequant", ["v", "c"], ["d"])]
    imports = [helper.make_opsetid("", 11)]
    model.functions.append(helper.make_function("local", "Half", ["a", "b", "c"], ["d"], nodes, imports))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.ir_version = 8
    np.testing.assert_array_equal(run(model, x=np.float32([[2, 4, 6]]))[0], [[1, 2, 3]])


def test_names_types_and_shapes_of_inputs_and_outputs_stay_and_stale_types_do_not_matter() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 6, opset_import: ["" : 11]>
        deploy (float[N, 2, H, W] x) => (float[N, 3, A, B] y) <int8[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6},
            uint64[1] p = {1065353216}, float[1] q, float[7] v>
        {
            q = AscendQuant <scale = 1.0, offset = 3.0, dst_type = "INT8"> (x)
            v = Conv (q, w)
            y = AscendDequant <dtype = 0> (v, p)
        }
        """
    )
    result = lifted(model)
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert result.ir_version == 6
    x = np.random.default_rng(RNG_SEED).integers(-100, 100, (2, 2, 3, 3)).astype(np.float32)
    want = conv_oracle(x.astype(np.int64), np.arange(1, 7).reshape(3, 2, 1, 1), (1, 1), (1, 1), (0,) * 4, 1)
    np.testing.assert_array_equal(run(model, x=x)[0], want)


def test_initializers_listed_as_inputs_as_ir_version_3_wants_it() -> None:
    model = model_of(
        [quant("x", "q"), *TAIL],
        {"w": EYE, "p": pack_dequant(1.0)},
        inputs={"x": F32, "w": TensorProto.INT8, "p": TensorProto.UINT64},
        outputs={"y": F32},
    )
    with pytest.raises(ModelError, match="w must be an int8 constant"):  # since version 4 a caller may override it
        lifted(model)
    model.ir_version = 3
    result = lifted(model)
    assert result.ir_version == 4
    assert [value.name for value in result.graph.input] == ["x"]
    np.testing.assert_array_equal(run(model, x=np.float32([[3, 4]]))[0], [[3, 4]])


def test_lifting_twice_changes_nothing_and_a_float_model_is_left_alone() -> None:
    nodes = [quant("x", "q"), node("MatMul", ["q", "w"], ["y"])]
    once = lifted(model_of(nodes, {"w": np.eye(3, dtype=np.int8)}, outputs={"y": TensorProto.INT32}))
    assert lifted(once) == once
    plain = model_of([node("Relu", ["x"], ["y"])], outputs={"y": F32})
    assert lifted(plain) == ir.to_proto(ir.from_proto(plain))


# What cannot be run


EYE = np.eye(2, dtype=np.int8)
FLAG = {"w": EYE, "p": pack_dequant(1.0), "f": np.eye(2, dtype=np.float32)}
TAIL = [node("MatMul", ["q", "w"], ["v"]), node("AscendDequant", ["v", "p"], ["y"])]


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([quant("x", "q", dst_type="INT4"), *TAIL], FLAG, "the_q .*INT4"),
        ([quant("x", "q", dst_type="INT16", offset=40000.0), *TAIL], FLAG, "the_q .*offset 40000"),
        ([quant("x", "q", dst_type="INT16"), node("MatMul", ["q", "w"], ["y"])], FLAG, "the_y .*int16 tensor"),
        (
            [quant("x", "q", dst_type="INT16"), node("Relu", ["q"], ["r"]), node("Cast", ["r"], ["y"], to=1)],
            FLAG,
            "the_r .*int16 tensor",
        ),
        (
            [quant("x", "q", dst_type="INT16"), node("AscendAntiQuant", ["q"], ["y"], scale=1.0)],
            FLAG,
            "the_y .*int16 tensor",
        ),
        ([quant("x", "y", dst_type="INT16")], FLAG, "the_y .*leaves the model"),
        ([quant("x", "q", offset=200.0), *TAIL], FLAG, "the_q .*offset 200"),
        ([quant("x", "q", offset=0.5), *TAIL], FLAG, "the_q .*offset 0.5"),
        ([quant("x", "q", scale=0.0), *TAIL], FLAG, "the_q .*scale 0"),
        ([quant("x", "q"), *TAIL], FLAG | {"p": pack_dequant(1.0, 0, 3)}, "the_y .*weight offset 3"),
        ([quant("x", "q"), *TAIL], FLAG | {"p": np.float32([1])}, "the_y .*uint64"),
        ([quant("x", "q"), *TAIL], FLAG | {"w": np.eye(2, dtype=np.float32)}, "the_v .*float32"),
        ([quant("x", "q"), node("Gemm", ["q", "w"], ["y"], alpha=0.5)], FLAG, "the_y .*alpha is 0.5"),
        ([quant("x", "q"), node("Gemm", ["q", "w"], ["y"], transA=1)], FLAG, "the_y .*transA"),
        ([quant("x", "q"), node("Gemm", ["q", "w", "f"], ["y"])], FLAG, "the_y .*bias f must be an int32"),
        ([quant("x", "q"), node("Conv", ["q", "x"], ["y"])], FLAG, "the_y .*x must be an int8 constant"),
        ([quant("x", "q"), node("Softmax", ["q"], ["y"])], FLAG, "the_y .*Softmax.*int8"),
        ([quant("x", "q"), node("Add", ["x", "q"], ["y"])], FLAG, "the_y .*Add.*int8"),
        ([quant("x", "q"), node("Concat", ["q", "w"], ["y"], axis=0)], FLAG, "the_y .*same scale and offset"),
        (
            [quant("x", "q"), quant("x", "r", offset=1), node("Concat", ["q", "r"], ["y"], axis=0)],
            FLAG,
            "the_y .*same scale and offset",
        ),
        (
            [quant("x", "q"), node("Pad", ["q", "pads", "three"], ["y"])],
            {"pads": np.zeros(4, np.int64), "three": np.asarray(np.float32(3))},
            "the_y .*constant 0",
        ),
        ([quant("x", "q"), node("MatMul", ["x", "w"], ["y"])], FLAG, "the_y .*not the output of an AscendQuant"),
        ([node("AscendWeightQuant", ["x", "w"], ["y"])], FLAG, "the_y .*unknown"),
        ([quant("x", "q"), node("AscendDequant", ["q", "p"], ["y"])], FLAG, "the_y .*not the result of a layer"),
        ([node("AscendDequant", ["x", "p"], ["y"], dtype=9)], FLAG, "the_y .*dtype 9"),
        ([node("AscendDequant", ["x", "p"], ["y"], relu_flag=1)], FLAG, "the_y .*relu_flag"),
    ],
)
def test_what_has_no_integer_form_is_named(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        lifted(model_of(nodes, constants, outputs={"y": F32}))


def test_an_old_opset_is_refused() -> None:
    with pytest.raises(ModelError, match="opset 9"):
        lifted(model_of([quant("x", "q"), *TAIL], FLAG, outputs={"y": F32}, opset=9))
