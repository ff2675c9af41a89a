"""What a search for mixed precision is judged by: what is met for certain, and what only seems so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
from goals import judged

import amct_onnx
from amct_onnx.errors import ArgumentTypeError
from amct_onnx.numerics.arrays import Feed
from amct_onnx.ptq.mixed.goals import EvaluatorGoal, SqnrGoal


@pytest.fixture(scope="module")
def quantized() -> amct_onnx.QuantizedModel:
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[N,64] x) => (float[N,64] y) {
        [one] h = MatMul(x, w) [relu] r = Relu(h) [two] y = MatMul(r, v) }"""
    model = onnx.parser.parse_model(text)
    for name in ("w", "v"):
        array = rng.normal(size=(64, 64)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return amct_onnx.quantize(ir.from_proto(model), samples(64, 1), effort="fast")


def samples(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)


def feeds(array: np.ndarray) -> list[Feed]:
    return [{"x": row[None]} for row in array]


def goal_of(quantized: Any, answers: Sequence[Any], drop: float) -> tuple[EvaluatorGoal, Iterator[Any]]:
    """The first of the answers is that of the float model."""
    rest = iter(answers)
    return EvaluatorGoal.of(lambda _: next(rest), quantized, max_drop=drop, target_accuracy=None), rest


def test_a_value_is_met_if_it_is_so_by_more_than_the_step_of_one_image(quantized: amct_onnx.QuantizedModel) -> None:
    goal, _ = goal_of(quantized, [80.0, 79.6, 80.0, 78.0], 1.0)  # of 250 images
    found = [judged(goal) for _ in range(3)]
    assert [judgement.value for judgement in found] == [79.6, 80.0, 78.0]
    assert [judgement.met for judgement in found] == [False, True, False]
    assert [judgement.enough for judgement in found] == [False, True, False]


def test_what_the_steps_of_an_evaluator_cannot_show_is_not_searched_for(quantized: amct_onnx.QuantizedModel) -> None:
    goal, _ = goal_of(quantized, [80.0, 80.4, 79.6], 0.1)
    found = judged(goal)
    assert (found.met, found.enough) == (False, True)
    assert not judged(goal).enough


def test_a_number_without_steps_needs_no_margin(quantized: amct_onnx.QuantizedModel) -> None:
    goal, _ = goal_of(quantized, [0.0, -0.0421873, -0.0027731], 0.003)
    assert not judged(goal).enough
    assert judged(goal).met


def test_numbers_of_single_samples_tell_how_far_their_mean_may_be_off(quantized: amct_onnx.QuantizedModel) -> None:
    right = np.ones(1000)
    few, many = right.copy(), right.copy()
    few[:4], many[:60] = 0, 0
    many[30:60] = 2  # gains, by which the mean is the same
    goal, _ = goal_of(quantized, [right, few, many, [1.0] * 1000], 0.01)
    assert goal.reference == 1.0
    found = [judged(goal) for _ in range(3)]
    assert found[0].value == pytest.approx(0.996)
    assert [judgement.met for judgement in found] == [True, False, True]


@pytest.mark.parametrize("answer", [None, "80", [1.0, None], np.ones((2, 2)), float("nan")])
def test_what_is_no_number_is_refused(quantized: amct_onnx.QuantizedModel, answer: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="evaluator must return a number"):
        goal_of(quantized, [answer], 1.0)


def test_a_signal_to_noise_ratio_is_met_with_a_margin(quantized: amct_onnx.QuantizedModel) -> None:
    session = quantized.lowered.exact_session()
    seen, others = feeds(samples(16, 2)), feeds(samples(16, 3))
    reached = judged(SqnrGoal(quantized, seen, others, required=0.0), session)
    assert reached.checked is not None
    assert reached.met
    least = min(reached.value, reached.checked)
    close = judged(SqnrGoal(quantized, seen, others, required=least - 0.001), session)
    assert not close.met
    assert judged(SqnrGoal(quantized, seen, others, required=least - 5), session).met
    assert judged(SqnrGoal(quantized, seen, others, required=reached.value + 1), session).checked is None


def test_one_sample_that_is_held_out_proves_nothing(quantized: amct_onnx.QuantizedModel) -> None:
    found = SqnrGoal(quantized, feeds(samples(2, 2)), feeds(samples(1, 3)), required=0.0)
    judgement = judged(found, quantized.lowered.session())
    assert (judgement.met, judgement.enough) == (False, True)


def test_the_median_judges_where_one_sample_in_twenty_is_wild(quantized: amct_onnx.QuantizedModel) -> None:
    session = quantized.lowered.exact_session()
    calm, wild = samples(40, 4), samples(40, 4)
    wild[::20] *= 30  # far outside of what calibrated
    usual, clipped = (SqnrGoal(quantized, feeds(x[:20]), feeds(x[20:]), required=0.0) for x in (calm, wild))
    first, second = judged(usual, session), judged(clipped, session)
    assert usual.measure == "SQNR in dB"
    assert "median" in clipped.measure
    assert second.checked == pytest.approx(first.checked, abs=2)
