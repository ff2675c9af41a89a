"""`sensitivity` as users call it: effects beside those of models in which only one layer is quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from half import to_half

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import ArgumentError, ModelError
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.observe import histograms as collect
from amct_onnx.ptq.mixed.effects import measure
from amct_onnx.run.deployed import open_deployed
from amct_onnx.run.session import open_session

TestData = Callable[..., Path]

# Errors of a layer's input, weight and output are added up as if they were independent. On a handful of samples of a
# small network they are not quite.
CLOSE_DB = 1.5

MODEL = """<ir_version: 8, opset_import: ["": 13]> g (float[N,8,8,8] x) => (float[N,10] y)
    {
    [first] a = Conv<pads = [1, 1, 1, 1]>(x, w0, b0) [act0] c = Relu(a)
    [second] d = Conv<pads = [1, 1, 1, 1]>(c, w1, b1) [act1] e = Relu(d)
    [third] f = Conv(e, w2) [pool] p = GlobalAveragePool(f) [flat] q = Flatten(p)
    [last] y = Gemm(q, w3) }"""
LAYERS = ("first", "second", "third", "last")


def make_model(outlier: str | None = None) -> ir.Model:
    """Four layers; the weight of `outlier` has rows that int8 cannot hold: one huge element each, and small ones."""
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(MODEL)
    shapes = {"w0": (16, 8, 3, 3), "w1": (16, 16, 3, 3), "w2": (24, 16, 1, 1), "w3": (24, 10)}
    for name, shape in shapes.items():
        array = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        if name == outlier:
            array[:, 0] *= 1e4
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for name in ("b0", "b1"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=16).astype(np.float32), name))
    return ir.from_proto(model)


@pytest.fixture
def model() -> ir.Model:
    return make_model()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(32, 8, 8, 8)).astype(np.float32)


def effect_of(quantized: amct_onnx.QuantizedModel, model: ir.Model, images: np.ndarray) -> float:
    """Noise over signal of the lowered model, in integers that do not saturate."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    if quantized.target == "ascend":
        session = open_deployed(quantized.model())
    else:
        session = open_session(quantized.model(), options)
    (exact,), (got,) = (s.run(None, {"x": images}) for s in (open_session(model.clone()), session))
    return float(((got - exact) ** 2).sum() / (exact**2).sum())


def decibel(effect: float) -> float:
    return -10 * float(np.log10(effect))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend"])
def test_a_layer_alone_costs_what_it_costs_in_a_model_where_it_is_quantized_alone(
    model: ir.Model, images: np.ndarray, target: str
) -> None:
    """Alone, it reads what other units have rounded as well."""
    found = amct_onnx.sensitivity(model, images, target=target, samples=len(images))
    result = amct_onnx.quantize(model, images, target=target, effort="fast")
    effects = measure(result, [{"x": image[None]} for image in images])
    number = {unit.name: index for index, unit in enumerate(effects.units)}
    nodes = {decision.layer for decision in result.decisions if decision.quantized}
    for name in LAYERS:
        # What moves elements or pools stays in float here, since its operands do.
        alone = result.to(skip_layers=sorted(nodes - {name}))
        parts = [number[unit] for unit in (name, *effects.units[number[name]].reads)]
        expected = effects.noise[:, parts].sum() / effects.signal.sum()
        assert decibel(expected) == pytest.approx(decibel(effect_of(alone, model, images)), abs=CLOSE_DB)
    assert found.sqnr == pytest.approx(decibel(effect_of(result, model, images)), abs=0.5)
    effects = [layer.effect for layer in found.layers]
    assert effects == sorted(effects, reverse=True)
    assert found.outputs.keys() == {"y"}
    assert found.samples == len(images)


@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
@pytest.mark.parametrize(("weight", "layer"), [("w1", "second"), ("w2", "third"), ("w0", "first")])
def test_a_hopeless_layer_comes_first(images: np.ndarray, target: str, weight: str, layer: str) -> None:
    model = make_model(weight)
    images[:, 0] = 0  # what the huge weights multiply: they only widen the grid
    if weight != "w0":
        for value in model.graph.initializers.values():  # nor does the layer in front give anything there
            if value.name in {"w1": ("w0", "b0"), "w2": ("w1", "b1")}[weight]:
                array = value.const_value.numpy().copy()
                array[0] = 0
                value.const_value = ir.tensor(array, name=value.name)
    found = amct_onnx.sensitivity(model, images, target=target)
    assert found.layers[0].layer == layer
    assert found.layers[0].from_weight > 0.9
    assert layer in str(found).splitlines()[1]


def test_one_calibration_and_none_for_a_quantized_model(
    model: ir.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    run = collect.run_feed
    monkeypatch.setattr(collect, "run_feed", lambda *args, **texts: (runs.append(1), run(*args, **texts))[1])
    found = amct_onnx.sensitivity(model, images, batch_size=8, samples=4)
    assert len(runs) == 4
    result = amct_onnx.quantize(model, images, batch_size=8)
    del runs[:]
    again = amct_onnx.sensitivity(result, images, samples=4)
    assert runs == []
    assert {layer.layer for layer in again.layers} == {layer.layer for layer in found.layers}
    assert amct_onnx.sensitivity(result).samples == 1


# A convolution, a node that takes its first channel far out of the range of the others, and a layer that
# hardly reads this channel: the rounding behind that node is all that costs something.
SPREADING = {
    "Mul": "Mul(c, many)",
    "Mul, turned": "Mul(many, c)",
    "Add": "Add(c, far)",
    "Add, turned": "Add(far, c)",
}


def spread_model(kind: str, rank: int) -> ir.Model:
    rng = np.random.default_rng(0)
    space = ", ".join(["6"] * (rank - 2))
    pads = ", ".join(["1"] * 2 * (rank - 2))
    text = f"""<ir_version: 8, opset_import: ["": 15]> g (float[N,8,{space}] x) => (float[N,10,{space}] y) {{
        [first] c = Conv<pads = [{pads}]>(x, w0)
        [spread] s = {SPREADING[kind]}
        [last] y = Conv(s, w1) }}"""
    model = onnx.parser.parse_model(text)
    ones = (1,) * (rank - 2)
    arrays = {"w0": rng.normal(size=(16, 8, *[3] * (rank - 2))) / 9, "w1": rng.normal(size=(10, 16, *ones))}
    arrays["w1"][:, 0] *= 1e-6
    for name, value in (("many", 1e3), ("far", 80.0)):
        arrays[name] = np.zeros((1, 16, *ones)) if name == "far" else np.ones((1, 16, *ones))
        arrays[name][0, 0] = value
    for name, array in arrays.items():
        if name in text:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(model)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("kind", SPREADING)
def test_the_loss_goes_to_the_node_that_makes_it(kind: str, rank: int, target: str) -> None:
    data = np.random.default_rng(1).normal(size=(16, 8, *[6] * (rank - 2))).astype(np.float32)
    model = spread_model(kind, rank)
    found = amct_onnx.sensitivity(model, data, target=target)
    rows = {layer.layer: layer.sqnr for layer in found.layers}
    assert found.samples == 16
    if "spread" not in rows:  # a target may leave it in float, and then its result is the reader's
        assert found.layers[0].layer == "last"
        return
    assert found.layers[0].layer == "spread"
    assert min(sqnr for name, sqnr in rows.items() if name != "spread") > rows["spread"] + 12
    mixed = amct_onnx.quantize(model, data, target=target, effort="fast", min_sqnr=25, reduce_range=True)
    assert mixed.precision is not None
    assert mixed.precision.met
    assert "first" not in mixed.precision.result.float_layers


def test_values_that_are_not_finite_are_no_noise() -> None:
    """As a mask that is added to scores: -inf in both models."""
    text = """<ir_version: 8, opset_import: ["": 15]> g (float[N,6] x) => (float[N,6] y)
        <float[6] mask = {0, 0, 0, 0, 0, 0}> { [layer] s = MatMul(x, w) [masked] y = Add(s, mask) }"""
    model = onnx.parser.parse_model(text)
    mask = np.array([0, 0, -np.inf, 0, 0, 0], np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(mask, "mask"))
    weight = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    data = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    found = amct_onnx.sensitivity(ir.from_proto(model), data)
    assert 20 < found.sqnr < 60


def test_a_wild_sample_does_not_hide_the_others(model: ir.Model, images: np.ndarray) -> None:
    """One sample of 32 is so large that the others have few steps left, and that pooled figures are its own."""
    images[7] *= 200
    found = amct_onnx.sensitivity(model, images, samples=32, algorithm="min_max")
    assert found.median_sqnr < found.sqnr - 10
    assert "median" in str(found).splitlines()[0]


def test_it_is_the_same_in_every_run(model: ir.Model, images: np.ndarray) -> None:
    first, second = (amct_onnx.sensitivity(model, images) for _ in range(2))
    assert first == second


def test_wrong_arguments(model: ir.Model, images: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="samples=0"):
        amct_onnx.sensitivity(model, images, samples=0)
    statistics = amct_onnx.quantize(model, images).statistics
    with pytest.raises(ArgumentError, match="give data"):
        amct_onnx.sensitivity(amct_onnx.quantize(model, statistics))
    whole = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 13]> g (float[N,2] x) => (int64[N,1] y)
        <float[2,3] w = {1, 2, 3, 4, 5, 6}> { a = MatMul(x, w) y = ArgMax<axis = 1>(a) }""")
    with pytest.raises(ModelError, match="no float output"):
        amct_onnx.sensitivity(whole, np.ones((4, 2), np.float32))


SHARED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet20": ("resnet20_cifar10", "images/cifar10/calibration", {}),
    "yolox": ("yolox_nano", "images/coco128", {"images": "yolox"}),  # its batch is fixed
    "minilm": ("minilm_l6", "text/stsb/calibration.npz", {"names": {"input_ids": "ids_a", "attention_mask": "mask_a"}}),
}
# Effects of all layers at once, and of the lowered model on the same samples. Where hundreds of roundings follow each
# other, a sum in another order makes other errors of the same size; a few small images leave that to chance.
TOGETHER_DB = 2.0
SAMPLES = {"resnet20": 16, "yolox": 2, "minilm": 4}


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("resnet20", "onnxruntime"),
        ("resnet20", "ascend"),
        pytest.param("yolox", "ascend", marks=pytest.mark.slow),
        pytest.param("minilm", "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_shared_models(test_data: TestData, name: str, target: str) -> None:
    file, folder, options = SHARED[name]
    path, data = test_data("models", f"{file}.onnx"), test_data(*folder.split("/"))
    result = amct_onnx.quantize(path, data, target=target, limit=SAMPLES[name], **options)
    found = amct_onnx.sensitivity(result, data, samples=SAMPLES[name], batch_size=1, **options)
    data_options = DataOptions(limit=SAMPLES[name], batch_size=1, **options)
    samples = list(open_data(data, model_inputs(result.calibration.source.model), data_options))
    session_options = ort.SessionOptions()
    session_options.add_session_config_entry("session.x64quantprecision", "1")
    lowered = result.model()
    session = open_deployed(lowered) if target == "ascend" else open_session(lowered, session_options)
    effect = OutputNoise(ir.load(path), samples).noise_of(session)
    assert found.sqnr == pytest.approx(decibel(effect), abs=TOGETHER_DB)
    assert len(str(found).splitlines()) <= 15


def test_the_command(model: ir.Model, images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images)
    words = ["sensitivity", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npy"), "--samples", "2"]
    assert main(words) == 0
    expected = amct_onnx.sensitivity(tmp_path / "m.onnx", images, samples=2)
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if " dB " in line and "%" in line] == [
        layer.layer for layer in expected.layers
    ]
    assert f"{expected.sqnr:.1f} dB" in out


def test_layers_of_float16(model: ir.Model, images: np.ndarray) -> None:
    half = ir.from_proto(to_half(ir.to_proto(model)))
    data = images.astype(np.float16)
    found = amct_onnx.sensitivity(half, data, target="ascend", samples=len(images))
    result = amct_onnx.quantize(half, data, target="ascend")
    (exact,), (got,) = (s.run(None, {"x": data}) for s in (open_session(half.clone()), open_deployed(result.model())))
    exact, got = exact.astype(np.float64), got.astype(np.float64)
    assert {layer.layer for layer in found.layers} >= set(LAYERS)
    assert found.sqnr == pytest.approx(decibel(((got - exact) ** 2).sum() / (exact**2).sum()), abs=CLOSE_DB)
