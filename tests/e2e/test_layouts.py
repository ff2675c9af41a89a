"""ONNX Runtime puts channels last around integer convolutions; a written model has to run with that and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, MINIMUM_SQNR_DB, build, normal, sqnr

import amct_onnx as amct
from amct_onnx.values.qdq_tables import QDQ_TARGETS

_LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
_CONSTANTS = {
    "w1": normal(1, 4, 4, 1, 1),
    "w2": normal(2, 3, 4, 1, 1),
    "ends": np.array([1, 2, 1, 2]),
    "axes": np.array([2, -1]),
    "half": np.float32([1, 1, 0.5, 0.5]),
    "twice": np.float32([2, 2]),
    "sizes": np.array([16, 11]),
    "smaller": np.array([1, 4, 5, 3]),
    "pixel": np.array([1, 3]),
}
_MOVES = {
    "pad": "Pad (a, ends, , axes)",
    "pad_reflect": 'Pad <mode="reflect"> (a, ends, , axes)',
    "scales": 'Resize <axes=[2,3], mode="nearest"> (a, , twice)',
    "sizes": 'Resize <axes=[3,-2], mode="linear"> (a, , , sizes)',
    "policy": 'Resize <axes=[2,3], keep_aspect_ratio_policy="not_larger", mode="nearest"> (a, , , sizes)',
    "one_pixel": 'Resize <axes=[2,3], keep_aspect_ratio_policy="not_larger", mode="nearest"> (a, , , pixel)',
    "cubic_scales": 'Resize <mode="cubic"> (a, , half)',
    "cubic_sizes": 'Resize <mode="cubic"> (a, , , smaller)',
}


def _model(text: str, *, x: str = "float[N,4,8,8]", opset: int = 18) -> onnx.ModelProto:
    body = f"g ({x} x) => (float[A,B,C,D] y) {{ {text} }}"
    return build(body, opset=opset, **{name: array for name, array in _CONSTANTS.items() if name in text})


def _run_both(model: str, x: np.ndarray) -> list[np.ndarray]:
    outputs = []
    for level in _LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on a CPU without VNNI
        outputs.append(ort.InferenceSession(model, options, providers=CPU).run(None, {"x": x})[0])
    return outputs


def _quantized(model: onnx.ModelProto, target: str, x: np.ndarray, folder: Path) -> set[str]:
    """The layers that are quantized, of a file that runs with optimisations and without, and agrees."""
    onnx.save(model, folder / "float.onnx")
    result = amct.quantize(str(folder / "float.onnx"), [x], target=target, effort="fast")
    file = result.save(folder / "q", inspect=False).files[0]
    for exact, got in zip(_run_both(str(folder / "float.onnx"), x), _run_both(file, x), strict=True):
        assert sqnr(exact, got) > MINIMUM_SQNR_DB
    return {decision.layer for decision in result.decisions if decision.quantized}


@pytest.mark.parametrize("target", QDQ_TARGETS)
@pytest.mark.parametrize("move", _MOVES.values(), ids=_MOVES)
def test_between_two_convolutions(move: str, target: str, tmp_path: Path) -> None:
    text = f"[front] c = Conv (x, w1) a = Sigmoid (c) b = {move} e = Mul (b, b) [behind] y = Conv (e, w2)"
    quantized = _quantized(_model(text), target, normal(3, 1, 4, 8, 8), tmp_path)
    assert "front" in quantized
    assert ("behind" in quantized) == (target == "tensorrt")  # whose convolutions end in float


@pytest.mark.parametrize("move", ["pad", "pad_reflect", "scales", "sizes", "policy", "cubic_scales"])
def test_behind_a_transpose_of_the_model(move: str, tmp_path: Path) -> None:
    text = f"[t] a = Transpose <perm=[0,3,1,2]> (x) b = {_MOVES[move]} [conv] e = Conv (b, w1) [last] y = Conv (e, w2)"
    quantized = _quantized(_model(text, x="float[N,8,8,4]"), "onnxruntime", normal(3, 1, 8, 8, 4), tmp_path)
    assert "conv" not in quantized
    assert "last" in quantized


@pytest.mark.parametrize("move", _MOVES.values(), ids=_MOVES)
def test_behind_a_convolution(move: str, tmp_path: Path) -> None:
    quantized = _quantized(
        _model(f"[front] a = Conv (x, w1) y = {move}"), "onnxruntime", normal(3, 1, 4, 8, 8), tmp_path
    )
    assert "front" in quantized


@pytest.mark.parametrize(
    ("move", "opset"),
    [
        ('Resize <mode="nearest"> (a, , half)', 13),
        ('Resize <mode="linear"> (a, , , smaller)', 13),
        ('Resize <mode="cubic", antialias=1> (a, , half)', 18),
    ],
)
def test_other_moves_keep_integers_on_both_sides(move: str, opset: int, tmp_path: Path) -> None:
    text = f"[front] a = Conv (x, w1) b = {move} [behind] y = Conv (b, w2)"
    quantized = _quantized(_model(text, opset=opset), "onnxruntime", normal(3, 1, 4, 8, 8), tmp_path)
    assert quantized >= {"front", "behind"}


def test_what_is_not_between_transposes_stays_on_integers(tmp_path: Path) -> None:
    text = f"b = {_MOVES['cubic_scales'].replace('(a', '(x')} [front] c = Conv (b, w1) [behind] y = Conv (c, w2)"
    quantized = _quantized(_model(text), "onnxruntime", normal(3, 1, 4, 8, 8), tmp_path)
    assert quantized >= {"front", "behind"}
