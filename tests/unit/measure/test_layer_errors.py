"""The errors of the parts of a quantized network, beside the same computed in another way."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest
from flow import CPU, build, images, normal, two_convs

import amct_onnx
from amct_onnx.errors import DataError
from amct_onnx.measure.layer_errors import LayerErrors, measure_layers
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.ptq.quantized_model import QuantizedModel


@pytest.fixture(scope="module")
def result() -> QuantizedModel:
    return amct_onnx.quantize(two_convs(), images(0, 8), effort="fast")


def samples(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": images(seed, 1)} for seed in range(10, 10 + count)]


@pytest.fixture(scope="module")
def errors(result: QuantizedModel) -> LayerErrors:
    return measure_layers(result.lowered.units(), samples())


def level(exact: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(found.astype(np.float64) - exact).sum() / np.square(exact, dtype=np.float64).sum())


def test_everything_rounded_is_the_quantized_model(result: QuantizedModel, errors: LayerErrors) -> None:
    noise = OutputNoise(result.calibration.source.model.clone(), samples())
    assert errors.level == pytest.approx(noise.noise(result.model()), rel=1e-3)
    each = noise.by_sample(result.lowered.exact_session()) / noise.signal
    assert errors.by_sample == pytest.approx(each[:, 0].tolist(), rel=1e-3)


def test_the_effects_are_those_of_sensitivity(result: QuantizedModel, errors: LayerErrors) -> None:
    arrays = np.concatenate([sample["x"] for sample in samples()])
    other = {one.layer: one for one in amct_onnx.sensitivity(result, arrays, samples=3).layers}
    found = {unit.unit: unit.effect for unit in errors.units}
    assert found["conv2"] == pytest.approx(other["conv2"].effect, rel=1e-6)
    assert found["x"] + found["conv1"] == pytest.approx(other["conv1"].effect, rel=1e-6)  # which reads the input


def test_a_layer_alone_is_compared_where_it_ends(result: QuantizedModel, errors: LayerErrors) -> None:
    unit = next(unit for unit in errors.units if unit.unit == "conv1")
    assert unit.tensor == "r"
    floats = result.calibration.source.model
    shown = build(
        """g (float[N,3,H,W] x) => (float[N,4,H,W] r) {
            a = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu (a) }""",
        w=floats.graph.initializers["w1"].const_value.numpy(),
        b=floats.graph.initializers["b1"].const_value.numpy(),
    )
    constants = result.lowered.units().constants["conv1"]
    rounded = build(
        """g (float[N,3,H,W] x) => (float[N,4,H,W] r) {
            a = Conv <pads=[1,1,1,1]> (x, w, b) r = Relu (a) }""",
        w=constants[1],
        b=constants[2],
    )
    exact, found, weights = [], [], []
    for sample in samples():
        exact.append(ort.InferenceSession(shown.SerializeToString(), providers=CPU).run(None, sample)[0])
        weights.append(ort.InferenceSession(rounded.SerializeToString(), providers=CPU).run(None, sample)[0])
        found.append(fake_quantize(weights[-1], result.activations["r"]))
    assert unit.alone is not None
    assert unit.alone.level == pytest.approx(level(np.stack(exact), np.stack(found)), rel=1e-4)
    angle = float((np.stack(exact) * np.stack(found)).sum() / np.linalg.norm(exact) / np.linalg.norm(found))
    assert unit.alone.cosine == pytest.approx(angle, abs=1e-6)
    share = level(np.stack(exact), np.stack(weights)) / level(np.stack(exact), np.stack(found))
    assert unit.from_constants == pytest.approx(share, rel=1e-3)


def test_errors_grow_along_the_network(errors: LayerErrors) -> None:
    first, second = (next(unit for unit in errors.units if unit.unit == name) for name in ("conv1", "conv2"))
    for unit in (first, second):
        assert unit.alone is not None
        assert unit.together is not None
        assert unit.together.level > unit.alone.level > 0
    assert second.together is not None
    assert second.together.level == pytest.approx(errors.level)  # it makes the output


def test_what_float_would_bring_is_what_it_brings(result: QuantizedModel, errors: LayerErrors) -> None:
    for choice in errors.in_float:
        again = result.to(skip_layers=choice.units)
        left = OutputNoise(result.calibration.source.model.clone(), samples()).noise(again.model())
        assert choice.level == pytest.approx(left, rel=0.05, abs=1e-9)
        assert choice.level < choice.before == pytest.approx(errors.level)


def test_the_worst_alone_are_measured_where_all_are_too_many(result: QuantizedModel) -> None:
    body = "\n".join(f"[c{n}] t{n} = Conv (t{n - 1}, w{n})" for n in range(1, 21))
    model = build(
        f"g (float[N,4,5,5] t0) => (float[N,4,5,5] t20) {{ {body} }}",
        **{f"w{n}": normal(n, 4, 4, 1, 1, scale=0.5) for n in range(1, 21)},
    )
    quantized = amct_onnx.quantize(model, normal(0, 8, 4, 5, 5), effort="fast")
    found = measure_layers(quantized.lowered.units(), [{"t0": normal(1, 1, 4, 5, 5)}] * 2, budget=1.0)
    measured = {unit.unit for unit in found.units if unit.effect is not None}
    levels = {unit.unit: unit.alone.level if unit.alone else math.inf for unit in found.units}
    assert 0 < len(measured) < len(found.units)
    assert found.effect_samples == 1
    assert min(levels[name] for name in measured) >= max(
        level for name, level in levels.items() if name not in measured
    )


def test_without_a_float_output_nothing_can_be_seen() -> None:
    model = build(
        "g (float[N,3,4,4] x) => (int64[N,4,4] y) { [c] a = Conv (x, w) [m] y = ArgMax <axis=1, keepdims=0> (a) }",
        w=normal(0, 5, 3, 1, 1),
    )
    quantized = amct_onnx.quantize(model, normal(0, 4, 3, 4, 4), effort="fast")
    with pytest.raises(DataError, match="no float output"):
        measure_layers(quantized.lowered.units(), [{"x": normal(1, 1, 3, 4, 4)}])
