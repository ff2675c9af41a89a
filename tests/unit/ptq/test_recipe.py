"""The recipe: what it keeps of the data, that it keeps only what helps, and that its result is what it judged."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from flow import build

import amct_onnx
from amct_onnx.data.batches import BatchRule
from amct_onnx.errors import ArgumentError, CalibrationError, StatisticsError
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.graph.naming import name_nodes
from amct_onnx.measure.output_judge import OutputJudge
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.ptq import noise as noisy_results
from amct_onnx.ptq.later_samples import LaterSamples, kept_places, most_kept
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.recipe import steps as recipe_steps
from amct_onnx.ptq.recipe.first_samples import PLANS, FirstSamples
from amct_onnx.targets.calibration import SolvedGrids, SolvedWeights
from amct_onnx.values.findings import EFFORTS, Tuning, WeightGrid

NETWORK = """g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(a)
    c = Conv(r, v, d)
    s = Relu(c)
    y = Conv(s, u)
}"""


def filled(body: str, **weights: np.ndarray) -> ir.Model:
    """A model of named nodes from ONNX text, with its initializers in float32."""
    model = ir.from_proto(build(body, **{name: array.astype(np.float32) for name, array in weights.items()}))
    name_nodes(model)
    return model


def network(spread: np.ndarray) -> ir.Model:
    """Channels of the first tensor are as large as `spread` says, which the second convolution makes up for."""
    random = np.random.default_rng(0)
    return filled(
        NETWORK,
        w=random.standard_normal((16, 3, 3, 3)) * spread[:, None, None, None],
        b=random.standard_normal(16) * spread,
        v=random.standard_normal((16, 16, 1, 1)) / spread[None, :, None, None],
        d=random.standard_normal(16),
        u=random.standard_normal((4, 16, 1, 1)),
    )


@pytest.fixture
def model() -> ir.Model:
    """A network of which quantization per tensor loses the small channels."""
    return network(np.geomspace(1, 1000, 16))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((48, 3, 8, 8)).astype(np.float32)


def noise(model: ir.Model, result: QuantizedModel, images: np.ndarray) -> float:
    judge = OutputNoise(model.clone(), [{"x": image[None]} for image in images])
    return judge.noise_of(result.lowered.exact_session())


def judged(model: ir.Model, result: QuantizedModel, images: np.ndarray) -> float:
    judge = OutputJudge(model.clone(), [{"x": image[None]} for image in images])
    return judge.scores(result.lowered).decibels


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt", "openvino", "ascend"])
def test_more_effort_leaves_less_error_on_samples_that_were_not_seen(
    model: ir.Model, images: np.ndarray, target: str
) -> None:
    unseen = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    results = {effort: amct_onnx.quantize(model, images, target=target, effort=effort) for effort in EFFORTS}
    errors = {effort: noise(model, result, unseen) for effort, result in results.items()}
    assert errors["default"] < 0.5 * errors["fast"]
    assert errors["best"] < 1.1 * errors["default"]  # it was chosen by other samples than these
    assert results["fast"].steps == ()


def test_every_step_says_what_it_brought_and_is_kept_only_if_that_is_something(
    model: ir.Model, images: np.ndarray
) -> None:
    steps = amct_onnx.quantize(model, images, effort="best").steps
    assert {step.name.split(" ")[0] for step in steps} >= {"equalization", "rounding"}
    for step in (step for step in steps if step.after is not None):
        assert step.error > 0 or step.name == "calibration with all data"
        assert step.kept == (step.after - step.before > step.error)
        assert f"{step.before:.2f} -> {step.after:.2f} dB" in str(step)


@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_where_a_first_quantization_is_noisy_the_last_number_is_that_of_the_result(
    model: ir.Model, images: np.ndarray, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first one has seen a part of the data: here the easy one."""
    data = images * np.where(np.arange(len(images)) < 24, 1, 8).astype(np.float32)[:, None, None, None]
    judges = data[::3]
    monkeypatch.setattr("amct_onnx.ptq.recipe.steps._LEAST_SHARE", 0.0)
    monkeypatch.setattr("amct_onnx.ptq.recipe.steps._SURE", -99.0)
    step = amct_onnx.quantize(model, data, target=target, algorithm="mse").steps[-1]
    assert step.first
    assert " dB in a first quantization, +" in str(step)
    monkeypatch.setattr("amct_onnx.ptq.recipe.steps._SURE", step.after + 0.01)
    result = amct_onnx.quantize(model, data, target=target, algorithm="mse")
    step = result.steps[-1]
    assert not step.first
    assert step.name == "calibration with all data"
    assert step.after == pytest.approx(judged(model, result, judges), abs=1e-6)
    assert abs(step.after - step.before) > 0.1


def test_the_float_function_stays(model: ir.Model, images: np.ndarray) -> None:
    result = amct_onnx.quantize(model, images)
    assert result.calibration.source.factors
    judge = OutputNoise(model.clone(), [{"x": image[None]} for image in images[:4]])
    assert judge.noise(result.calibration.source.model.clone()) < 1e-10


def test_the_same_data_give_the_same_bytes(model: ir.Model, images: np.ndarray) -> None:
    first, second = (amct_onnx.quantize(model, images, batch_size=size).model() for size in (1, 8))
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


def test_statistics_carry_the_factors_of_their_model(
    model: ir.Model, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = amct_onnx.quantize(model, images)
    path = tmp_path_factory.mktemp("s") / "s.npz"
    amct_onnx.save_statistics(result.statistics, path)
    loaded = amct_onnx.load_statistics(path)
    assert loaded == result.statistics
    again = amct_onnx.quantize(model, loaded)
    assert {name: grid.scale.tolist() for name, grid in again.activations.items()} == {
        name: grid.scale.tolist() for name, grid in result.activations.items()
    }
    fast = amct_onnx.quantize(model, images, effort="fast").statistics
    assert not fast.factors
    with pytest.raises(StatisticsError, match=r"different models|differently equalized"):
        loaded.merge(fast)


def test_other_targets_keep_what_was_found(model: ir.Model, images: np.ndarray) -> None:
    result = amct_onnx.quantize(model, images)
    unseen = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    for target in ("openvino", "ascend"):
        fast = amct_onnx.quantize(model, images, target=target, effort="fast")
        assert noise(model, result.to(target), unseen) < 0.5 * noise(model, fast, unseen)


def test_with_settings_or_few_samples_there_is_no_recipe(model: ir.Model, images: np.ndarray) -> None:
    assert amct_onnx.quantize(model, images[:3]).steps == ()
    fast = amct_onnx.quantize(model, images[:3], effort="fast")
    assert ir.to_proto(fast.model()) == ir.to_proto(amct_onnx.quantize(model, images[:3]).model())


def test_outputs_that_stay_noisy_are_told_of_with_the_cure(
    model: ir.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as noisier:
        noisier.setattr(noisy_results, "_NOISY", -60)
        assert amct_onnx.quantize(model, images).accuracy is not None
        assert "above the noise of int8" not in caplog.text
    monkeypatch.setattr(noisy_results, "_NOISY", 60)
    for effort, where in (("fast", "of the calibration"), ("default", "held out")):
        caplog.clear()
        accuracy = amct_onnx.quantize(model, images, effort=effort).accuracy
        assert accuracy is not None
        assert f"only {accuracy.decibels:.1f} dB above the noise of int8 on samples {where}: min_sqnr=60" in caplog.text


def test_ranges_of_the_first_samples_stay_where_rare_values_would_cost_all_others(
    model: ir.Model, images: np.ndarray
) -> None:
    many = np.concatenate([images] * 10)
    many[301, :, 3, 3] = 400.0
    result = amct_onnx.quantize(model, many)
    steps = [step for step in result.steps if step.name == "ranges of the first samples"]
    assert [step.kept for step in steps] == [True]
    unseen = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    plain = amct_onnx.quantize(model, many, effort="fast")
    assert judged(model, result, unseen) > judged(model, plain, unseen) + 10
    assert not [step for step in amct_onnx.quantize(model, images).steps if step.name == "ranges of the first samples"]


@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_a_few_wild_samples_among_the_first_do_not_cost_all_others(
    model: ir.Model, images: np.ndarray, target: str
) -> None:
    many = np.concatenate([images] * 10)
    many[[1, 8, 130]] *= 100
    unseen = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    plain = judged(model, amct_onnx.quantize(model, many, target=target, effort="fast"), unseen)
    for effort in ("default", "best"):
        result = amct_onnx.quantize(model, many, target=target, effort=effort)
        kept = {step.name for step in result.steps if step.kept}
        assert {"calibration with the calmest samples", "ranges of the first samples"} <= kept
        assert judged(model, result, unseen) > plain + 10


def test_wild_samples_behind_the_first_do_not_cost_all_others(
    model: ir.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where a first quantization was so good that the calibration is not measured otherwise."""
    monkeypatch.setattr(recipe_steps, "_SURE", 20.0)
    many = np.concatenate([images] * 10)
    many[301] *= 100
    unseen = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    result = amct_onnx.quantize(model, many)
    (step,) = (step for step in result.steps if step.name == "calibration with all data")
    assert step.before > 20 > step.after
    assert judged(model, result, unseen) > 20


def test_the_calmest_samples_are_not_tried_where_nothing_is_to_be_gained(model: ir.Model, images: np.ndarray) -> None:
    assert "calmest" not in str(amct_onnx.quantize(model, np.concatenate([images] * 10)).steps)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend"])
def test_the_ranges_of_a_model_give_it_again(model: ir.Model, images: np.ndarray, target: str) -> None:
    result = amct_onnx.quantize(model, images, target=target, effort="fast", full_int8=True)
    spans = result.lowered.spans()
    again = result.solved(replace(result.calibration, tuning=Tuning(ranges=spans))).lowered.activations
    half = result.solved(
        replace(result.calibration, tuning=Tuning(ranges={k: (low / 2, high / 2) for k, (low, high) in spans.items()}))
    ).lowered
    assert spans
    for name, grid in result.lowered.activations.items():
        np.testing.assert_allclose(again[name].scale, grid.scale, rtol=1e-6)
        assert again[name].zero_point == grid.zero_point
    assert all(half.spans()[key] != span for key, span in spans.items())


@pytest.mark.parametrize("factor", [2, 8])
def test_ranges_of_the_first_samples_do_not_stay_where_later_ones_are_larger(
    model: ir.Model, images: np.ndarray, factor: int
) -> None:
    """All samples that the recipe keeps are faint ones; those behind them would be clipped."""
    data = np.concatenate([images, images, factor * images])
    result = amct_onnx.quantize(model, data)
    (step,) = (step for step in result.steps if step.name == "ranges of the first samples")
    assert not step.kept
    assert step.after < step.before  # as the later samples see it
    unseen = np.random.default_rng(2).standard_normal((16, 3, 8, 8)).astype(np.float32)
    assert judged(model, result, factor * unseen) > 20


def test_later_samples_are_those_behind_the_first_at_equal_distances(model: ir.Model) -> None:
    rule = BatchRule.of(model_inputs(model))
    found = []
    for size in (1, 7, 100):
        numbers = np.arange(700, dtype=np.float32).reshape(-1, 1, 1, 1)
        feeds = (
            {"x": np.broadcast_to(numbers[start : start + size], (len(numbers[start : start + size]), 3, 8, 8))}
            for start in range(0, 700, size)
        )
        front = FirstSamples(feeds, rule, PLANS["default"])
        later, place = LaterSamples(rule, most_kept(front.samples[0], 1 << 30)), 0
        for feed in front.others():
            later.look(feed, place)
            place += rule.count(feed)
        found.append([int(sample["x"][0, 0, 0, 0]) for sample in later.kept])
    assert found[0] == found[1] == found[2] == [96 + place for place in kept_places(700 - 96, 24)]
    distances = np.diff(found[0])
    assert found[0][0] == 96
    assert (distances == distances[0]).all()
    assert 12 <= len(found[0]) <= 24
    assert found[0][-1] + distances[0] >= 700


def test_a_target_with_a_tool_of_its_own_tries_its_ranges(model: ir.Model, images: np.ndarray) -> None:
    result = amct_onnx.quantize(model, images, target="ascend")
    (step,) = (step for step in result.steps if step.name == "ranges by ifmr")
    assert step.kept == (step.after - step.before > step.error)
    assert (result.calibration.tuning.algorithm is not None) == step.kept
    named = amct_onnx.quantize(model, images, target="ascend", algorithm="mse")
    assert not [step for step in named.steps if step.name == "ranges by ifmr"]
    elsewhere = amct_onnx.quantize(model, images)
    assert not [step for step in elsewhere.steps if step.name == "ranges by ifmr"]
    assert result.to("openvino").calibration.tuning.algorithm is None


def test_an_unknown_effort_is_refused(model: ir.Model, images: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="'high' is unknown: use one of fast, default, best"):
        amct_onnx.quantize(model, images, effort="high")


def test_the_front_gives_all_feeds_and_keeps_the_first_samples(model: ir.Model) -> None:
    feeds = [{"x": np.full((5, 3, 8, 8), number, np.float32)} for number in range(40)]
    front = FirstSamples(iter(feeds), BatchRule.of(model_inputs(model)), PLANS["default"])
    assert front.plan.samples == 2 * PLANS["default"].samples  # small ones
    assert [int(sample["x"][0, 0, 0, 0]) for sample in front.samples] == [n // 5 for n in range(front.plan.samples)]
    assert [int(feed["x"][0, 0, 0, 0]) for feed in front.all()] == list(range(40))


def test_what_is_behind_the_kept_samples_is_all_the_rest(model: ir.Model) -> None:
    rule, numbers = BatchRule.of(model_inputs(model)), np.arange(200, dtype=np.float32).reshape(-1, 1, 1, 1)
    for size in (1, 5, 7, 96, 200):
        feeds = [{"x": numbers[start : start + size]} for start in range(0, 200, size)]
        front = FirstSamples(iter(feeds), rule, PLANS["default"])
        assert (front.count(), front.whole) == (96, 96 // size)
        rest = [float(number) for feed in front.others() for number in feed["x"].reshape(-1)]
        assert rest == list(range(96, 200))


def test_the_kept_samples_run_in_batches_that_do_not_depend_on_those_of_the_data(model: ir.Model) -> None:
    rule, images = BatchRule.of(model_inputs(model)), np.arange(20, dtype=np.float32)[:, None, None, None]
    whole = np.broadcast_to(images, (20, 3, 8, 8))
    for size in (1, 7, 20):
        feeds = ({"x": whole[start : start + size]} for start in range(0, 20, size))
        front = FirstSamples(iter(feeds), rule, PLANS["default"])
        batches = front.batches(front.samples[3:], front.rows)
        assert [feed["x"][:, 0, 0, 0].tolist() for feed in batches] == [
            list(range(3, 11)),
            list(range(11, 19)),
            [19],
        ]


def test_a_network_for_one_sample_at_a_time_has_a_recipe_as_well(
    images: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    text = """g (float[n,3,8,8] x) => (float[k,4] y)
        <int64[2] one = {1, 192}> { flat = Reshape(x, one) y = Gemm(flat, w) }"""
    model = filled(text, w=np.random.default_rng(0).standard_normal((192, 4)))
    result = amct_onnx.quantize(model, [{"x": image[None]} for image in images])
    assert [step.reason for step in result.steps] == [""]
    assert result.steps[0].name == "rounding by gptq, biases corrected"
    assert "onnxruntime" not in capfd.readouterr().err  # it was asked to run a batch, and refused


def test_a_network_that_mixes_the_samples_of_a_batch_is_judged_by_one_at_a_time(images: np.ndarray) -> None:
    text = """g (float[n,3,8,8] x) => (float[n,4,8,8] y)
        { a = Conv(x, w) top = ReduceMax<keepdims=0>(a) y = Div(a, top) }"""
    model = filled(text, w=np.random.default_rng(0).standard_normal((4, 3, 1, 1)))
    feeds = [{"x": image[None] * np.float32(1 + index)} for index, image in enumerate(images)]
    result = amct_onnx.quantize(model, feeds, full_int8=True)
    (step,) = result.steps
    judge = OutputJudge(model.clone(), feeds[::3])
    reached = judge.scores(result.lowered).decibels
    assert (step.after if step.kept else step.before) == pytest.approx(reached, abs=1e-6)


def test_weights_of_equal_bytes_are_not_taken_for_each_other() -> None:
    spec, solved = QSpec(channel_axis=0), SolvedGrids()
    rows = np.arange(1, 7, dtype=np.float32)
    for shape in ((2, 3), (3, 2), (1, 6)):
        found = solved.weight(solve_weight_mse, rows.reshape(shape), spec)
        assert found.scale.tolist() == solve_weight_mse(rows.reshape(shape), spec).scale.tolist()


def test_a_weight_that_trials_share_is_read_once(model: ir.Model) -> None:
    memory, read = SolvedWeights(), []

    def rows(layer: Layer) -> np.ndarray:
        read.append(layer.name)
        return layer.array().reshape(layer.shape[0], -1)

    told = []
    for some in (model, model.clone(), model.clone()):
        layers = [layer for node in some.graph if (layer := as_layer(node)) is not None]
        told.append([memory.told(layer, partial(rows, layer)) for layer in layers])
    assert told[0] == told[1] == told[2]
    assert len(read) == len(set(read)) == len(told[0]) > 0
    other = as_layer(next(node for node in model.clone().graph if as_layer(node) is not None))
    other.replace_weight(other.array() * 2, names=ValueNames(model))
    digest, largest = memory.told(other, partial(rows, other))
    assert digest != told[0][0][0]
    assert largest == 2 * told[0][0][1]


def test_a_range_counts_for_the_same_tensors_only(model: ir.Model, images: np.ndarray) -> None:
    result = amct_onnx.quantize(model, images, effort="fast")
    group = next(group for group in result.lowered.plan.groups if group.tensors[0] == "r")

    def tuned(sources: tuple[str, ...]) -> QuantizedModel:
        return result.solved(replace(result.calibration, tuning=Tuning(ranges={sources: (0.0, 1.0)})))

    narrow = tuned(group.sources)
    assert narrow.activations["r"].scale == pytest.approx(1 / 255)
    joined = tuned((*group.sources, "s"))
    assert joined.activations["r"].scale == result.activations["r"].scale


def test_equalization_that_promises_little_is_left_to_best(images: np.ndarray) -> None:
    model = network(np.ones(16))
    first = amct_onnx.quantize(model, images, full_int8=True).steps[0]
    assert first.name.startswith("equalization")
    assert re.search(r"not tried, it promises -?\d\.\d dB, and less than 2.5 seldom holds", str(first))
    assert all(
        step.after is not None for step in amct_onnx.quantize(model, images, effort="best", full_int8=True).steps
    )


def test_rounding_of_large_networks_without_a_bias_to_correct_is_left_to_best(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """g (float[n,3,8,8] x) => (float[n,3,8,4] y) { y = MatMul(x, w) }"""
    model = filled(text, w=np.random.default_rng(0).standard_normal((8, 4)))
    (step,) = amct_onnx.quantize(model, images).steps
    assert step.name == "rounding by gptq"
    assert step.after is not None
    monkeypatch.setattr(recipe_steps, "_LARGE", 0)
    (step,) = amct_onnx.quantize(model, images).steps
    told = "rounding: not tried, of a large network without a bias to correct; effort='best' tries it"
    assert str(step) == told
    best = [step for step in amct_onnx.quantize(model, images, effort="best").steps if step.after is not None]
    assert "rounding by gptq" in {step.name for step in best}


def test_weights_that_make_no_noise_are_not_rounded_again(images: np.ndarray) -> None:
    text = """g (float[n,3,8,8] x) => (float[n,4,8,8] y) { y = Conv(x, w) }"""
    integers = np.random.default_rng(0).integers(-127, 128, (4, 3, 1, 1))
    integers[:, 0] = 127  # the scale of each channel is a power of two
    model = filled(text, w=integers / 128)
    result = amct_onnx.quantize(model, images, full_int8=True)
    (step,) = result.steps
    assert str(step) == "rounding: not tried, weights make 0% of the noise"
    assert step.before == pytest.approx(judged(model, result, images[::3]), abs=1e-6)


def test_channels_on_another_grid_are_rounded_to_nearest() -> None:
    spec = QSpec(channel_axis=0)
    rows = np.array([[1.4, 3.6], [1.4, 3.6], [1.4, 3.6]], np.float32)
    zeros = np.zeros(3, np.int32)
    found = WeightGrid(
        params=QParams(scale=np.array([1, 1, 2], np.float32), zero_point=zeros, spec=spec),
        integers=np.array([[2, 3], [2, 3], [1, 1]], np.int8),
        correction=np.array([0.5, 0.25, 0.125]),
    )
    tuning = Tuning(weights={"layer": found})
    other = QParams(scale=np.array([1, 2, 2], np.float32), zero_point=zeros, spec=spec)
    mixed = tuning.weight("layer", other, rows.copy)
    assert mixed is not None
    assert mixed.integers.tolist() == [[2, 3], [1, 2], [1, 1]]
    assert mixed.correction.tolist() == [0.5, 0.0, 0.125]
    assert tuning.weight("layer", other) is None
    assert tuning.weight("layer", found.params) is found
    assert tuning.weight("other", found.params, rows.copy) is None


def test_integers_count_as_what_they_stand_for() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (int64[n,l] ids, float[100,8] table) => (float[n,l,8] y)
        { y = Gather(table, ids) }"""
    rule = BatchRule.of(model_inputs(ir.from_onnx_text(text))[:1])
    cases = (np.int64, 256, 48, 1), (np.int64, 64, 48, 3), (np.int32, 4, 96, 8), (np.uint8, 64, 96, 8)  # uint8: pixels
    for dtype, length, samples, rows in cases:
        feeds = [{"ids": np.zeros((5, length), dtype)} for _ in range(40)]
        front = FirstSamples(iter(feeds), rule, PLANS["default"])
        assert len(front.samples) == samples
        assert front.rows == rows


def test_a_step_that_cannot_be_tried_takes_nothing_from_those_before(
    model: ir.Model, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise CalibrationError("no memory")

    monkeypatch.setattr("amct_onnx.ptq.recipe.steps.round_weights", refuse)
    result = amct_onnx.quantize(model, images, full_int8=True)
    assert [(step.kept, step.after is None) for step in result.steps[:2]] == [(True, False), (False, True)]
    assert str(result.steps[1]) == "rounding by gptq, biases corrected: not tried, no memory"
    assert result.calibration.source.factors
    assert not result.calibration.tuning.weights


def test_an_input_that_is_no_batch_is_not_cut() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[n,4] x, float[k,4] table, float factor) => (float[n,k] y) {
        t = Transpose<perm=[1,0]>(table) m = MatMul(x, t) y = Mul(m, factor) }"""
    rule = BatchRule.of(model_inputs(ir.from_onnx_text(text)))
    feed = {"x": np.ones((6, 4), np.float32), "table": np.ones((3, 4), np.float32), "factor": np.float32(2)}
    front = FirstSamples(iter([{name: np.asarray(array) for name, array in feed.items()}]), rule, PLANS["default"])
    assert len(front.samples) == 6
    assert {name: array.shape for name, array in front.samples[0].items()} == {
        "x": (1, 4),
        "table": (3, 4),
        "factor": (),
    }
