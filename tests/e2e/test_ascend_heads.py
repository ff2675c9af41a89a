"""Heads with one scale for all classes, target ascend: never worse than with AMCT's own scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from flow import CPU, build, normal
from onnxruntime import InferenceSession

import amct_onnx

CLASSES, WIDTH, LARGE = 1000, 48, 10
PLAIN = normal(1, WIDTH, CLASSES, scale=0.08)
OF_CLASSES = PLAIN * np.where(np.arange(CLASSES) < LARGE, 8, 1).astype(np.float32)
OF_FEATURES = PLAIN * np.where(np.arange(WIDTH)[:, None] < 2, 10, 1).astype(np.float32)
BIAS = normal(2, CLASSES, scale=0.1)
TURN = normal(3, WIDTH, WIDTH, scale=0.15)

HEADS = {
    "matmul": "l = MatMul (x, w)",
    "gemm": "l = Gemm (x, w, b)",
    "turned": "t = Transpose (w) l = Gemm <transB = 1> (x, t, b)",
    "behind_a_layer": "h = MatMul (x, v) r = Add (h, x) l = MatMul (r, w)",
    "added": "m = MatMul (x, w) l = Add (m, b)",
}


def _inputs(weight: np.ndarray, count: int) -> np.ndarray:
    """Inputs that are large along the weights of one of the first classes, as those of a trained head are."""
    rng = np.random.default_rng(3)
    along = weight[:, rng.integers(0, LARGE, count)].T
    return (0.4 * along + 0.4 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def _sqnr(proto: onnx.ModelProto, result: amct_onnx.QuantizedModel, x: np.ndarray, folder: Path) -> float:
    file = next(file for file in result.save(folder / "q", inspect=False).files if "fake_quant" in file)
    wanted, got = (
        InferenceSession(source, providers=CPU).run(None, {"x": x})[0].astype(np.float64)
        for source in (proto.SerializeToString(), file)
    )
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


@pytest.mark.parametrize("weight", [OF_CLASSES, OF_FEATURES], ids=["large_classes", "large_features"])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_as_good_as_with_its_extremes(head: str, weight: np.ndarray, tmp_path: Path) -> None:
    text = f"g (float[N,{WIDTH}] x) => (float[N,{CLASSES}] y) {{ {HEADS[head]} y = Softmax <axis = -1> (l) }}"
    proto, x = build(text, w=weight, b=BIAS, v=TURN), _inputs(weight, 160)
    onnx.save(proto, tmp_path / "model.onnx")
    config = tmp_path / "config.json"
    amct_onnx.create_quant_config(str(config), str(tmp_path / "model.onnx"))
    own = amct_onnx.quantize(proto, x[:80], target="ascend", effort="fast", settings=config)
    least = _sqnr(proto, own, x[80:], tmp_path) - 1
    for effort in ("fast", "default"):
        assert _sqnr(proto, amct_onnx.quantize(proto, x[:80], target="ascend", effort=effort), x[80:], tmp_path) > least


def test_which_layers_keep_the_scale_of_their_extremes() -> None:
    proto = build(
        f"""g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{
            [inside] h = MatMul (x, v) r = Relu (h) [gate] l = MatMul (r, w) a = Add (l, b) p = Softmax <axis = -1> (a)
            [mixed] m = MatMul (p, u) s = Add (m, r) [last] y = MatMul (s, v2) }}""",
        **{"v": TURN, "w": OF_CLASSES, "b": BIAS, "u": np.ascontiguousarray(OF_CLASSES.T), "v2": 2 * TURN},
    )
    result = amct_onnx.quantize(proto, normal(5, 32, WIDTH), target="ascend", effort="fast")
    weights = {"inside": TURN, "gate": OF_CLASSES, "mixed": OF_CLASSES, "last": 2 * TURN}
    extremes = {name: float(np.abs(weight).max()) / 127 for name, weight in weights.items()}
    kept = {name for name, grid in result.weights.items() if grid.scale[0] >= 0.999 * extremes[name] * 127 / 128}
    assert kept == {"gate", "last"}
