"""The judge of outputs: their parts, the view in front of probabilities, and the error of a gain."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from flow import build
from hypothesis import given
from hypothesis import strategies as st

import amct_onnx
from amct_onnx.graph.naming import name_nodes
from amct_onnx.measure.output_judge import OutputJudge, Scores, gain
from amct_onnx.measure.output_parts import output_parts
from amct_onnx.run.session import open_session

DETECTOR = """g (float[n,3,8,8] x) => (float[n,k,6] y) <int64[3] rows = {0, 6, -1}> {
    near = Conv(x, a)
    near_box = Slice(near, zero, four, one)
    near_raw = Slice(near, four, six, one)
    near_score = Sigmoid(near_raw)
    far_map = Conv<strides=[2,2]>(x, b)
    far_box = Slice(far_map, zero, four, one)
    far_raw = Slice(far_map, four, six, one)
    far_score = Sigmoid(far_raw)
    first = Concat<axis=1>(near_box, near_score)
    second = Concat<axis=1>(far_box, far_score)
    first_rows = Reshape(first, rows)
    second_rows = Reshape(second, rows)
    both = Concat<axis=2>(first_rows, second_rows)
    y = Transpose<perm=[0,2,1]>(both)
}"""


def named(text: str, **constants: np.ndarray) -> ir.Model:
    model = ir.from_proto(build(text, **constants))
    name_nodes(model)
    return model


@pytest.fixture
def detector() -> ir.Model:
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((6, 3, 1, 1)).astype(np.float32) for name in "ab"}
    sizes = {"zero": 0, "four": 4, "six": 6, "one": 1}
    return named(DETECTOR, **weights, **{name: np.array([size], np.int64) for name, size in sizes.items()})


@pytest.fixture
def samples() -> list[dict[str, np.ndarray]]:
    images = np.random.default_rng(1).standard_normal((16, 1, 3, 8, 8)).astype(np.float32)
    return [{"x": image} for image in images]


def test_boxes_and_scores_of_all_levels_are_two_parts(detector: ir.Model) -> None:
    parts = output_parts(detector)
    assert [part.tensors for part in parts] == [("near_box", "far_box"), ("near_score", "far_score")]
    assert [len(part.squash) for part in parts] == [0, 2]


def test_an_output_that_joins_nothing_is_one_part() -> None:
    model = named("g (float[n,4] x) => (float[n,4] y) { s = Softmax(x) y = Identity(s) }")
    (part,) = output_parts(model)
    assert (part.output, part.tensors, len(part.squash)) == ("y", ("y",), 1)
    joined = named("g (float[n,4] x) => (float[n,5] y) <float[1,1] c = {1.0}> { y = Concat<axis=1>(x, c) }")
    assert [part.tensors for part in output_parts(joined)] == [("y",)]


def test_noise_of_a_part_counts_by_its_own_power(detector: ir.Model, samples: list[dict[str, np.ndarray]]) -> None:
    """Boxes are changed, scores are not: brute force on the columns of the output."""
    changed = detector.clone()
    weight = changed.graph.initializers["a"]
    array = weight.const_value.numpy().copy()
    array[:4] *= 1.5
    weight.const_value = ir.tensor(array)
    judge = OutputJudge(detector, samples)
    scores = judge.scores_of(open_session(changed))
    exact, session = open_session(detector), open_session(changed)
    for number, sample in enumerate(samples):
        one, two = exact.run(None, sample)[0], session.run(None, sample)[0]
        assert scores.noise[number, 0] == pytest.approx(np.square(one - two)[..., :4].sum(), rel=1e-5)
        assert scores.signal[number] == pytest.approx(
            [np.square(one[..., :4]).sum(), np.square(one[..., 4:]).sum()], rel=1e-5
        )
    assert (scores.noise[:, 1] == 0).all()


def test_a_part_that_is_an_output_itself_is_told_from_the_others() -> None:
    random = np.random.default_rng(0)
    text = """g (float[n,3,8,8] x) => (float[n,3,8,16] y, float[n,3,8,8] a)
        { a = Conv<pads=[1,1,1,1]>(x, w) b = Conv<pads=[1,1,1,1]>(x, v) y = Concat<axis=-1>(a, b) }"""
    model = named(text, **{name: random.standard_normal((3, 3, 3, 3)).astype(np.float32) for name in "wv"})
    (sample,) = samples = [{"x": random.standard_normal((1, 3, 8, 8)).astype(np.float32)}]
    signal = OutputJudge(model, samples).scores_of(open_session(model)).signal[0]
    y, a = open_session(model).run(None, sample)
    expected = [np.square(part).sum() for part in (y[..., :8], y[..., 8:], a)]
    assert signal == pytest.approx(expected, rel=1e-5)


def test_what_probabilities_hide_is_seen_in_front_of_them() -> None:
    random = np.random.default_rng(0)
    weight = 40 * random.standard_normal((8, 4)).astype(np.float32)  # saturated: the largest of four is 1
    model = named("g (float[n,8] x) => (float[n,4] y) { m = MatMul(x, w) y = Softmax(m) }", w=weight)
    samples = [{"x": row[None]} for row in random.standard_normal((16, 8)).astype(np.float32)]
    result = amct_onnx.quantize(model, samples, effort="fast")
    scores = OutputJudge(result.calibration.source.model, samples).scores(result.lowered)
    inner = np.array([np.square(feed["x"] @ weight).sum() for feed in samples])
    assert scores.inner_signal[:, 0] == pytest.approx(inner, rel=1e-5)
    assert np.median(scores.inner_noise / scores.inner_signal) > 100 * np.median(scores.noise / scores.signal)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend"])
def test_every_target_is_judged_in_both_views(
    detector: ir.Model, samples: list[dict[str, np.ndarray]], target: str
) -> None:
    result = amct_onnx.quantize(detector, samples, effort="fast", target=target)
    scores = OutputJudge(result.calibration.source.model, samples).scores(result.lowered)
    assert scores.noise.shape == (16, 2)
    assert (scores.inner_signal[:, 1] != scores.signal[:, 1]).all()  # scores are judged in front of their Sigmoid
    assert 15 < scores.decibels < 60


tables = st.integers(2, 12).flatmap(
    lambda count: st.lists(
        st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.floats(0.1, 10.0)), min_size=count, max_size=count
    )
)


def of(noise: list[float], signal: list[float]) -> Scores:
    one, two = np.array(noise)[:, None], np.array(signal)[:, None]
    return Scores(noise=one, signal=two, inner_noise=one, inner_signal=two, top=np.zeros((len(one), 2)))


@given(tables)
def test_the_error_is_that_of_the_jackknife(rows: list[tuple[float, float, float]]) -> None:
    """By brute force: each sample is left out in turn."""
    first, second, signal = map(list, zip(*rows, strict=True))
    better, error = gain(of(first, signal), of(second, signal))

    def both(keep: list[int]) -> float:
        def decibels(noise: list[float]) -> float:
            pooled = sum(noise[k] for k in keep) / sum(signal[k] for k in keep)
            each = [-10 * math.log10(noise[k] / signal[k]) for k in keep]
            return (-10 * math.log10(pooled) + sum(each) / len(each)) / 2

        return decibels(second) - decibels(first)

    count = len(rows)
    parts = [both([k for k in range(count) if k != out]) for out in range(count)]
    mean = sum(parts) / count
    wanted = math.sqrt((count - 1) / count * sum((part - mean) ** 2 for part in parts)) * (1 + 0.84 / (count - 1))
    assert better == pytest.approx(both(list(range(count))), abs=1e-8)
    assert error == pytest.approx(wanted, abs=1e-6)


@given(tables)
def test_a_gain_one_way_is_a_loss_the_other_way(rows: list[tuple[float, float, float]]) -> None:
    first, second, signal = map(list, zip(*rows, strict=True))
    forth, back = gain(of(first, signal), of(second, signal)), gain(of(second, signal), of(first, signal))
    assert forth[0] == pytest.approx(-back[0], abs=1e-9)
    assert forth[1] == pytest.approx(back[1], abs=1e-9)


def test_one_sample_proves_nothing() -> None:
    assert gain(of([1.0], [2.0]), of([0.1], [2.0]))[1] == math.inf
