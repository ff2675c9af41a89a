"""A chain of elementwise nodes that ends in one without an integer kernel is computed in floats as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from qdq_graph import exact_session, kernels

import amct_onnx

# What computes g from c, and the one operator that ONNX Runtime makes of it where it has one.
CHAINS = {
    "tanh of products": (
        "d = Mul(c, c) e = Mul(d, c) f = Mul(e, cubic) h = Add(c, f) i = Mul(h, slope) t = Tanh(i) u = Add(t, one) "
        "v = Mul(u, half) g = Mul(c, v)",
        "",
    ),
    "tanh of a power": (
        "e = Pow(c, three) f = Mul(e, cubic) h = Add(c, f) i = Mul(h, slope) t = Tanh(i) u = Add(t, one) "
        "v = Mul(c, half) g = Mul(v, u)",
        "FastGelu",
    ),
    "erf": ("d = Div(c, root) e = Erf(d) f = Add(e, one) h = Mul(c, f) g = Mul(h, half)", "Gelu"),
    "erf of a product": ("d = Mul(c, inverse) e = Erf(d) f = Add(e, one) h = Mul(c, f) g = Mul(h, half)", ""),
    "mish": ("d = Softplus(c) e = Tanh(d) g = Mul(c, e)", ""),
    "square": ("d = Mul(c, c) e = Add(d, one) f = Sqrt(e) g = Mul(c, f)", ""),
    "sigmoid": ("d = Sigmoid(c) e = Mul(d, slope) f = Exp(e) g = Mul(c, f)", ""),
    "leaky": ("d = LeakyRelu<alpha = 0.1>(c) e = Mul(d, half) f = Tanh(e) g = Mul(c, f)", ""),
    "moved": ("d = Mul(c, c) e = Transpose<perm = [0, 1, 3, 2]>(d) f = Tanh(e) g = Mul(c, f)", ""),
}
NUMBERS = {
    **{"one": 1.0, "half": 0.5, "three": 3.0, "root": 2**0.5, "inverse": 0.5**0.5, "cubic": 0.044715},
    "slope": 0.7978845608,
}
ENDS = {
    "convolution": "y = Conv(g, B)",
    "mean": "y = ReduceMean<axes = [2, 3], keepdims = 0>(g)",
    "product": "m = GlobalAveragePool(g) f0 = Flatten(m) y = MatMul(f0, M)",
}


def build(chain: str, end: str, opset: int = 17) -> ir.Model:
    chance = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,8,12,12] x) => (float[] y) '
        f"{{ [conv] c = Conv(x, A) {chain} {end} }}"
    )
    arrays = {
        **{name: np.float32(value) for name, value in NUMBERS.items()},
        "A": chance.normal(size=(16, 8, 1, 1)) / 2,
        "B": chance.normal(size=(8, 16, 1, 1)) / 4,
        "M": chance.normal(size=(16, 4)) / 4,
    }
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        for name, array in arrays.items()
        if name in used
    )
    model = ir.from_proto(proto)
    model.graph.outputs[0].shape = None
    return model


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_no_piece_of_it_is_rounded(chain: str, target: str, tmp_path: Path) -> None:
    (body, fused), end = CHAINS[chain], sorted(ENDS)[len(chain) % len(ENDS)]
    model = build(body, ENDS[end])
    x = np.random.default_rng(1).normal(size=(16, 8, 12, 12)).astype(np.float32)
    result = amct_onnx.quantize(model, x, target=target, effort="fast", reduce_range=True)
    quantized = {d.layer.split("_")[0] for d in result.decisions if d.quantized}
    assert "conv" in quantized
    assert not quantized & {"Add", "Mul", "Sigmoid", "LeakyRelu", "Transpose"}
    file = result.save(tmp_path / "m", inspect=False).files[0]
    ir.save(model, tmp_path / "float.onnx")
    (exact,) = exact_session(tmp_path / "float.onnx").run(None, {"x": x})
    (got,) = exact_session(file).run(None, {"x": x})
    assert 10 * np.log10((exact**2).sum() / ((exact - got) ** 2).sum()) > 25
    if target == "onnxruntime" and fused:
        assert kernels(file, tmp_path)[fused] == 1


def test_what_leads_on_to_a_layer_stays_in_integers(tmp_path: Path) -> None:
    """Only what no integers come of is left: a swish between two convolutions is computed on them."""
    model = build("d = Sigmoid(c) g = Mul(c, d) e = Tanh(d)", "z = Conv(g, B) y = Mul(z, z)")
    x = np.random.default_rng(1).normal(size=(8, 8, 12, 12)).astype(np.float32)
    result = amct_onnx.quantize(model, x, effort="fast")
    found = kernels(result.save(tmp_path / "m", inspect=False).files[0], tmp_path)
    assert found["QLinearSigmoid"] == 1
    assert found["QLinearMul"] == 2  # the second gives an output of the model


def test_the_reason_is_told() -> None:
    model = build("d = Mul(c, c) g = Tanh(d)", "y = Conv(g, B)")
    x = np.random.default_rng(1).normal(size=(8, 8, 12, 12)).astype(np.float32)
    decisions = amct_onnx.quantize(model, x, effort="fast").decisions
    assert [d.reason for d in decisions if d.layer.startswith("Mul")] == ["what reads it computes in floats"]


def test_a_layer_that_is_left_out_takes_the_pieces_in_front_of_it_along() -> None:
    model = build("d = Sigmoid(c) g = Mul(c, d)", "[behind] y = Conv(g, B)")
    x = np.random.default_rng(1).normal(size=(8, 8, 12, 12)).astype(np.float32)
    decisions = amct_onnx.quantize(model, x, effort="fast", skip_layers=["behind"]).decisions
    assert [d.layer for d in decisions if d.quantized] == ["conv"]
