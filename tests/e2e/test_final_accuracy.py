"""The accuracy of a result is measured at every effort, is in the report of every target, and warned of where poor."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from flow import build, normal

import amct_onnx

GOOD = """g (float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv (x, w) [relu] r = Relu (a) p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, v) }"""
EFFORTS = ["fast", "default"]
TARGETS = ["onnxruntime", "openvino", "tensorrt", "ascend"]


def good() -> object:
    return build(GOOD, w=normal(1, 8, 3, 3, 3), v=normal(2, 8, 5))


def poor() -> object:
    """The mean of its inputs is lost in the weights: what is left of them is small beside a step of int8."""
    weight = normal(1, 32, 8)
    return build(
        "g (float[N,32] x) => (float[N,8] y) { y = Gemm (x, w, b) }", w=weight - weight.mean(0), b=normal(2, 8) * 0.1
    )


def large() -> np.ndarray:
    return 100 + normal(3, 96, 32) * np.float32(0.1)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_report_is_a_summary_with_the_accuracy(tmp_path: Path, effort: str, target: str) -> None:
    result = amct_onnx.quantize(good(), normal(3, 64, 3, 8, 8), effort=effort, target=target)
    text = str(result.save(tmp_path / "m").report)
    assert 3 <= len(text.splitlines()) <= 25
    assert result.accuracy is not None
    assert text.startswith(f"Accuracy: SQNR {result.accuracy.decibels:.1f} dB, same top-1 for ")
    assert re.search(r"Size: .* before, .* after", text)
    assert "(" not in text.splitlines()[1].split(":")[0]
    assert result.accuracy.held_out == (effort == "default")


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_a_poor_result_is_warned_of(caplog: pytest.LogCaptureFixture, effort: str, target: str) -> None:
    result = amct_onnx.quantize(poor(), large(), effort=effort, target=target)
    assert result.accuracy is not None
    assert result.accuracy.decibels < 12
    (told,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "dB" in r.getMessage()]
    assert f"only {result.accuracy.decibels:.1f} dB above the noise" in told
    caplog.clear()
    amct_onnx.quantize(good(), normal(3, 64, 3, 8, 8), effort=effort, target=target)
    assert "above the noise" not in caplog.text


def test_the_figure_is_that_of_the_samples(tmp_path: Path) -> None:
    result = amct_onnx.quantize(good(), normal(3, 64, 3, 8, 8), effort="fast")
    assert result.accuracy is not None
    assert len(result.judges) == result.accuracy.samples == 16
    float_model, int8 = good(), result.lowered.exact_session()
    import onnxruntime as ort

    session = ort.InferenceSession(float_model.SerializeToString())  # type: ignore[attr-defined]
    pairs = [(session.run(None, feed)[0], int8.run(None, feed)[0]) for feed in result.judges]
    same = np.mean([one.argmax() == two.argmax() for one, two in pairs])
    assert result.accuracy.same_top1 == pytest.approx(same)
    noise = sum(np.square(one - two).sum() for one, two in pairs) / sum(np.square(one).sum() for one, _ in pairs)
    assert result.accuracy.decibels == pytest.approx(-10 * np.log10(noise), abs=3)  # the mean with that of each sample


def test_another_target_is_measured_when_it_is_saved(tmp_path: Path) -> None:
    other = amct_onnx.quantize(good(), normal(3, 64, 3, 8, 8)).to("tensorrt")
    assert other.accuracy is None
    report = other.save(tmp_path / "m").report
    assert report is not None
    assert report.accuracy is not None


@pytest.mark.parametrize("words", [{"weight_only": 8}, {"weight_only": 8, "effort": "fast"}, {"min_sqnr": 10.0}])
def test_other_ways_are_measured_too(words: dict[str, object]) -> None:
    accuracy = amct_onnx.quantize(good(), normal(3, 64, 3, 8, 8), **words).accuracy
    assert accuracy is not None
    assert accuracy.decibels > 20
    assert accuracy.held_out


def test_without_samples_nothing_is_measured(tmp_path: Path) -> None:
    counted = amct_onnx.quantize(good(), normal(3, 64, 3, 8, 8), effort="fast").statistics
    report = amct_onnx.quantize(good(), counted).save(tmp_path / "m").report
    assert str(report).startswith("Accuracy: not measured, there were no samples for it")
