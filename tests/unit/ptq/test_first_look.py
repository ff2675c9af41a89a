"""What the first samples show: counted as the calibration counts, and not again."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from flow import build

import amct_onnx
from amct_onnx.data.batches import BatchRule
from amct_onnx.errors import CalibrationError
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.numerics.arrays import Feed
from amct_onnx.observe.channel_maxima import channel_maxima
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.plan.float_model import FloatModel, FusedModel
from amct_onnx.ptq.recipe.first_look import FirstLook, look_at
from amct_onnx.ptq.recipe.first_samples import PLANS, FirstSamples
from amct_onnx.run.session import open_session
from amct_onnx.targets.table import observed_tensors

NETWORK = """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) y = Conv(b, v) }"""
MIXING = """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) top = ReduceMax<keepdims=0>(a) b = Div(a, top) y = Conv(b, v) }"""


def network(text: str) -> ir.Model:
    random = np.random.default_rng(0)
    w, v = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 3, 3, 3), (4, 4, 1, 1)))
    return ir.from_proto(build(text, w=w, v=v))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((20, 3, 8, 8)).astype(np.float32)


def look(text: str, feeds: list[Feed]) -> tuple[FusedModel, FirstSamples, FirstLook]:
    source = FloatModel.open(network(text)).prepared()
    samples = FirstSamples(iter(feeds), BatchRule.of(model_inputs(source.model)), PLANS["default"])
    tensor = source.model.graph[0].outputs[0].name
    return source, samples, look_at(source, samples, {(tensor, 1), (tensor, -1)})


@pytest.mark.parametrize("size", [1, 3, 20])
def test_it_shows_what_runs_of_their_own_would_show(images: np.ndarray, size: int) -> None:
    source, samples, found = look(NETWORK, [{"x": images[start : start + size]} for start in range(0, 20, size)])
    names, model = observed_tensors(source), source.model
    assert found.counted == collect_statistics(model, names, [{"x": images}])
    assert found.quick == collect_statistics(model, names, list(found.fit[: samples.plan.quick]))
    for (tensor, axis), largest in found.maxima.items():
        np.testing.assert_array_equal(largest, channel_maxima(model, [tensor], found.fit, axis=axis)[tensor])
    assert {axis for _, axis in found.maxima} == {1, -1}
    judges = [images[index : index + 1] for index in samples.judges()]
    exact = np.concatenate([open_session(model).run(None, {"x": image})[0] for image in judges])
    signal = found.judge.scores_of(open_session(model)).signal
    assert signal.sum() == pytest.approx(np.square(exact.astype(np.float64)).sum(), rel=1e-6)
    assert len(judges) + len(found.fit) == 20


def test_it_knows_the_calmest_samples_where_those_that_came_first_reach_further(images: np.ndarray) -> None:
    assert look(NETWORK, [{"x": images}])[2].calmest is None
    many = np.concatenate([images] * 4)
    many[:9] *= 50
    source, _, found = look(NETWORK, [{"x": many}])
    calm = found.calmest
    assert calm is not None
    names, model = observed_tensors(source), source.model
    assert calm.quick == collect_statistics(model, names, list(calm.fit[: calm.few]))
    assert found.counted == collect_statistics(model, names, [{"x": many}])
    assert max(float(np.abs(feed["x"]).max()) for feed in calm.fit[: calm.few]) < 5
    assert sorted(map(id, calm.fit)) == sorted(map(id, found.fit))
    assert calm.calmest is None


def test_samples_that_a_network_mixes_are_run_again_as_they_came(images: np.ndarray) -> None:
    _, _, found = look(MIXING, [{"x": images}])
    assert found.counted is None
    assert found.rows == 1


def test_nothing_is_counted_for_good_where_a_sample_holds_nan(images: np.ndarray) -> None:
    images[3] = np.nan
    _, _, found = look(NETWORK, [{"x": images}])
    assert found.counted is None


@pytest.mark.parametrize("samples", [20, 130])
def test_every_sample_counts_once_in_the_statistics_of_a_calibration(samples: int) -> None:
    images = np.random.default_rng(2).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    model = network(NETWORK)
    fast = amct_onnx.quantize(model, images, effort="fast", full_int8=True)
    for size in (1, 7, samples):
        feeds = [{"x": images[start : start + size]} for start in range(0, samples, size)]
        result = amct_onnx.quantize(model, feeds, full_int8=True)
        if result.calibration.statistics.factors:
            continue
        assert result.calibration.statistics == fast.calibration.statistics
        assert (result.data.samples, result.data.feeds) == (samples, len(feeds))


def test_a_batch_behind_the_first_samples_is_told_of_by_its_own_number(
    images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    feeds = [{"x": images[index % 20 : index % 20 + 1]} for index in range(110)]
    feeds[104] = {"x": np.full((1, 3, 8, 8), 3e38, np.float32)}  # sums of it are infinite
    with caplog.at_level("INFO", "amct_onnx"), pytest.raises(CalibrationError, match="NaN or Inf"):
        amct_onnx.quantize(network(NETWORK), feeds)
    assert [record for record in caplog.messages if "of batch 105:" in record]
