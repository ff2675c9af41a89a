"""`convert_qat_model`: Q/DQ models as exporters write them, against ONNX Runtime running the original.

Scales are powers of two where a test wants equal bits: nothing in the original rounds then, and x / s is x * (1 / s).
"""

from __future__ import annotations

import json
import logging
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import Flow, build, images, node_named, normal, sqnr, two_convs
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from qdq import Converted, image, initializer, int8, operators
from refusal import refused

import amct_onnx as amct
from amct_onnx.amct.convert_qat import read_qat_model
from amct_onnx.errors import FileMissingError, ModelError, ModelFileError, OutputError
from amct_onnx.files.record import check_record
from amct_onnx.plan.ascend_layers import graph_facts

F, I8, U8 = np.float32, np.int8, np.uint8
SX, SW, SY = F(2**-5), F(2**-7), F(2**-3)
SIGNATURE = "g (float[N,3,6,6] x) => (float[N,4,6,6] y)"
BASE = {"sx": SX, "zx": I8(-9), "sw": SW, "w0": I8(0), "wq": int8(1, 4, 3, 3, 3), "b": (np.arange(4) / 8).astype(F)}
PAIR = "[q] xi = QuantizeLinear (x, sx, zx) [d] xd = DequantizeLinear (xi, sx, zx)"
CONV = "[c] y = Conv <pads=[1,1,1,1]> (xd, wd, b)"


def model(body: str, signature: str = SIGNATURE, *, opset: int = 17, **more: Any) -> onnx.ModelProto:
    """Initializers are those of `BASE` and `more` that the text mentions."""
    arrays = {k: v for k, v in {**BASE, **more}.items() if f"{k}," in body or f"{k})" in body or f" {k} " in body}
    return build(f"{signature} {{{body}}}", opset=opset, **arrays)


# One layer in the ways that exporters write it


def per_channel(count: int) -> np.ndarray:
    return (2.0 ** -np.arange(5, 5 + count)).astype(F)


ONE_LAYER: dict[str, tuple[str, dict[str, Any]]] = {
    "folded int8": (f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV}", {}),
    "unfolded float": (
        f"{PAIR} wi = QuantizeLinear (wf, sw, w0) wd = DequantizeLinear (wi, sw, w0) {CONV}",
        {"wf": normal(2, 4, 3, 3, 3, scale=0.5)},
    ),
    "per channel": (
        f"{PAIR} wi = QuantizeLinear <axis=0> (wf, sc, zc) wd = DequantizeLinear <axis=0> (wi, sc, zc) {CONV}",
        {"wf": normal(3, 4, 3, 3, 3, scale=0.5), "sc": per_channel(4), "zc": np.zeros(4, I8)},
    ),
    "uint8 activation": (
        f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV}",
        {"zx": U8(119)},
    ),
    "no zero point is uint8 0": (
        f"""[q] xi = QuantizeLinear (x, sx) [d] xd = DequantizeLinear (xi, sx)
        wd = DequantizeLinear (wq, sw) {CONV}""",
        {},
    ),
    "uint8 weight around 128": (
        f"{PAIR} wd = DequantizeLinear (wu, sw, w1) {CONV}",
        {"wu": (int8(4, 4, 3, 3, 3).astype(np.int16) + 128).astype(U8), "w1": U8(128)},
    ),
    "asymmetric weight that fits int8": (
        f"{PAIR} wd = DequantizeLinear (wu, sw, w1) {CONV}",
        {"wu": int8(5, 4, 3, 3, 3, low=0, high=100).astype(U8), "w1": U8(31)},
    ),
    "narrow range": (
        f"""{PAIR} wi = QuantizeLinear (wf, sw, w0) wn = Clip (wi, lo, hi) wd = DequantizeLinear (wn, sw, w0) {CONV}""",
        {"wf": normal(6, 4, 3, 3, 3, scale=2.0), "lo": I8(-127), "hi": I8(127)},
    ),
    "narrow activation": (
        f"""[q] xi = QuantizeLinear (x, sx, zx) xn = Clip (xi, lo, hi) [d] xd = DequantizeLinear (xn, sx, zx)
        wd = DequantizeLinear (wq, sw, w0) {CONV}""",
        {"lo": I8(-20), "hi": I8(17)},
    ),
    "everything in Constant nodes": (
        f"""s1 = Constant <value_float=0.03125> () z1 = Constant <value=int8 {{-9}}> ()
        [q] xi = QuantizeLinear (x, s1, z1)
        s2 = Constant <value_float=0.03125> () z2 = Constant <value=int8 {{-9}}> ()
        [d] xd = DequantizeLinear (xi, s2, z2)
        s3 = Constant <value_float=0.0078125> () z3 = Constant <value=int8 {{0}}> ()
        wd = DequantizeLinear (wq, s3, z3) {CONV}""",
        {},
    ),
    "PyTorch eager: idle Cast, zero point of ConstantOfShape": (
        """[q] xi = QuantizeLinear (x, sx, zx) xc = Cast <to=3> (xi) [d] xd = DequantizeLinear (xc, sx, zx)
        wd = DequantizeLinear <axis=0> (wq, sc, zc)
        four = Constant <value_ints=[4]> () zeros = ConstantOfShape <value=int64[1] {0}> (four)
        zi = Cast <to=6> (zeros) bd = DequantizeLinear <axis=0> (bq, sb, zi)
        [c] y = Conv <pads=[1,1,1,1]> (xd, wd, bd)""",
        {
            "sc": per_channel(4),
            "zc": np.zeros(4, I8),
            "bq": np.array([5, -70000, 0, 123456], np.int32),
            "sb": SX * per_channel(4),
        },
    ),
    "weight behind Transpose": (
        f"{PAIR} wt = DequantizeLinear <axis=3> (wh, sc, zc) wd = Transpose <perm=[3,2,0,1]> (wt) {CONV}",
        {"wh": int8(7, 3, 3, 3, 4), "sc": per_channel(4), "zc": np.zeros(4, I8)},
    ),
    "weight behind Reshape and Identity": (
        f"{PAIR} wt = DequantizeLinear <axis=0> (wm, sc, zc) wr = Reshape (wt, sh) wd = Identity (wr) {CONV}",
        {"wm": int8(8, 4, 27), "sc": per_channel(4), "zc": np.zeros(4, I8), "sh": np.array([0, 3, 3, 3], np.int64)},
    ),
    "integers transposed before the DequantizeLinear": (
        f"{PAIR} wt = Transpose <perm=[3,2,0,1]> (wh) wd = DequantizeLinear (wt, sw, w0) {CONV}",
        {"wh": int8(9, 3, 3, 3, 4)},
    ),
    "activation moved by Transpose and padded": (
        """p = Transpose <perm=[0,2,3,1]> (x) [q] xi = QuantizeLinear (p, sx, zx)
        [d] xe = DequantizeLinear (xi, sx, zx) xt = Transpose <perm=[0,3,1,2]> (xe) xd = Pad (xt, pads)
        wd = DequantizeLinear (wq, sw, w0) [c] y = Conv (xd, wd, b)""",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
    ),
    "two pairs of one tensor": (
        f"""{PAIR} xj = QuantizeLinear (xd, sx, zx) xe = DequantizeLinear (xj, sx, zx)
        wd = DequantizeLinear (wq, sw, w0) [c] y = Conv <pads=[1,1,1,1]> (xe, wd, b)""",
        {},
    ),
}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_one_layer_keeps_its_integers_and_its_results(tmp_path: Path, name: str) -> None:
    body, arrays = ONE_LAYER[name]
    converted = Converted.of(model(body, **arrays), tmp_path)
    assert converted.kept == ()
    left = Counter(operators(converted.deploy))
    assert left["AscendQuant"] == left["AscendDequant"] == left["Conv"] == 1
    assert not left.keys() & {"QuantizeLinear", "DequantizeLinear", "AscendAntiQuant", "Cast", "ConstantOfShape"}
    assert not Counter(operators(converted.fake_quant)).keys() & {"QuantizeLinear", "DequantizeLinear"}
    converted.check_equal(image())
    converted.check_equal({"x": 20 * image(1)["x"]})  # far beyond the range: saturation


def test_microsofts_own_operators(tmp_path: Path) -> None:
    proto = model(f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV}", opset=11)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for node in proto.graph.node:
        node.domain = "com.microsoft" if "Linear" in node.op_type else ""
    converted = Converted.of(proto, tmp_path)
    assert "AscendQuant" in operators(converted.deploy)
    assert not any("Linear" in op for op in operators(converted.fake_quant))
    converted.check_equal(image())


def test_the_integers_of_the_weight_are_those_of_the_file(tmp_path: Path) -> None:
    scales = np.abs(normal(11, 4, scale=0.01)) + F(1e-5)
    body = f"{PAIR} wd = DequantizeLinear <axis=0> (wq, sc, zc) {CONV}"
    converted = Converted.of(model(body, sc=scales, zc=np.zeros(4, I8)), tmp_path)
    weight = node_named(converted.deploy, "c").input[1]
    np.testing.assert_array_equal(initializer(converted.deploy, weight), BASE["wq"])
    assert initializer(converted.deploy, weight).dtype == I8


@pytest.mark.parametrize("exponent", [-36, -30, -12, -3, 0, 5, 20, 35])
def test_every_int8_survives_with_any_scale(tmp_path: Path, exponent: int) -> None:
    """The float weight of the model in between is q * scale in float32; dividing gives q again, -128 included."""
    scale = F(np.random.default_rng(exponent + 50).uniform(1, 9) * 10.0**exponent)
    every = np.arange(-128, 128, dtype=np.int16).astype(I8).reshape(256, 1, 1, 1)
    body = "[q] xi = QuantizeLinear (x, sx, zx) [d] xd = DequantizeLinear (xi, sx, zx)" + (
        "wd = DequantizeLinear (wq, sw, w0) [c] y = Conv (xd, wd)"
    )
    proto = model(body, "g (float[N,1,6,6] x) => (float[N,256,6,6] y)", wq=every, sw=scale)
    converted = Converted.of(proto, tmp_path)
    weight = node_named(converted.deploy, "c").input[1]
    np.testing.assert_array_equal(initializer(converted.deploy, weight), every)


def test_a_stored_int32_bias_is_kept_where_float32_cannot_hold_it(tmp_path: Path) -> None:
    stored = np.array([16777217, -33554433, 100000007, 3], np.int32)
    body = f"{PAIR} wd = DequantizeLinear (wq, sw, w0) bd = DequantizeLinear (bq, sb, z0) " + CONV.replace("b)", "bd)")
    scale = F(0.0123)
    proto = model(body, sx=scale, bq=stored, sb=scale * SW, z0=np.int32(0))
    converted = Converted.of(proto, tmp_path)
    np.testing.assert_array_equal(initializer(converted.deploy, node_named(converted.deploy, "c").input[2]), stored)


def test_a_bias_on_another_grid_is_rounded_to_that_of_the_layer(tmp_path: Path) -> None:
    body = f"{PAIR} wd = DequantizeLinear (wq, sw, w0) bd = DequantizeLinear (bq, sb, w0) " + CONV.replace("b)", "bd)")
    stored = np.array([5, -7, 0, 127], I8)
    converted = Converted.of(model(body, bq=stored, sb=F(2**-4)), tmp_path)
    wanted = (stored * (F(2**-4) / (SX * SW))).astype(np.int32)
    np.testing.assert_array_equal(initializer(converted.deploy, node_named(converted.deploy, "c").input[2]), wanted)
    converted.check_equal(image())


# Other layers

LAYERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Gemm, a scale per column, transB": (
        "g (float[N,6] x) => (float[N,4] y)",
        f"{PAIR} wd = DequantizeLinear <axis=0> (wq, sc, zc) [c] y = Gemm <transB=1> (xd, wd, b)",
        {"wq": int8(1, 4, 6), "sc": per_channel(4), "zc": np.zeros(4, I8)},
    ),
    "Gemm, int32 bias, a scale per column": (
        "g (float[N,6] x) => (float[N,4] y)",
        f"""{PAIR} wd = DequantizeLinear <axis=1> (wq, sc, zc) bd = DequantizeLinear <axis=0> (bq, sb, zi)
        [c] y = Gemm (xd, wd, bd)""",
        {
            "wq": int8(2, 6, 4),
            "sc": per_channel(4),
            "zc": np.zeros(4, I8),
            "bq": np.array([9, -8, 7, 66], np.int32),
            "sb": SX * per_channel(4),
            "zi": np.zeros(4, np.int32),
        },
    ),
    "Gemm with alpha and transA": (
        "g (float[6,N] x) => (float[N,4] y)",
        f"{PAIR} wd = DequantizeLinear (wq, sw, w0) [c] y = Gemm <transA=1, alpha=0.5> (xd, wd, b)",
        {"wq": int8(3, 6, 4)},
    ),
    "MatMul per tensor": (
        "g (float[N,5,6] x) => (float[N,5,4] y)",
        f"{PAIR} wd = DequantizeLinear (wq, sw, w0) [c] m = MatMul (xd, wd) y = Add (m, b)",
        {"wq": int8(4, 6, 4)},
    ),
    "MatMul, a scale per column": (
        "g (float[N,5,6] x) => (float[N,5,4] y)",
        f"{PAIR} wd = DequantizeLinear <axis=1> (wq, sc, zc) [c] y = MatMul (xd, wd)",
        {"wq": int8(5, 6, 4), "sc": per_channel(4), "zc": np.zeros(4, I8)},
    ),
    "MatMul of two activations, one of them turned": (
        "g (float[N,4,6] x) => (float[N,4,4] y)",
        """n = Neg (x) [q] xi = QuantizeLinear (x, sx, w0) [d] xd = DequantizeLinear (xi, sx, w0)
        [q2] ni = QuantizeLinear (n, s2, w0) [d2] nd = DequantizeLinear (ni, s2, w0)
        nt = Transpose <perm=[0,2,1]> (nd) [c] y = MatMul (xd, nt)""",
        {"s2": F(2**-4)},
    ),
    "ConvTranspose in groups": (
        "g (float[N,4,5,5] x) => (float[N,6,10,10] y)",
        f"""{PAIR} wd = DequantizeLinear <axis=1> (wq, sc, zc)
        [c] y = ConvTranspose <group=2, strides=[2,2], kernel_shape=[2,2]> (xd, wd)""",
        {"wq": int8(6, 4, 3, 2, 2), "sc": per_channel(3), "zc": np.zeros(3, I8)},
    ),
    "depthwise Conv": (
        "g (float[N,4,5,5] x) => (float[N,4,5,5] y)",
        f"""{PAIR} wd = DequantizeLinear <axis=0> (wq, sc, zc)
        [c] y = Conv <group=4, pads=[1,1,1,1], kernel_shape=[3,3]> (xd, wd, b)""",
        {"wq": int8(7, 4, 1, 3, 3), "sc": per_channel(4), "zc": np.zeros(4, I8)},
    ),
    "AveragePool": (
        "g (float[N,3,6,6] x) => (float[N,3,3,3] y)",
        f"{PAIR} [c] y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (xd)",
        {},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(tmp_path: Path, name: str) -> None:
    signature, body, arrays = LAYERS[name]
    converted = Converted.of(model(body, signature, **arrays), tmp_path)
    assert converted.kept == ()
    assert "AscendDequant" in operators(converted.deploy)
    assert not any("Linear" in op for op in operators(converted.deploy))
    dims = onnx.load(converted.original).graph.input[0].type.tensor_type.shape.dim
    converted.check_equal({"x": normal(9, *(d.dim_value or 3 for d in dims), scale=2.0)})
    record = converted.records()["c"]
    assert len(record.scale_w) in (1, 4, 6)
    assert len(record.scale_w) == 1 or "Conv" in body  # AMCT has one scale for Gemm and MatMul


# Quantized tensors that no layer reads

AFTER = "[q2] yi = QuantizeLinear (a, sy, zy) [d2] yd = DequantizeLinear (yi, sy, zy)"
INNER = f"{PAIR} wd = DequantizeLinear (wq, sw, w0) [c] a = Conv <pads=[1,1,1,1]> (xd, wd, b)"
MORE: dict[str, Any] = {"sy": SY, "zy": I8(3), "vq": int8(20, 4, 4, 1, 1), "sv": F(2**-6), "k": normal(5, 4, 1, 1)}
TENSORS: dict[str, tuple[str, int, int]] = {
    # body, AscendAntiQuant, AscendQuant
    "at the output": (f"{INNER} {AFTER} y = Identity (yd)", 1, 2),
    "the output itself": (f"{INNER} {AFTER.replace('yd =', 'y =')}", 1, 2),
    "before Relu, then another layer": (
        f"""{INNER} {AFTER} r = Relu (yd) [q3] ri = QuantizeLinear (r, sw, zx) [d3] rd = DequantizeLinear (ri, sw, zx)
        vd = DequantizeLinear (vq, sv, w0) [e] y = Conv (rd, vd)""",
        1,
        3,
    ),
    "Relu between, same grid": (
        f"{INNER} {AFTER} r = Relu (yd) vd = DequantizeLinear (vq, sv, w0) [e] y = Conv (r, vd)",
        0,
        2,
    ),
    "layer and Add read one pair": (
        f"{INNER} {AFTER} vd = DequantizeLinear (vq, sv, w0) [e] f = Conv (yd, vd) [s] y = Add (f, yd)",
        1,
        2,
    ),
    "one pair for each reader": (
        f"""{INNER} {AFTER} [q3] zi = QuantizeLinear (a, sy, zy) [d3] zd = DequantizeLinear (zi, sy, zy)
        vd = DequantizeLinear (vq, sv, w0) [e] f = Conv (yd, vd) [s] y = Add (f, zd)""",
        1,
        2,
    ),
    "a DequantizeLinear for each reader": (
        f"""{INNER} {AFTER} [d3] zd = DequantizeLinear (yi, sy, zy) [d4] ye = DequantizeLinear (yi, sy, zy)
        r = Sigmoid (yd) t = Tanh (zd) m = Mul (r, t) y = Add (m, ye)""",
        1,
        2,
    ),
    "Concat of two grids": (
        f"""{INNER} {AFTER} [q3] zi = QuantizeLinear (a, sx, zy) [d3] zd = DequantizeLinear (zi, sx, zy)
        j = Concat <axis=1> (yd, zd) y = Slice (j, from, to, ax)""",
        2,
        3,
    ),
    "global pool": (f"{INNER} {AFTER} g = GlobalAveragePool (yd) y = Mul (yd, g)", 1, 2),
    "quantized constant operand": (
        f"{INNER} {AFTER} kd = DequantizeLinear (kq, sv, w0) y = Mul (yd, kd)",
        1,
        2,
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_stay_quantized_unless_layers_do_it(tmp_path: Path, name: str) -> None:
    body, restored, quantized = TENSORS[name]
    index = {key: np.array([value], np.int64) for key, value in {"from": 2, "to": 6, "ax": 1}.items()}
    converted = Converted.of(model(body, **MORE, **index, kq=int8(21, 4, 1, 1)), tmp_path)
    assert converted.kept == ()
    counts = Counter(operators(converted.deploy))
    assert (counts["AscendAntiQuant"], counts["AscendQuant"]) == (restored, quantized)
    assert not any("Linear" in op for op in operators(converted.deploy))
    assert [o.name for o in onnx.load(converted.deploy).graph.output] == ["y"]
    converted.check_equal(image(3))


def test_a_tensor_that_is_an_output_and_feeds_a_layer(tmp_path: Path) -> None:
    body = f"{INNER} {AFTER} vd = DequantizeLinear (vq, sv, w0) [e] y = Conv (yd, vd)"
    proto = model(body, **MORE)
    proto.graph.output.append(helper.make_tensor_value_info("yd", TensorProto.FLOAT, ["N", 4, 6, 6]))
    converted = Converted.of(proto, tmp_path)
    assert [o.name for o in onnx.load(converted.deploy).graph.output] == ["y", "yd"]
    assert operators(converted.deploy).count("AscendAntiQuant") == 1
    converted.check_equal(image(4))


def test_outputs_of_one_pair_keep_their_names(tmp_path: Path) -> None:
    proto = model(f"{INNER} {AFTER.replace('yd =', 'y =')} [d3] z = DequantizeLinear (yi, sy, zy)", **MORE)
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4, 6, 6]))
    converted = Converted.of(proto, tmp_path)
    assert [o.name for o in onnx.load(converted.deploy).graph.output] == ["y", "z"]
    converted.check_equal(image(4))


def test_an_int8_output_is_an_ascend_quant(tmp_path: Path) -> None:
    body = f"{INNER} [q2] y = QuantizeLinear (a, sy, zy)"
    converted = Converted.of(model(body, SIGNATURE.replace("float[N,4", "int8[N,4"), **MORE), tmp_path)
    last = onnx.load(converted.deploy).graph.node[-1]
    assert (last.op_type, list(last.output), last.name) == ("AscendQuant", ["y"], "q2.quant")
    converted.check_equal(image(5))
    assert converted.kept == ()


def test_a_uint8_output_stays_as_it_is_with_a_reason(tmp_path: Path) -> None:
    body = f"{INNER} [q2] y = QuantizeLinear (a, sy, zu)"
    converted = Converted.of(model(body, SIGNATURE.replace("float[N,4", "uint8[N,4"), **MORE, zu=U8(7)), tmp_path)
    assert "uint8 output" in converted.reasons["q2"]
    assert operators(converted.deploy).count("QuantizeLinear") == 1
    converted.check_equal(image(6))


# What stays in float

FLOAT_LAYER: dict[str, tuple[str, dict[str, Any], dict[str, str], bool]] = {
    # body, arrays, expected reasons, whether a Q or DQ is left
    "weight only": (
        "wd = DequantizeLinear (wq, sw, w0) [c] y = Conv <pads=[1,1,1,1]> (x, wd, b)",
        {},
        {"c": "its activation is not quantized"},
        False,
    ),
    "activation only": (
        f"{PAIR} [c] y = Conv <pads=[1,1,1,1]> (xd, wf, b)",
        {"wf": normal(2, 4, 3, 3, 3)},
        {"c": "its weight is not quantized"},
        False,
    ),
    "asymmetric weight": (
        f"{PAIR} wd = DequantizeLinear (wq, sw, w5) {CONV}",
        {"w5": I8(5)},
        {"c": "asymmetric"},
        False,
    ),
    "per-channel activation": (
        f"""[q] xi = QuantizeLinear <axis=1> (x, s3, z3) [d] xd = DequantizeLinear <axis=1> (xi, s3, z3)
        wd = DequantizeLinear (wq, sw, w0) {CONV}""",
        {"s3": per_channel(3), "z3": np.zeros(3, I8)},
        {"c": "its activation is quantized per channel", "d": "per channel"},
        True,
    ),
    "scales along input channels": (
        f"{PAIR} wd = DequantizeLinear <axis=1> (wq, s3, z3) {CONV}",
        {"s3": per_channel(3), "z3": np.zeros(3, I8)},
        {"c": "along another axis"},
        False,
    ),
    "MatMul of two activations with zero points": (
        f"{PAIR} [c] y = MatMul (xd, xd)",
        {},
        {"c": "symmetric ones only"},
        False,
    ),
    "MatMul of a quantized and a float activation": (
        "[q] xi = QuantizeLinear (x, sx, w0) [d] xd = DequantizeLinear (xi, sx, w0) [c] y = MatMul (xd, x)",
        {},
        {"c": "its second operand is not quantized"},
        False,
    ),
    "scale computed at run time": (
        f"""t = ReduceMax <keepdims=0> (x) sr = Mul (t, sw)
        [q] xi = QuantizeLinear (x, sr, zx) [d] xd = DequantizeLinear (xi, sr, zx)
        wd = DequantizeLinear (wq, sw, w0) {CONV}""",
        {},
        {"c": "the scale of its quantization is computed at run time", "d": "computed at run time"},
        True,
    ),
    "dynamic quantization": (
        f"""xi, sr, zr = DynamicQuantizeLinear (x) [d] xd = DequantizeLinear (xi, sr, zr)
        wd = DequantizeLinear (wq, sw, w0) {CONV}""",
        {},
        {"c": "computed at run time", "d": "do not come from a QuantizeLinear"},
        True,
    ),
    "bias beyond int32": (
        f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV}",
        {"b": np.array([0, 1e9, 0, 0], F)},
        {"c": "range of int32"},
        False,
    ),
    "scales that vanish": (
        f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV}",
        {"sw": F(1e-44)},
        {"c": "product of its scales"},
        False,
    ),
    "weight computed at run time": (
        f"{PAIR} wm = Mul (wf, one) wi = QuantizeLinear (wm, sw, w0) [dw] wd = DequantizeLinear (wi, sw, w0) {CONV}",
        {"wf": normal(2, 4, 3, 3, 3), "one": F(1)},
        {"c": "computed at run time"},
        False,
    ),
}
SECOND = "[q9] pi = QuantizeLinear (x, sx, zx) [d9] pd = DequantizeLinear (pi, sx, zx) n = Neg (pd)"


@pytest.mark.parametrize("name", FLOAT_LAYER)
def test_what_cannot_be_converted_computes_what_it_did(tmp_path: Path, name: str) -> None:
    body, arrays, reasons, left = FLOAT_LAYER[name]
    proto = model(f"{body} {SECOND}", **arrays)
    proto.graph.output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, ["N", 3, 6, 6]))
    converted = Converted.of(proto, tmp_path)
    assert converted.reasons.keys() == reasons.keys()
    for node, part in reasons.items():
        assert part in converted.reasons[node]
    assert "AscendDequant" not in operators(converted.deploy)
    assert any("Linear" in op for op in operators(converted.deploy)) == left
    assert "AscendAntiQuant" in operators(converted.deploy)
    feeds = image(7)
    # A float layer adds up in an order of its own when its neighbours change.
    for expected, *others in zip(
        converted.run_original(feeds), converted.run_fake_quant(feeds), converted.run_deploy(feeds), strict=True
    ):
        for got in others:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_a_mismatched_pair_stays_and_the_layer_behind_it_is_converted(tmp_path: Path) -> None:
    """The layer reads the grid of the DequantizeLinear, whatever made its integers."""
    body = f"{PAIR.replace('(xi, sx, zx)', '(xi, sy, zx)')} wd = DequantizeLinear (wq, sw, w0) {CONV}"
    converted = Converted.of(model(body, sy=SY), tmp_path)
    assert "differ in scale" in converted.reasons["d"]
    assert "AscendDequant" in operators(converted.deploy)
    converted.check_equal(image(8))


def test_sixteen_bit_activations_stay(tmp_path: Path) -> None:
    body = f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV} {SECOND.replace('zx', 'z8')}"
    proto = model(body, opset=21, zx=np.uint16(30000), z8=I8(-9))
    proto.graph.output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, ["N", 3, 6, 6]))
    converted = Converted.of(proto, tmp_path)
    assert "uint16" in converted.reasons["c"]
    assert "uint16" in converted.reasons["d"]


def test_a_layer_without_quantization_stays_float_and_is_no_failure(tmp_path: Path) -> None:
    body = f"{INNER} n = BatchNormalization (a, k1, k1, k1, k1) [e] y = Conv (n, v)"
    converted = Converted.of(model(body, v=normal(3, 4, 4, 1, 1), k1=np.ones(4, F)), tmp_path)
    assert converted.kept == ()
    assert Counter(operators(converted.deploy)) == Counter(
        ["AscendQuant", "Conv", "AscendDequant", "BatchNormalization", "Conv"]
    )
    assert list(converted.records()) == ["c"]


def test_quantization_in_a_subgraph_stays(tmp_path: Path) -> None:
    body = f"""{INNER} m = ReduceMax <keepdims=0> (x) c1 = Greater (m, sw)
    y = If (c1) <
        then_branch = t () => (float[N,4,6,6] t1) {{ [qs] ti = QuantizeLinear (a, sy, zy)
            [ds] t1 = DequantizeLinear (ti, sy, zy) }},
        else_branch = e () => (float[N,4,6,6] e1) {{ e1 = Identity (a) }}
    >"""
    converted = Converted.of(model(body, **MORE), tmp_path)
    assert converted.reasons == {"qs": "it is inside a subgraph", "ds": "it is inside a subgraph"}
    converted.check_equal(image(9))


def test_a_model_function_is_looked_into(tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    {SIGNATURE} {{ xd = local.fake (x, sx, zx) wd = DequantizeLinear (wq, sw, w0) {CONV} }}
    <domain: "local", opset_import: ["" : 17]> fake (v, s, z) => (o)
    {{ i = QuantizeLinear (v, s, z) o = DequantizeLinear (i, s, z) }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in BASE.items())
    converted = Converted.of(proto, tmp_path)
    assert converted.kept == ()
    assert "AscendDequant" in operators(converted.deploy)
    converted.check_equal(image(10))


# The files and the log


@pytest.fixture
def qat(tmp_path: Path) -> Path:
    onnx.save(model(f"{INNER} {AFTER} [s] y = Add (yd, a)", **MORE), tmp_path / "qat.onnx")
    return tmp_path / "qat.onnx"


def test_files_names_and_modes(qat: Path) -> None:
    folder = qat.parent / "new" / "folder"
    assert amct.convert_qat_model(str(qat), str(folder / "m")) is None
    assert {p.name for p in folder.iterdir()} == {"m_deploy_model.onnx", "m_fake_quant_model.onnx", "m_quant.json"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    amct.convert_qat_model(str(qat), f"{folder}/plain/", str(folder / "r.txt"))
    assert {p.name for p in (folder / "plain").iterdir()} == {
        "deploy_model.onnx",
        "fake_quant_model.onnx",
        "quant.json",
    }
    assert (folder / "r.txt").stat().st_size > 0
    assert stat.S_IMODE((folder / "r.txt").stat().st_mode) == 0o640


def test_the_record_fits_the_model(qat: Path) -> None:
    converted = Converted.file(qat, qat.parent)
    records = converted.records()
    assert list(records) == ["c", "s:0"]
    assert (records["c"].scale_d, records["c"].offset_d, records["c"].scale_w) == (SX, -9, (SW,))
    assert (records["c"].offset_w, records["c"].act_type, records["c"].wts_type) == ((0,), "INT8", "INT8")
    assert (records["s:0"].scale_d, records["s:0"].offset_d, records["s:0"].is_tensor_quantize) == (SY, 3, True)
    quantized, _ = read_qat_model(str(qat))
    check_record(records, graph_facts(quantized.model), path="record.txt")


def test_two_runs_write_the_same_bytes(qat: Path) -> None:
    first, second = (Converted.file(qat, qat.parent / name) for name in ("a", "b"))
    for a, b in zip(sorted(first.folder.iterdir()), sorted(second.folder.iterdir()), strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_the_fusion_file_names_original_nodes(qat: Path) -> None:
    converted = Converted.file(qat, qat.parent)
    ops = json.loads((converted.folder / "model_quant.json").read_text())["graph"][0]["op"]
    stands_for = {op["name"]: op["attr"][0]["value"]["list"]["s"] for op in ops if "attr" in op}
    assert stands_for == {
        **{name: ["c"] for name in ("c.quant", "c", "c.dequant")},
        **{name: ["q2", "d2"] for name in ("d2.quant", "d2.anti_quant")},
    }
    made = {op["name"]: op["output_desc"][0]["attr"][3]["value"]["s"] for op in ops if "output_desc" in op}
    assert made == {"c.dequant": "c", "d2.anti_quant": "d2"}


def test_log_lines(qat: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = str(qat.parent / "m")
    amct.convert_qat_model(str(qat), prefix, str(qat.parent / "r"))
    texts = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
    saved = [f"The model file is saved in {prefix}_{kind}_model.onnx" for kind in ("deploy", "fake_quant")]
    assert texts == ["Converted 1 layers, 1 other tensors and 0 int8 outputs of the Q/DQ model.", *saved]
    caplog.clear()
    amct.convert_qat_model(str(qat), prefix, str(qat.parent / "r"))
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warned == [
        f"The file already exists at {path} and it will be overwritten by AMCT"
        for path in (qat.parent / "r", f"{prefix}_deploy_model.onnx", f"{prefix}_fake_quant_model.onnx")
    ]


def test_the_log_does_not_grow_with_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fifty layers that cannot be converted are one line above DEBUG, and fifty at it."""
    layers = "".join(
        f"wd{i} = DequantizeLinear (wq, sw, w5) [c{i}] a{i} = Conv <pads=[1,1,1,1]> (xd, wd{i}, b) " for i in range(50)
    )
    body = f"{PAIR} {layers} y = Sum ({', '.join(f'a{i}' for i in range(50))})"
    onnx.save(model(body, w5=I8(5)), tmp_path / "qat.onnx")
    amct.convert_qat_model(str(tmp_path / "qat.onnx"), str(tmp_path / "m"))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("Not converted, 50 Conv (c0, c1, c2 and 47 more): its weight is asymmetric")
    listed = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert [text.split(":")[1] for text in listed] == [f" Conv c{i}" for i in range(50)]


# Refusals


def float_model(folder: Path) -> Path:
    onnx.save(two_convs(), folder / "m.onnx")
    return folder / "m.onnx"


def flow(folder: Path) -> Flow:
    made = Flow.of(two_convs(), folder / "flow")
    return made.run({"x": images(1)})


def dynamic_only(folder: Path) -> Path:
    body = f"xi, sr, zr = DynamicQuantizeLinear (x) xd = DequantizeLinear (xi, sr, zr) wd = Identity (wf) {CONV}"
    onnx.save(model(body, wf=normal(2, 4, 3, 3, 3)), folder / "m.onnx")
    return folder / "m.onnx"


def qoperator(folder: Path) -> Path:
    body = "y = ConvInteger (xi, wq)"
    signature = "g (uint8[N,3,6,6] xi) => (int32[N,4,4,4] y)"
    onnx.save(model(body, signature), folder / "m.onnx")
    return folder / "m.onnx"


def opset_10(folder: Path) -> Path:
    onnx.save(model(f"{PAIR} wd = DequantizeLinear (wq, sw, w0) {CONV}", opset=10), folder / "m.onnx")
    return folder / "m.onnx"


REFUSALS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "no Q/DQ": (float_model, ["m.onnx has no QuantizeLinear or DequantizeLinear", "create_quant_config"]),
    "deploy model": (lambda p: Path(flow(p).deploy), ["a deploy model of AMCT already", "AscendQuant conv1.quant"]),
    "calibration model": (lambda p: Path(flow(p).modified), ["a calibration model of AMCT already"]),
    "fake-quant model": (lambda p: Path(flow(p).fake_quant), ["a fake-quant model of amct_onnx"]),
    "nothing to convert": (dynamic_only, ["Nothing in", "m.onnx can be converted", "do not come from"]),
    "integer operators only": (qoperator, ["holds integer operators \\(ConvInteger", "Q/DQ format"]),
    "opset 10": (opset_10, ["opset 10, the oldest supported is 11"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_models_that_are_refused(tmp_path: Path, name: str) -> None:
    make, parts = REFUSALS[name]
    path = make(tmp_path)
    with refused(tmp_path, ModelError, *parts):
        amct.convert_qat_model(str(path), str(tmp_path / "out" / "m"), str(tmp_path / "r.txt"))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with refused(tmp_path, FileMissingError, "nowhere.onnx does not exist"):
        amct.convert_qat_model(str(tmp_path / "nowhere.onnx"), str(tmp_path / "m"))
    (tmp_path / "text.onnx").write_text("no model")
    with refused(tmp_path, ModelFileError, "text.onnx is not"):
        amct.convert_qat_model(str(tmp_path / "text.onnx"), str(tmp_path / "m"))


def test_a_record_that_cannot_be_written_leaves_nothing(qat: Path) -> None:
    (qat.parent / "taken").mkdir()
    with refused(qat.parent, OutputError, "taken", "it is a folder"):
        amct.convert_qat_model(str(qat), str(qat.parent / "m"), str(qat.parent / "taken"))


def test_the_other_functions_advise_to_convert(qat: Path) -> None:
    with refused(qat.parent, ModelError, "cannot be quantized", "convert_qat_model"):
        amct.create_quant_config(str(qat.parent / "c.json"), str(qat))


# An independent producer: ONNX Runtime's own quantizer. Its scales are no powers of two, so a value may fall on the
# other side of a rounding boundary: one step in one tensor, which leaves more than this.
MINIMUM_SQNR_DB = 30.0


class Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


PRODUCED: dict[str, dict[str, Any]] = {
    "int8": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8},
    "uint8, int8 per channel": {"weight_type": QuantType.QInt8, "per_channel": True},
    "int8 per channel": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True},
    "uint8 weights": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "symmetric, pairs on weights, a pair for each reader": {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True, "AddQDQPairToWeight": True, "DedicatedQDQPair": True},
    },
    "contrib operators, Conv alone": {
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": ["Conv"],
        "extra_options": {"UseQDQContribOps": True},
    },
}


def small_network() -> onnx.ModelProto:
    return build(
        """g (float[N,3,8,8] x) => (float[N,5] y) {
            [c1] a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1) [r1] r = Relu (a)
            [c2] c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r, w2, b2) [s] t = Add (c, r)
            [p] m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (t) [v] u = AveragePool <kernel_shape=[2,2]> (m)
            [g] h = GlobalAveragePool (u) [f] e = Flatten (h) [fc] y = Gemm <transB=1> (e, w3, b3)
        }""",
        opset=13,
        w1=normal(1, 8, 3, 3, 3, scale=0.3),
        b1=normal(2, 8),
        w2=normal(3, 8, 1, 3, 3, scale=0.4),
        b2=normal(4, 8),
        w3=normal(5, 5, 8, scale=0.5),
        b3=normal(6, 5),
    )


@pytest.mark.parametrize("name", PRODUCED)
def test_models_of_onnxruntimes_quantizer(tmp_path: Path, name: str) -> None:
    onnx.save(small_network(), tmp_path / "float.onnx")
    feeds = [{"x": normal(seed, 4, 3, 8, 8)} for seed in range(3)]
    produced = tmp_path / "qdq.onnx"
    quantize_static(tmp_path / "float.onnx", produced, Batches(feeds), quant_format=QuantFormat.QDQ, **PRODUCED[name])
    converted = Converted.file(produced, tmp_path)
    counts = Counter(operators(converted.deploy))
    if name == "uint8 weights":
        assert set(converted.reasons) <= {"c1", "c2", "fc"}  # asymmetric, but for those that happen to fit
    else:
        assert converted.kept == ()
        assert counts["AscendDequant"] == (2 if "Conv alone" in name else 4)
    assert not counts.keys() & {"QuantizeLinear", "DequantizeLinear"}
    for batch in (*feeds, {"x": normal(77, 16, 3, 8, 8)}):
        original, simulated, deployed = (
            run(batch)[0] for run in (converted.run_original, converted.run_fake_quant, converted.run_deploy)
        )
        assert sqnr(original, simulated) > MINIMUM_SQNR_DB
        np.testing.assert_array_equal(simulated, deployed)


@pytest.mark.slow
def test_a_real_model_answers_as_before(test_data: Callable[..., Path], tmp_path: Path) -> None:
    """MobileNetV2 by another tool, on 24 images; all of them: `make qat`."""
    shared = pytest.importorskip("shared_data")
    path = test_data("models", "mobilenetv2_qdq_per_tensor.onnx")
    converted = Converted.file(path, tmp_path)
    assert converted.kept == ()
    assert Counter(operators(converted.deploy))["AscendDequant"] == 53
    prepare = shared.MODELS["mobilenetv2"].prepare
    chosen = shared.spread(shared.read_labels("imagenet1000/test_label.txt", test_data()), 24)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]),
        ort.InferenceSession(str(converted.fake_quant), providers=["CPUExecutionProvider"]),
        amct.deployed_session(converted.deploy),
    ]
    runs = [[s.run(None, {"input": x})[0] for s in sessions] for x, _ in shared.batches(chosen, 1, prepare)]
    original, simulated, deployed = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    np.testing.assert_array_equal(simulated, deployed)
    # Rounding alone makes ONNX Runtime's own two ways of running this model differ on one image in ten.
    assert (original.argmax(1) == simulated.argmax(1)).mean() > 0.75
    assert sqnr(original, simulated) > 12.0
