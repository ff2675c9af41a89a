"""A Gemm of any attributes, through every target, effort and door: quantized, or in float with a reason."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, normal, sqnr

import amct_onnx

TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend")
_BIASES: dict[str, np.ndarray | None] = {
    "none": None,
    "vector": normal(9, 8),
    "row": normal(9, 1, 8),
    "number": np.float32(0.5),
    "matrix": normal(9, 5, 8),
    "column": normal(9, 5, 1),
}
_PER_ROW = {"matrix", "column"}  # they have no form in int32
_ENOUGH = 25  # dB


def _model(trans_a: int, trans_b: int, bias: str, *, first: str = "x", alpha: float = 0.7) -> onnx.ModelProto:
    """A Gemm `fc` of `first`, which is x [5, 16] or [16, 5] or a constant of that shape, and a product behind it."""
    constants = {"W": normal(1, *((8, 16) if trans_b else (16, 8))) / 4, "V": normal(2, 8, 4) / 3}
    if (array := _BIASES[bias]) is not None:
        constants["c"] = np.asarray(array)
    if first != "x":
        constants[first] = normal(3, *((16, 5) if trans_a else (5, 16)))
    shape = "16,5" if trans_a else "5,16"
    inputs = f"float[{shape}] x, float[5,8] z" if first != "x" else f"float[{shape}] x"
    sides = f"{first}, W, c" if "c" in constants else f"{first}, W"
    return build(
        f"""g ({inputs}) => (float[5,4] y) {{
            [fc] t = Gemm<transA={trans_a}, transB={trans_b}, alpha={alpha}, beta=0.5>({sides})
            {"u = Add(t, z)" if first != "x" else "u = Identity(t)"}
            [next] y = MatMul(u, V) }}""",
        **constants,
    )


def _feeds(model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return [{name: normal(10 + seed, *shape) for name, shape in shapes.items()} for seed in range(6)]


def _said(result: amct_onnx.QuantizedModel) -> dict[str, str | bool]:
    return {decision.layer: decision.quantized or decision.reason for decision in result.decisions}


def _saved(result: amct_onnx.QuantizedModel, folder: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    file = next(f for f in result.save(folder / "q", inspect=False).files if f.endswith(".onnx") and "deploy" not in f)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    (output,) = ort.InferenceSession(file, options, providers=CPU).run(None, feed)
    return output


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("trans_a", "trans_b", "bias"), list(product((0, 1), (0, 1), _BIASES)))
def test_a_gemm_of_data(trans_a: int, trans_b: int, bias: str, target: str, tmp_path: Path) -> None:
    model = _model(trans_a, trans_b, bias)
    feeds = _feeds(model)
    result = amct_onnx.quantize(model, feeds, target=target, effort="fast")
    assert _said(result)["next"] is True
    assert _said(result)["fc"] == ("its bias differs from row to row" if bias in _PER_ROW else True)
    (expected,) = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, feeds[0])
    assert sqnr(expected, _saved(result, tmp_path, feeds[0])) > _ENOUGH


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("effort", ["default", "best"])
def test_the_recipe_takes_a_turned_gemm(effort: str, target: str, tmp_path: Path) -> None:
    model = _model(1, 0, "vector")
    feeds = _feeds(model)
    result = amct_onnx.quantize(model, feeds, target=target, effort=effort)
    assert _said(result) == {"fc": True, "next": True} | {
        k: v for k, v in _said(result).items() if k not in ("fc", "next")
    }
    (expected,) = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, feeds[0])
    assert sqnr(expected, _saved(result, tmp_path, feeds[0])) > _ENOUGH


def test_other_doors_take_a_turned_gemm(tmp_path: Path) -> None:
    model = _model(1, 1, "row")
    feeds = _feeds(model)
    assert {"fc", "next"} <= {layer.layer for layer in amct_onnx.sensitivity(model, feeds).layers}
    result = amct_onnx.quantize(model, feeds, weight_only=8, block_size=16, effort="fast")
    assert _said(result) == {"fc": True, "next": True}
    result = amct_onnx.quantize(model, feeds, min_sqnr=60)
    assert result.precision is not None
    again = amct_onnx.quantize(model, feeds, skip_layers=["fc"])
    assert _said(again)["fc"] == "it is switched off by the settings"


@pytest.mark.parametrize(("trans_a", "trans_b", "bias"), list(product((0, 1), (0, 1), _BIASES)))
def test_amct_s_functions(trans_a: int, trans_b: int, bias: str, tmp_path: Path) -> None:
    model = _model(trans_a, trans_b, bias)
    feeds = _feeds(model)
    flow = Flow.of(model, tmp_path).run(*feeds)
    assert set(flow.records()) == ({"next"} if bias in _PER_ROW else {"fc", "next"})
    fake = flow.run_fake_quant(feeds[0])
    assert sqnr(flow.run_float(feeds[0]), fake) > _ENOUGH
    (deployed,) = amct_onnx.deployed_session(flow.deploy).run(None, feeds[0])
    np.testing.assert_allclose(deployed, fake, atol=1e-5)
