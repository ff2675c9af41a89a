"""Time for accuracy: the nodes that make most of the noise, as far as `max_slowdown` goes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from flow import build
from hypothesis import given
from hypothesis import strategies as st

import amct_onnx
from amct_onnx.errors import ArgumentError
from amct_onnx.graph.naming import name_nodes
from amct_onnx.measure.output_judge import OutputJudge
from amct_onnx.ptq.mixed.order import NONE, Order, Part
from amct_onnx.ptq.mixed.slowdown import affordable
from amct_onnx.ptq.quantized_model import QuantizedModel

IMAGES = np.random.default_rng(1).standard_normal((96, 16, 16, 16)).astype(np.float32)
UNSEEN = np.random.default_rng(2).standard_normal((16, 16, 16, 16)).astype(np.float32)


@pytest.fixture
def model() -> ir.Model:
    """Four layers, of which a small one in the middle makes most of the noise: its channels differ widely."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))

    spread = np.geomspace(1, 300, 16)
    text = """g (float[n,16,16,16] x) => (float[n,8,16,16] y) {
        a = Conv<pads=[1,1,1,1]>(x, first)
        b = Relu(a)
        c = Conv(b, narrow)
        d = Conv(c, back)
        e = Relu(d)
        y = Conv<pads=[1,1,1,1]>(e, last)
    }"""
    weights = {
        "first": normal(64, 16, 3, 3),
        "narrow": normal(16, 64, 1, 1) * spread[:, None, None, None],
        "back": normal(64, 16, 1, 1) / spread[None, :, None, None],
        "last": normal(8, 64, 3, 3),
    }
    found = ir.from_proto(build(text, **{name: array.astype(np.float32) for name, array in weights.items()}))
    name_nodes(found)
    return found


def decibels(result: QuantizedModel, model: ir.Model) -> float:
    return OutputJudge(model, [{"x": image[None]} for image in UNSEEN]).scores(result.lowered).decibels


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ascend"])
def test_time_buys_accuracy_on_samples_that_nobody_saw(model: ir.Model, target: str) -> None:
    plain = amct_onnx.quantize(model, IMAGES, target=target, effort="fast")
    result = amct_onnx.quantize(model, IMAGES, target=target, effort="fast", max_slowdown=2)
    step = result.steps[-1]
    assert step.kept, step
    assert "times the time" in step.name
    assert decibels(result, model) > decibels(plain, model) + 6
    assert any(decision.quantized for decision in result.decisions)


def test_no_time_buys_nothing_and_the_user_is_told(model: ir.Model) -> None:
    result = amct_onnx.quantize(model, IMAGES, effort="fast", max_slowdown=1)
    plain = amct_onnx.quantize(model, IMAGES, effort="fast")
    assert [d.quantized for d in result.decisions] == [d.quantized for d in plain.decisions]
    assert "nothing that lowers the noise costs less than 0% of the time" in str(result.steps[-1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_slowdown": 0.9}, "would be faster than int8"),
        ({"max_slowdown": 1.1, "min_sqnr": 20}, "are different targets"),
        ({"max_slowdown": 1.1, "full_int8": True}, "full_int8 leaves nothing in float"),
        ({"max_slowdown": math.nan}, "max_slowdown is NaN"),
    ],
)
def test_what_does_not_go_together_is_refused(model: ir.Model, options: dict[str, float], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        amct_onnx.quantize(model, IMAGES, **options)


@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.01, 10.0)), min_size=1, max_size=6),
    st.floats(0.0, 20.0),
)
def test_the_budget_is_kept_and_nearly_all_that_it_buys_is_bought(
    units: list[tuple[float, float]], budget: float
) -> None:
    parts = [Part(noise=noise, cures=(frozenset([("float", str(k))]),)) for k, (noise, _) in enumerate(units)]
    order = Order(parts=parts, prices={("float", str(k)): price for k, (_, price) in enumerate(units)})
    found = affordable(order, budget)
    assert order.cost(found) <= budget
    within = [wishes for wishes in order.path() if order.cost(wishes) <= budget]
    assert order.noise(found) <= order.noise(within[-1]) + 0.02 * order.noise(NONE)
