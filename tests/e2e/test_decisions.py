"""Every layer is among the decisions of every target, quantized or with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import build, normal

import amct_onnx
from amct_onnx.errors import AmctError

TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend")
_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _recurrent(op_type: str, more: str = "") -> onnx.ModelProto:
    rows = 3 * _RECURRENT[op_type]
    return build(
        f"""g (float[T,N,4] x) => (float[T,1,N,3] s, float[1,N,2] y) {{
            [layer] s, h = {op_type}<hidden_size=3>(x, W, R) {more} }}""",
        W=normal(1, 1, rows, 4) / 2, R=normal(2, 1, rows, 3) / 2, P=normal(3, 3, 2),
    )  # fmt: skip


def _feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": normal(seed, 5, 2, 4)} for seed in range(3)]


def _said(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], target: str) -> dict[str, str | bool]:
    result = amct_onnx.quantize(model, feeds, target=target, effort="fast")
    return {decision.layer: decision.quantized or decision.reason for decision in result.decisions}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op_type", _RECURRENT)
def test_a_recurrent_layer(op_type: str, target: str) -> None:
    said = _said(_recurrent(op_type, "[head] y = MatMul(h, P)"), _feeds(), target)
    assert list(said) == ["layer", "head"]
    assert said["head"] is True
    assert isinstance(said["layer"], str)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op_type", _RECURRENT)
def test_nothing_but_a_recurrent_layer(op_type: str, target: str) -> None:
    with pytest.raises(AmctError, match=r"layer\b.*: .*(no integer|in integers|AMCT's functions|linear_before_reset)"):
        _said(_recurrent(op_type, "y = Identity(h)"), _feeds(), target)


def _optimised(model: onnx.ModelProto, folder: Path, level: str) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_layers_of_an_optimised_model(level: str, target: str, tmp_path: Path) -> None:
    model = build(
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,4,8,4] z) {
            a = Conv<pads=[1,1,1,1]>(x, A) y = Relu(a) t = Transpose<perm=[0,1,3,2]>(y) z = MatMul(t, B) }""",
        A=normal(1, 4, 3, 3, 3), B=normal(2, 8, 4),
    )  # fmt: skip
    optimised = _optimised(model, tmp_path, level)
    ours = [node for node in optimised.graph.node if node.domain and ("Conv" in node.op_type or "Mat" in node.op_type)]
    assert {node.op_type for node in ours} >= {"FusedMatMul"}
    with pytest.raises(AmctError, match="before it is optimised"):
        _said(optimised, [{"x": normal(seed, 2, 3, 8, 8)} for seed in range(3)], target)


def test_a_target_without_any_layer_of_a_model_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Another target quantizes it, so that there is something to calibrate."""
    model = build(
        "g (float[N,3,4,4] x) => (float[N,2,?,?] y) { [up] y = ConvTranspose<strides=[2,2]>(x, W) }",
        W=normal(1, 3, 2, 2, 2),
    )
    said = _said(model, [{"x": normal(seed, 2, 3, 4, 4)} for seed in range(3)], "onnxruntime")
    assert said == {"up": "onnxruntime has no integer ConvTranspose"}
    assert "onnxruntime has no integer ConvTranspose" in caplog.text
