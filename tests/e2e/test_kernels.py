"""What is quantized for ONNX Runtime runs in integer kernels, as the graph that the runtime optimises shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from qdq_graph import exact_session, kernels

import amct_onnx

# Conversions at the borders of the network, and layout.
BORDER = {"QuantizeLinear", "DequantizeLinear", "Transpose"}
W = "float[4,4,1,1] w = {" + ", ".join(f"{i % 5 - 2}" for i in range(16)) + "}"
CONV = "a = Conv(x, w)"

CASES = {
    "convolution": ("y = Conv(x, w)", {"QLinearConv": 1}),
    "depthwise": ("y = Conv<group = 4>(x, dw)", {"QLinearConv": 1}),
    "relu": (f"{CONV} b = Relu(a) y = Conv(b, w)", {"QLinearConv": 2}),
    "clip": (f"{CONV} b = Clip(a, zero, six) y = Conv(b, w)", {"QLinearConv": 2}),
    "clip off the grid": (f"{CONV} b = Clip(a, low, six) y = Conv(b, w)", {"QLinearConv": 2}),
    "add": (f"{CONV} b = Conv(a, w) y = Add(a, b)", {"QLinearConv": 2, "QLinearAdd": 1}),
    "add and relu": (f"{CONV} b = Conv(a, w) c = Add(a, b) y = Relu(c)", {"QLinearConv": 2, "QLinearAdd": 1}),
    "constant operand": (f"{CONV} y = Add(a, one)", {"QLinearConv": 1, "QLinearAdd": 1}),
    "mul": (f"{CONV} b = Sigmoid(a) y = Mul(a, b)", {"QLinearConv": 1, "QLinearSigmoid": 1, "QLinearMul": 1}),
    "leaky relu": (f"{CONV} y = LeakyRelu<alpha = 0.1>(a)", {"QLinearConv": 1, "QLinearLeakyRelu": 1}),
    "average pool": (
        f"{CONV} y = AveragePool<kernel_shape = [5, 5], strides = [3, 3]>(a)",
        {"QLinearConv": 1, "QLinearAveragePool": 1},
    ),
    "global average pool": (f"{CONV} y = GlobalAveragePool(a)", {"QLinearConv": 1, "QLinearGlobalAveragePool": 1}),
    "max pool": (
        f"{CONV} b = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a) y = Conv(b, w)",
        {"QLinearConv": 2, "NhwcMaxPool": 1},
    ),
    "concatenation": (
        f"{CONV} b = Conv(a, w) c = Concat<axis = 1>(a, b) y = Conv(c, w8)",
        {"QLinearConv": 3, "QLinearConcat": 1},
    ),
    "concatenation of unlike tensors": (
        f"{CONV} b = Relu(a) c = Conv(x, w) d = Concat<axis = 1>(b, c) y = Conv(d, w8)",
        {"QLinearConv": 3, "QLinearConcat": 1, "Clip": 1},
    ),
    "resize": (f"{CONV} y = Resize<mode = \"nearest\">(a, , scales)", {"QLinearConv": 1, "Resize": 1}),
    "pad": (f"{CONV} b = Pad(a, pads) y = Conv(b, w)", {"QLinearConv": 2, "Pad": 1}),
    "slice": (f"{CONV} b = Slice(a, starts, ends) y = Conv(b, w)", {"QLinearConv": 2, "Slice": 1}),
    "layout": (
        f"{CONV} b = Reshape(a, flat) c = Transpose<perm = [0, 2, 1]>(b) y = MatMul(c, m)",
        {"QLinearConv": 1, "Reshape": 1, "MatMulIntegerToFloat": 1},
    ),
    "depth to space": (f"{CONV} y = DepthToSpace<blocksize = 2>(a)", {"QLinearConv": 1, "DepthToSpace": 1}),
    "split": (f"{CONV} b, c = Split<axis = 1>(a) y = Add(b, c)", {"QLinearConv": 1, "Split": 1, "QLinearAdd": 1}),
    "gemm": (f"{CONV} b = Flatten(a) y = Gemm(b, g, bias)", {"QLinearConv": 1, "Flatten": 1, "QGemm": 1}),
    "gemm chain": ("a = Flatten(x) b = Gemm(a, g, bias) c = Relu(b) y = Gemm(c, g3)", {"Flatten": 1, "QGemm": 2}),
    "turned gemm": ("a = Flatten(x) y = Gemm<transB = 1, alpha = 2.0>(a, gt, bias)", {"Flatten": 1, "QGemm": 1}),
    "matmul": ("a = Flatten(x) y = MatMul(a, g)", {"Flatten": 1, "MatMulIntegerToFloat": 1}),
}  # fmt: skip
CONSTANTS = {
    "w8": "float[4,8,1,1] w8 = {" + ", ".join(f"{i % 5 - 2}" for i in range(32)) + "}",
    "dw": "float[4,1,1,1] dw = {1, -2, 3, 0.5}",
    "zero": "float zero = {0}",
    "six": "float six = {6}",
    "low": "float low = {-1}",
    "one": "float[1,4,1,1] one = {1, 2, 3, -4}",
    "scales": "float[4] scales = {1, 1, 2, 2}",
    "none": "float[0] none = {}",
    "pads": "int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}",
    "starts": "int64[4] starts = {0, 0, 1, 1}",
    "ends": "int64[4] ends = {9, 9, 9, 9}",
    "flat": "int64[3] flat = {0, 4, 64}",
    "m": "float[4,2] m = {1, 2, 3, -4, 5, -6, 7, 8}",
    "g": "float[256,3] g = {" + ", ".join(f"{i % 7 - 3}" for i in range(768)) + "}",
    "gt": "float[3,256] gt = {" + ", ".join(f"{i % 7 - 3}" for i in range(768)) + "}",
    "g3": "float[3,2] g3 = {1, 2, 3, -4, 5, -6}",
    "bias": "float[3] bias = {1, -20, 3}",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_it_runs_in_integers(case: str, opset: int, tmp_path: Path) -> None:
    body, expected = CASES[case]
    if case == "resize" and opset == 11:
        body = body.replace("(a, , scales)", "(a, none, scales)")  # its second input was not optional then
    used = [text for name, text in CONSTANTS.items() if f" {name})" in body or f", {name}," in body]
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,8,8] x) => (float[] y) '
        f"<{', '.join([W, *used])}> {{ {body} }}"
    )
    model.graph.outputs[0].shape = None
    x = np.random.default_rng(0).normal(size=(8, 4, 8, 8)).astype(np.float32)
    result = amct_onnx.quantize(model, x, algorithm="min_max", full_int8=True)
    saved = result.save(tmp_path / "m", inspect=False)
    found = kernels(saved.files[0], tmp_path)
    assert {name: count for name, count in found.items() if name not in BORDER} == expected
    assert found["QuantizeLinear"] == 1
    assert found["DequantizeLinear"] <= 1
    ir.save(model, tmp_path / "float.onnx")
    (exact,) = exact_session(tmp_path / "float.onnx").run(None, {"x": x})
    (got,) = exact_session(saved.files[0]).run(None, {"x": x})
    assert np.abs(got - exact).max() <= 0.05 * np.abs(exact).max()


LAYERS = {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mobilenetv2_tv1", (3, 224, 224)),
        ("squeezenet1.1", (3, 224, 224)),
        ("resnet20_cifar10", (3, 32, 32)),
        ("resnet56_cifar10", (3, 32, 32)),
        ("mobilenetv1_0.5_160", (3, 160, 160)),
        ("kws_dscnn_mlperftiny", (1, 49, 10)),
        ("super_resolution_10", (1, 224, 224)),
    ],
)
def test_on_request_no_layer_of_a_shared_network_is_in_float(
    test_data: Callable[..., Path], tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    data = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    result = amct_onnx.quantize(test_data("models", f"{name}.onnx"), data, full_int8=True)
    found = kernels(result.save(tmp_path / "m", inspect=False).files[0], tmp_path)
    assert not LAYERS & set(found)
    assert found["QuantizeLinear"] == 1
    assert found["DequantizeLinear"] <= 1


# The weights of `middle` hold 100 in one input channel, which is zero: int8 with one scale would leave little of 0.1.
_WIDE = ["100" if i % 4 == 0 else f"{(i % 5 - 2) / 10}" for i in range(16)]
FLOATS = {
    "convolution": "[front] a = Conv(x, f) [middle] b = Conv(a, v) [behind] y = Conv(b, w)",
    "relu": "[front] a = Conv(x, f) [middle] b = Conv(a, v) [r] c = Relu(b) [behind] y = Conv(c, w)",
    "behind a move": "[front] a = Conv(x, f) [turn] t = Transpose<perm = [0, 1, 3, 2]>(a) [middle] b = Conv(t, v) "
    "[behind] y = Conv(b, w)",
    "transposed": "[front] a = Conv(x, f) [middle] b = ConvTranspose(a, u) [behind] y = Conv(b, w)",
    "gemm": "[front] a = Conv(x, f) [pool] p = GlobalAveragePool(a) [flat] q = Flatten(p) [middle] b = Gemm(q, h) "
    "[behind] y = Gemm(b, k)",
}


@pytest.mark.parametrize("case", FLOATS)
def test_a_layer_that_is_skipped_keeps_its_float_weight(case: str, tmp_path: Path) -> None:
    """ONNX Runtime rounds the weights of float layers between quantized tensors to int8, unless something is there."""
    body = FLOATS[case]
    arrays = {
        "f": ("[4,4,1,1]", ["0" if i < 4 else f"{i % 5 - 2}" for i in range(16)]),
        "w": ("[4,4,1,1]", [f"{i % 5 - 2}" for i in range(16)]),
        "v": ("[4,4,1,1]", _WIDE),
        "u": ("[4,4,1,1]", ["100" if i < 4 else f"{(i % 5 - 2) / 10}" for i in range(16)]),
        "h": ("[4,4]", ["100" if i < 4 else f"{(i % 5 - 2) / 10}" for i in range(16)]),
        "k": ("[4,4]", [f"{i % 5 - 2}" for i in range(16)]),
    }
    used = [
        f"float{shape} {name} = {{{', '.join(values)}}}"
        for name, (shape, values) in arrays.items()
        if f", {name})" in body
    ]
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 13]> g (float[N,4,8,8] x) => (float[] y) <{", ".join(used)}> {{ {body} }}'
    )
    model.graph.outputs[0].shape = None
    x = np.random.default_rng(0).normal(size=(8, 4, 8, 8)).astype(np.float32)
    result = amct_onnx.quantize(model, x, skip_layers=["middle"], reduce_range=True)
    file = result.save(tmp_path / "m", inspect=False).files[0]
    ir.save(model, tmp_path / "float.onnx")
    (exact,) = exact_session(tmp_path / "float.onnx").run(None, {"x": x})
    for session in (exact_session(file), ort.InferenceSession(file)):
        (got,) = session.run(None, {"x": x})
        assert np.abs(got - exact).max() <= 0.05 * np.abs(exact).max()
