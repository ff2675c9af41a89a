"""Extremes as ranges in front of dense scores: which tensors, and that only a gain keeps them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from flow import build

import amct_onnx
from amct_onnx.graph.naming import name_nodes
from amct_onnx.measure.output_judge import OutputJudge
from amct_onnx.ptq.recipe.scores import extremes_near

DETECTOR = """g (float[n,3,16,16] x) => (float[n,6,16,16] y) {
    a = Conv<pads=[1,1,1,1]>(x, first)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, second)
    d = Relu(c)
    box = Conv(d, boxes)
    e = Conv(d, third)
    f = Relu(e)
    raw = Conv(f, scores)
    score = Sigmoid(raw)
    y = Concat<axis=1>(box, score)
}"""


@pytest.fixture
def detector() -> ir.Model:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    model = ir.from_proto(
        build(
            DETECTOR,
            first=normal(8, 3, 3, 3),
            second=normal(8, 8, 3, 3),
            third=normal(8, 8, 1, 1),
            boxes=normal(4, 8, 1, 1),
            scores=20 * normal(2, 8, 1, 1),
        )
    )
    name_nodes(model)
    return model


@pytest.fixture
def pictures() -> np.ndarray:
    """Faint noise with one bright object each."""
    random = np.random.default_rng(1)
    pictures = 0.05 * random.standard_normal((96, 3, 16, 16)).astype(np.float32)
    for picture in pictures:
        y, x = random.integers(2, 12, 2)
        picture[:, y : y + 2, x : x + 2] += 3 * random.standard_normal((3, 1, 1)).astype(np.float32)
    return pictures


@pytest.mark.parametrize(("layers", "names"), [(1, {"f", "raw"}), (2, {"f", "raw", "d"}), (3, {"f", "raw", "d", "b"})])
def test_tensors_are_near_by_the_layers_between_them_and_the_scores(
    detector: ir.Model, pictures: np.ndarray, layers: int, names: set[str]
) -> None:
    result = amct_onnx.quantize(detector, pictures, effort="fast")
    model = result.calibration.source.model
    judge = OutputJudge(model, [{"x": picture[None]} for picture in pictures[:2]])
    parts = [judge.parts[number] for number in judge.dense_scores()]
    assert [part.tensors for part in parts] == [("score",)]
    found = extremes_near(model, parts, result.lowered, layers)
    assert {name for key in found for name in key} == names
    for key, (low, high) in found.items():
        seen = result.statistics.tensors[key[0]]
        assert (low, high) == (min(0.0, seen.minimum), max(0.0, seen.maximum))


def test_data_in_which_nothing_is_found_are_told_of(
    detector: ir.Model, pictures: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    amct_onnx.quantize(detector, pictures)
    assert "something to find" not in caplog.text
    faint = detector.clone()
    bias = ir.Value(name="low", const_value=ir.tensor(np.full(2, -9, np.float32)))
    faint.graph.register_initializer(bias)
    (raw,) = (node for node in faint.graph if node.outputs[0].name == "raw")
    faint.graph.append(score := ir.node("Conv", [*raw.inputs, bias], outputs=[ir.val("low_raw")], name="low"))
    faint.graph.sort()
    raw.outputs[0].replace_all_uses_with(score.outputs[0])
    amct_onnx.quantize(faint, 0.01 * pictures)
    assert "No score of the network is above 0.2" in caplog.text


def test_scores_of_whole_samples_are_not_dense() -> None:
    text = "g (float[n,8] x) => (float[n,4] y) { m = MatMul(x, w) y = Sigmoid(m) }"
    model = ir.from_proto(build(text, w=np.ones((8, 4), np.float32)))
    name_nodes(model)
    judge = OutputJudge(model, [{"x": np.ones((1, 8), np.float32)}])
    assert [part.kind for part in judge.parts] == ["Sigmoid"]
    assert not judge.dense_scores()


def test_extremes_are_kept_where_scores_gain_beyond_the_error(detector: ir.Model, pictures: np.ndarray) -> None:
    result = amct_onnx.quantize(detector, pictures, full_int8=True)
    steps = [step for step in result.steps if step.name.startswith("extremes for")]
    assert len(steps) == 2
    assert bool(result.calibration.tuning.ranges) == any(step.kept for step in steps)
    plain = amct_onnx.quantize(detector, pictures, effort="fast")
    assert not plain.calibration.tuning.ranges
