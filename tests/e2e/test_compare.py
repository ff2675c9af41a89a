"""`compare`: the layer that is spoilt is found, whoever quantized the model and whatever its tensors are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from broken import Spoiler, quantized_by_onnxruntime, renamed, residual_net, samples
from flow import build, normal, sqnr
from onnx import numpy_helper

import amct_onnx
from amct_onnx.errors import ArgumentTypeError, DataError, ModelError
from amct_onnx.run.saturation import saturates
from amct_onnx.values.comparison import Comparison

LAYERS = ["stem", "left", "left2", "right", "last", "head"]


def compared(model: Any, floats: onnx.ModelProto | None = None) -> Comparison:
    return amct_onnx.compare(residual_net() if floats is None else floats, model, samples()[:4])


def ours(target: str = "onnxruntime") -> onnx.ModelProto:
    result = amct_onnx.quantize(residual_net(), samples(), target=target, effort="fast", full_int8=True)
    return ir.to_proto(result.model())


FORMS = {
    "ours": lambda folder: ours(),
    "tensorrt": lambda folder: ours("tensorrt"),
    "static": lambda folder: quantized_by_onnxruntime(folder, prepared=False, per_channel=True, qdq=True),
    "prepared": lambda folder: quantized_by_onnxruntime(folder, prepared=True, per_channel=False, qdq=True),
}


@pytest.fixture(scope="module", params=list(FORMS))
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A model with Q/DQ nodes: our own, or of onnxruntime's quantizer."""
    model: onnx.ModelProto = FORMS[request.param](tmp_path_factory.mktemp(request.param))
    return model


def test_nothing_stands_out_in_a_sound_model(quantized: onnx.ModelProto) -> None:
    found = compared(quantized)
    assert found.first is None
    assert found.unmatched == ()
    assert {layer.layer for layer in found.layers} >= {*LAYERS, "x", "cat"}
    assert min(layer.own_sqnr for layer in found.layers) > 18


def test_the_numbers_are_those_of_the_models(quantized: onnx.ModelProto) -> None:
    data, found = samples()[:4], compared(quantized)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs = [
        ort.InferenceSession(m.SerializeToString(), options).run(None, {"x": data})[0]
        for m in (residual_net(), quantized)
    ]
    last = found.layers[-1]
    assert last.tensor == "y"
    assert found.outputs == {"y": last.sqnr}
    assert last.sqnr == pytest.approx(sqnr(*outputs), abs=1e-3)
    assert last.max_error == pytest.approx(float(np.abs(outputs[0] - outputs[1]).max()), rel=1e-3)
    one, two = (array.ravel().astype(np.float64) for array in outputs)
    assert last.cosine == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two), abs=1e-6)


def flip(array: np.ndarray) -> np.ndarray:
    return array[::-1]


def one_element(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    place = int(np.abs(flat.astype(int)).argmin())
    flat[place] = 127
    return array


def one_channel(scale: np.ndarray) -> np.ndarray:
    if scale.size == 1:
        return scale * 3
    scale[int(scale.argmax())] *= 8
    return scale


WEIGHTS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray], str]] = {
    "zero": (0, lambda array: array * 0, "zero"),
    "turned": (0, flip, "another one"),
    "one element": (0, one_element, "an element of its weight"),
    "doubled": (1, lambda scale: scale * 2, "as large"),
    "one channel": (1, one_channel, "as large"),
}


@pytest.mark.parametrize("place", [1, 2, 4])
@pytest.mark.parametrize("kind", list(WEIGHTS))
@pytest.mark.parametrize("names", ["kept", "new"])
def test_a_spoilt_weight_is_found(quantized: onnx.ModelProto, place: int, kind: str, names: str) -> None:
    part, change, told = WEIGHTS[kind]
    spoiler = Spoiler(quantized)
    spoiler.constant(place, 1, part, change)
    found = compared(renamed(spoiler.model) if names == "new" else spoiler.model)
    layer = order_of(quantized)[place]
    assert found.first is not None
    assert found.first.layer == layer, found.first
    assert told in found.first.why


def order_of(model: onnx.ModelProto) -> list[str]:
    """The layers in the order of a quantized model, which quantizers may change."""
    nodes = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert {name.removesuffix("_quant") for name in nodes} == set(LAYERS), nodes
    return [name.removesuffix("_quant") for name in nodes]


@pytest.mark.parametrize("factor", [6.0, 1 / 6])
@pytest.mark.parametrize("layer", ["left2", "last"])
def test_a_spoilt_range_is_found(quantized: onnx.ModelProto, layer: str, factor: float) -> None:
    spoiler = Spoiler(quantized)
    place = order_of(quantized).index(layer)
    spoiler.constant(place, 0, 1, lambda scale: scale * np.float32(factor))
    found = compared(spoiler.model)
    # The tensor that the layer reads is what parts first; a concatenation may have the scale of its parts.
    makers = {"left2": {"left", "relu2"}, "last": {"cat", "sum", "relu3", "right"}}[layer]
    assert found.first is not None
    assert found.first.layer in makers, found.first
    assert ("coarsely" if factor > 1 else "cut off") in found.first.why


@pytest.mark.parametrize("change", [0.0, 40.0])
def test_a_spoilt_bias_is_found(quantized: onnx.ModelProto, change: float) -> None:
    spoiler = Spoiler(quantized)
    place = order_of(quantized).index("right")
    spoiler.constant(place, 2, 0, lambda bias: bias * change)
    found = compared(spoiler.model)
    assert found.first is not None
    assert found.first.layer == "right"
    assert "bias" in found.first.why


@pytest.mark.parametrize("spoilt", [None, "w2_quantized"])
@pytest.mark.parametrize("prepared", [False, True])
def test_operators_on_integers(tmp_path: Path, spoilt: str | None, prepared: bool) -> None:
    model = quantized_by_onnxruntime(tmp_path, prepared=prepared, per_channel=True, qdq=False)
    assert any(node.op_type == "QLinearConv" for node in model.graph.node)
    if spoilt is not None:
        spoiler = Spoiler(model)
        name = next(n.input[3] for n in model.graph.node if n.name.startswith("left") and "2" not in n.name)
        spoiler.change(name, flip)
        model = spoiler.model
    found = compared(model)
    assert found.unmatched == ()
    assert (None if found.first is None else found.first.layer) == (None if spoilt is None else "left")


@pytest.mark.parametrize("file", ["deploy_model", "fake_quant_model"])
def test_files_for_ascend(tmp_path: Path, file: str) -> None:
    amct_onnx.quantize(residual_net(), samples(), target="ascend", effort="fast").save(tmp_path / "m")
    path = tmp_path / f"m_{file}.onnx"
    sound = compared(str(path))
    assert sound.first is None
    assert {layer.layer for layer in sound.layers} >= set(LAYERS)
    model = onnx.load(path)
    layer = next(node for node in model.graph.node if node.name == "left2" and node.op_type == "Conv")
    spoiler = Spoiler(model)
    spoiler.change(layer.input[1], flip)
    found = compared(spoiler.model)
    assert found.first is not None
    assert found.first.layer == "left2"


def uneven() -> onnx.ModelProto:
    """Two layers between which channels have ranges so uneven that quantize evens them out."""
    scales = np.array([40, 1, 0.05, 8, 0.5, 20, 0.1, 3], np.float32)
    return build(
        """g (float[N,3,10,10] x) => (float[N,5,8,8] y) {
            [one] a = Conv <pads=[1,1,1,1]> (x, w1, b1) [relu] r = Relu (a) [two] y = Conv (r, w2) }""",
        w1=normal(1, 8, 3, 3, 3) * scales.reshape(-1, 1, 1, 1),
        b1=normal(2, 8) * scales,
        w2=normal(3, 5, 8, 3, 3) / scales.reshape(1, -1, 1, 1),
    )


@pytest.mark.parametrize("target", ["tensorrt", "ascend"])
def test_channels_that_were_evened_out_are_no_error(target: str) -> None:
    model, data = uneven(), normal(5, 48, 3, 10, 10)
    result = amct_onnx.quantize(model, data, target=target, effort="default")
    assert any("equal" in step.name and step.kept for step in result.steps), result.steps
    found = amct_onnx.compare(model, result, data[:4])
    assert found.first is None, found.first
    assert any(layer.scaled for layer in found.layers)
    assert min(layer.own_sqnr for layer in found.layers) > 20


def test_a_dynamic_model(tmp_path: Path) -> None:
    model = build(
        """g (float[N,L,64] x) => (float[N,L,64] y) {
            [one] a = MatMul (x, w1) [relu] r = Relu (a) [two] y = MatMul (r, w2) }""",
        w1=normal(1, 64, 64, scale=0.1), w2=normal(2, 64, 64, scale=0.1),
    )  # fmt: skip
    result = amct_onnx.quantize(model, None, dynamic=True, full_int8=True, reduce_range=saturates())
    found = amct_onnx.compare(model, result, normal(3, 4, 6, 64))
    assert found.first is None
    assert [layer.layer for layer in found.layers] == ["x", "one", "relu", "two"]
    assert 20 < found.layers[-1].own_sqnr < 80


def test_a_model_beside_itself_is_exact() -> None:
    found = compared(residual_net())
    assert found.first is None
    assert all(layer.sqnr == np.inf and layer.max_error == 0 for layer in found.layers)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["layers"][0]["sqnr"] is None
    assert "No layer stands out" in str(found)


def test_numbers_that_are_none_part() -> None:
    model = residual_net()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    array = numpy_helper.to_array(weights["w3"]).copy()
    array[0, 0, 0, 0] = np.nan
    weights["w3"].CopyFrom(numpy_helper.from_array(array, "w3"))
    found = compared(model)
    assert found.first is not None
    assert found.first.layer == "left2"
    assert "NaN" in found.first.why


def test_what_cannot_be_compared_is_told() -> None:
    other = build("g (float[N,3,12,12] x) => (float[N,3,12,12] z) { z = Sigmoid (x) }")
    with pytest.raises(ModelError, match="no tensor in common"):
        amct_onnx.compare(residual_net(), other, samples()[:2])
    with pytest.raises(ArgumentTypeError, match="quantized_model must be a path"):
        amct_onnx.compare(residual_net(), 5, samples()[:2])
    with pytest.raises(DataError):
        amct_onnx.compare(residual_net(), residual_net(), normal(1, 2, 3, 5, 7))


# --- shared models

SHARED = {
    "kws_dscnn_mlperftiny": (1, 49, 10),
    "resnet20_cifar10": (3, 32, 32),
    "resnet56_cifar10": (3, 32, 32),
    "squeezenet1.1": (3, 224, 224),
    "mobilenetv1_0.5_160": (3, 160, 160),
    "mobilenetv2_tv1": (3, 224, 224),
    "super_resolution_10": (1, 224, 224),
    "yolox_nano": (3, 416, 416),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tool"), list(zip(SHARED, ["onnxruntime", "ours"] * 4, strict=True)))
def test_a_shared_model_whose_middle_layer_is_spoilt(name: str, tool: str, test_data: Any, tmp_path: Path) -> None:
    path = str(test_data("models", f"{name}.onnx"))
    data = normal(1, 2, *SHARED[name]) * (60 if name == "yolox_nano" else 1)
    if tool == "ours":
        model = ir.to_proto(amct_onnx.quantize(path, data, effort="fast").model())
    else:
        model = quantized_by_onnxruntime(tmp_path, prepared=True, per_channel=False, qdq=True, path=path, data=data)
    sound = amct_onnx.compare(path, model, data, samples=1)
    assert len(sound.unmatched) <= len(sound.layers) // 20
    spoiler = Spoiler(model)
    place = len(spoiler.layers) // 2
    spoiler.constant(place, 1, 0, flip)
    spoilt = spoiler.layers[place]
    found = amct_onnx.compare(path, renamed(spoiler.model), data, samples=1)
    before = {layer.layer for layer in sound.layers if layer.parts}
    new = [layer for layer in found.layers if layer.parts and layer.layer not in before]
    assert new, found.lines()
    assert spoilt.name.removesuffix("_quant") in (new[0].layer, *new[0].nodes), new[0]


@pytest.mark.slow
def test_the_shared_model_of_another_tool(test_data: Any) -> None:
    floats = test_data("models", "mobilenetv2_tv1.onnx")
    quantized = test_data("models", "mobilenetv2_qdq_per_tensor.onnx")
    found = amct_onnx.compare(floats, quantized, normal(1, 1, 3, 224, 224), samples=1)
    assert found.unmatched == ()
    assert len(found.layers) > 60


@pytest.mark.slow
def test_the_shared_sentence_encoder(test_data: Any) -> None:
    path = test_data("models", "minilm_l6.onnx")
    rng = np.random.default_rng(1)
    data = {
        "input_ids": rng.integers(1000, 20000, (4, 12)).astype(np.int64),
        "attention_mask": np.ones((4, 12), np.int64),
    }
    model = ir.to_proto(amct_onnx.quantize(path, data, effort="fast").model())
    sound = amct_onnx.compare(path, model, data, samples=1)
    assert sound.unmatched == ()
    assert sound.first is None
    spoiler = Spoiler(model)
    layers = [place for place, node in enumerate(spoiler.layers) if "layer.3/output/dense" in node.name]
    spoiler.constant(layers[0], 1, 0, flip)
    found = amct_onnx.compare(path, spoiler.model, data, samples=1)
    assert found.first is not None
    assert "layer.3/output/dense" in found.first.layer
