"""Smoothing finds the same, however the weight behind the outliers gets to its product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr
from onnx import helper

import amct_onnx

_WEIGHT = normal(1, 64, 16) / 8
_GAIN = np.ones(64, np.float32)
_GAIN[:3] = 60  # channels with outliers
_DATA = normal(2, 48, 64)
# The nodes of the product, and its weight.
_FORMS: dict[str, tuple[str, np.ndarray]] = {
    "a MatMul": ("y = MatMul(a, W)", _WEIGHT),
    "Identity": ("w = Identity(W) y = MatMul(a, w)", _WEIGHT),
    "Transpose": ("w = Transpose(W) y = MatMul(a, w)", np.ascontiguousarray(_WEIGHT.T)),
    "Cast": ("w = Cast<to=1>(W) y = MatMul(a, w)", _WEIGHT.astype(np.float64)),
    "several": ("v = Identity(W) u = Transpose(v) w = Identity(u) y = MatMul(a, w)", np.ascontiguousarray(_WEIGHT.T)),
    "a Gemm": ("y = Gemm(a, W)", _WEIGHT),
    "a turned Gemm": ("y = Gemm<transB=1>(a, W)", np.ascontiguousarray(_WEIGHT.T)),
}
_SHARED: dict[str, tuple[str, np.ndarray]] = {
    "shared": ("p1 = MatMul(a, W) p2 = MatMul(a, W) y = Add(p1, p2)", _WEIGHT),
    "shared behind Identity": (
        "v = Identity(W) w = Identity(v) p1 = MatMul(a, v) p2 = MatMul(a, w) y = Add(p1, p2)",
        _WEIGHT,
    ),
}


def _model(nodes: str, weight: np.ndarray, kind: str) -> onnx.ModelProto:
    model = build(
        f"g (float[N,64] x) => (float[N,16] y) {{ s = Mul(x, gain) p = Sigmoid(s) a = Mul(s, p) {nodes} }}",
        gain=_GAIN, W=weight,
    )  # fmt: skip
    if kind != "initializer":
        tensor = model.graph.initializer.pop()
        first = next(k for k, node in enumerate(model.graph.node) if "W" in node.input)
        node = helper.make_node("Constant", [], ["W"], value=tensor)
        model.graph.node.insert(0 if kind == "Constant in front" else first, node)
    return model


def _decibels(model: onnx.ModelProto, target: str, folder: Path) -> tuple[float, set[str]]:
    result = amct_onnx.quantize(model, _DATA, target=target)
    (file, *_) = (f for f in result.save(folder / "q", inspect=False).files if f.endswith("onnx") and "deploy" not in f)
    options = ort.SessionOptions()
    if target != "tensorrt":  # two layers read one int8 weight there, with which this option opens no model
        options.add_session_config_entry("session.x64quantprecision", "1")
    outputs = [
        ort.InferenceSession(source, options, providers=CPU).run(None, {"x": _DATA})[0]
        for source in (model.SerializeToString(), file)
    ]
    return sqnr(*outputs), {step.name for step in result.steps if step.kept}


@pytest.mark.parametrize("kind", ["initializer", "Constant in front", "Constant beside"])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "ascend"])
@pytest.mark.parametrize("forms", [_FORMS, _SHARED], ids=["one product", "two products"])
def test_a_weight_of_any_kind(forms: dict[str, tuple[str, np.ndarray]], target: str, kind: str, tmp_path: Path) -> None:
    (nodes, weight), *_ = forms.values()
    plain, kept = _decibels(_model(nodes, weight, "initializer"), target, tmp_path)
    for name, (nodes, weight) in forms.items():
        found, also = _decibels(_model(nodes, weight, kind), target, tmp_path)
        assert abs(found - plain) < 0.5, name
        assert also == kept
