"""Layers that go back to float compute what they compute in the user's model, whatever a recipe has done before."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from goals import judged

import amct_onnx
from amct_onnx.graph.passes.equalize import channel_groups
from amct_onnx.measure.output_judge import OutputJudge
from amct_onnx.numerics.arrays import Feed
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.ptq.mixed.goals import SqnrGoal
from amct_onnx.ptq.mixed.same_function import same_function
from amct_onnx.ptq.mixed.search import search_mixed
from amct_onnx.run.session import open_session
from amct_onnx.targets.calibration import SolvedGrids
from amct_onnx.targets.table import observed_tensors

TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend")


def make_model(clamp: str) -> ir.Model:
    rng = np.random.default_rng(0)
    text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[N,8,6,6] x) => (float[N,8,6,6] y) {{
        [one] a = Conv<pads = [1, 1, 1, 1]>(x, w0) [clamp1] b = {clamp.format("a")}
        [two] c = Conv<pads = [1, 1, 1, 1]>(b, w1) [clamp2] d = {clamp.format("c")}
        [three] y = Conv<pads = [1, 1, 1, 1]>(d, w2) }}"""
    model = onnx.parser.parse_model(text)
    for name in ("w0", "w1", "w2"):
        array = rng.normal(size=(8, 8, 3, 3)) / 6
        array[:4] *= 0.2 if name != "w2" else 1  # what equalization looks for
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    for name, value in (("zero", 0.0), ("six", 2.0)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    return ir.from_proto(model)


def samples(count: int, seed: int) -> list[Feed]:
    x = np.random.default_rng(seed).normal(size=(count, 1, 8, 6, 6)).astype(np.float32)
    return [{"x": sample} for sample in x]


def equalized(model: ir.Model, target: str) -> amct_onnx.QuantizedModel:
    """As a recipe leaves a model whose equalization was kept: factors that cut off much of some channels."""
    plain = amct_onnx.quantize(model, samples(32, 1), target=target, effort="fast")
    factors = np.array([0.05] * 4 + [1.0] * 4, np.float32)
    groups = channel_groups(plain.calibration.source.model)
    source = plain.calibration.source.divided({group.key: factors for group in groups})
    tensors = collect_statistics(source.model, observed_tensors(source), samples(32, 1))
    statistics = replace(plain.statistics, tensors=tensors, factors=source.factors)
    return plain.solved(replace(plain.calibration, source=source, statistics=statistics, solved=SolvedGrids()))


def decibel(model: ir.Model, other: ir.Model) -> float:
    both = [[open_session(m.clone()).run(None, feed)[0] for feed in samples(16, 9)] for m in (model, other)]
    exact, got = (np.concatenate(outputs).astype(np.float64) for outputs in both)
    return float(10 * np.log10((exact**2).sum() / max(((exact - got) ** 2).sum(), 1e-30)))


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_without_the_change_is_the_users(target: str) -> None:
    model = make_model("Clip({}, zero, six)")
    changed = equalized(model, target)
    assert decibel(model, changed.calibration.source.model) < 40
    undone = same_function(changed, samples(32, 1))
    assert undone is not None
    assert decibel(model, undone.calibration.source.model) > 100


@pytest.mark.parametrize("target", TARGETS)
def test_the_accuracy_of_a_result_is_that_beside_the_users_network(target: str) -> None:
    model = make_model("Clip({}, zero, six)")
    unseen = samples(16, 9)
    changed = equalized(model, target).measured(unseen)
    assert changed.accuracy is not None
    assert changed.accuracy.decibels == pytest.approx(OutputJudge(model, unseen).scores(changed.lowered).decibels)
    beside_the_changed = OutputJudge(changed.calibration.source.model, unseen).scores(changed.lowered).decibels
    assert changed.accuracy.decibels < beside_the_changed - 3


def test_what_nothing_clips_keeps_its_function_and_its_factors() -> None:
    model = make_model("Relu({})")
    changed = equalized(model, "onnxruntime")
    assert same_function(changed, samples(32, 1)) is None
    assert decibel(model, changed.calibration.source.model) > 100


@pytest.mark.parametrize("target", TARGETS)
def test_a_search_goes_beyond_what_the_change_allows(target: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("Clip({}, zero, six)")
    changed = equalized(model, target)
    allowed = decibel(model, changed.calibration.source.model)
    seen = samples(32, 1)
    goal = SqnrGoal(changed, seen[:16], samples(32, 2), required=allowed + 12)
    with caplog.at_level(logging.ERROR):
        result = search_mixed(changed, goal, seen, lambda *_: None)
    assert result.precision is not None
    assert result.precision.met
    assert "undone" in str(result.precision)
    other = judged(SqnrGoal(changed, seen, samples(32, 7), required=0.0), result.lowered.session())
    assert other.checked is not None
    assert other.checked >= allowed + 12


def test_a_change_that_is_in_nobodys_way_stays() -> None:
    model = make_model("Clip({}, zero, six)")
    changed = equalized(model, "onnxruntime")
    goal = SqnrGoal(changed, samples(16, 1), samples(32, 2), required=3.0)
    result = search_mixed(changed, goal, samples(32, 1), lambda *_: None)
    assert result.precision is not None
    assert len(result.precision.evaluations) == 1
    assert result.calibration.source is changed.calibration.source
