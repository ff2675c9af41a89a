"""`quantize` with a target of accuracy: which layers go to float or to int16, and what the result tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from shared_data import MODELS, load, read_labels

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.progress import silent
from amct_onnx.ptq.mixed.goals import Judgement, SqnrGoal, is_enough
from amct_onnx.ptq.mixed.search import search_mixed
from amct_onnx.run.deployed import open_deployed
from amct_onnx.run.saturation import saturates
from amct_onnx.run.session import open_session

TestData = Callable[..., Path]

LAYERS = 8
HOPELESS = "conv3"


def make_model(*, weight: bool = False, activation: bool = False) -> ir.Model:
    """Eight convolutions in a row.

    The fourth one has a weight (`weight`) or an input (`activation`) with one huge channel that hardly matters, since
    the other one is zero or next to it there: int8 does not hold what is left.
    """
    rng = np.random.default_rng(0)
    body, arrays = "", {}
    for number in range(LAYERS):
        source, result = ("x" if number == 0 else f"r{number - 1}"), ("y" if number == LAYERS - 1 else f"t{number}")
        body += f"[conv{number}] {result} = Conv<pads = [1, 1, 1, 1]>({source}, w{number}, b{number})\n"
        if number < LAYERS - 1:
            body += f"[relu{number}] r{number} = Relu(t{number})\n"
        arrays[f"w{number}"] = rng.normal(size=(16, 16, 3, 3)) / 12
        arrays[f"b{number}"] = rng.normal(size=16) / 4
    if weight or activation:
        arrays["w2"][0] *= 3e3 if activation else 0
        arrays["b2"][0] = 0
        arrays["w3"][:, 0] = 1e4 if weight else 1e-9
    text = f"""<ir_version: 8, opset_import: ["": 13]> g (float[N,16,6,6] x) => (float[N,16,6,6] y) {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return ir.from_proto(model)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(32, 16, 6, 6)).astype(np.float32)


class Counting:
    """SQNR of the output on the given images; counts its calls."""

    def __init__(self, model: ir.Model, images: np.ndarray) -> None:
        self.images, self.calls = images, 0
        (self.exact,) = open_session(model.clone()).run(None, {"x": images})

    def __call__(self, session: ort.InferenceSession) -> float:
        self.calls += 1
        (got,) = session.run(None, {"x": self.images})
        return float(10 * np.log10((self.exact**2).sum() / max(((got - self.exact) ** 2).sum(), 1e-20)))


def session_of(result: amct_onnx.QuantizedModel) -> ort.InferenceSession:
    return open_deployed(result.model()) if result.target == "ascend" else open_session(result.model())


@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_a_layer_whose_weight_is_hopeless_goes_to_float_alone(images: np.ndarray, target: str) -> None:
    model = make_model(weight=True)
    judge = Counting(model, images)
    result = amct_onnx.quantize(model, images, target=target, evaluator=judge, target_accuracy=25, reduce_range=True)
    precision = result.precision
    assert precision is not None
    assert precision.evaluations[0].value < 20
    assert precision.met
    assert precision.result.float_layers == (HOPELESS,)
    assert precision.result.wide_layers == ()
    assert judge.calls == len(precision.evaluations) + 1 < LAYERS
    # The model of the result is the one that was evaluated.
    assert judge(session_of(result)) == precision.result.value >= 25
    assert {d.layer for d in result.decisions if not d.quantized} == {HOPELESS}
    reasons = {decision.layer: decision.reason for decision in result.decisions if not decision.quantized}
    assert reasons == {HOPELESS: "the search left it there for the accuracy"}
    assert result.to(target).calibration.request.searched == (HOPELESS,)


def test_a_hopeless_activation_gets_int16_where_the_target_has_it(images: np.ndarray) -> None:
    model = make_model(activation=True)
    result = amct_onnx.quantize(model, images, target="ascend", min_sqnr=25, effort="fast")
    precision = result.precision
    assert precision is not None
    assert precision.evaluations[0].value < 20
    assert (precision.result.float_layers, precision.result.wide_layers) == ((), (HOPELESS,))
    assert precision.met
    assert Counting(model, images)(session_of(result)) >= 24  # on data that calibrated as well
    assert result.records[HOPELESS].act_type == "INT16"


def test_a_tensor_of_two_layers_takes_both_to_float(images: np.ndarray) -> None:
    model = make_model(activation=True)
    result = amct_onnx.quantize(model, images, min_sqnr=25, reduce_range=True, effort="fast")
    assert result.precision is not None
    assert result.precision.met
    assert {"conv2", "conv3"} <= set(result.precision.result.float_layers)
    assert len(result.precision.result.float_layers) < LAYERS


def test_nothing_is_searched_where_int8_is_enough(images: np.ndarray) -> None:
    result = amct_onnx.quantize(make_model(), images, min_sqnr=10, reduce_range=True)
    assert result.precision is not None
    assert len(result.precision.evaluations) == 1
    assert result.precision.result.float_layers == ()
    assert "8 of 32 samples judge, and do not calibrate" in result.assumptions


@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_a_target_that_cannot_be_met_is_said_to_be_missed(
    images: np.ndarray, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    result = amct_onnx.quantize(make_model(), images, target=target, min_sqnr=500, reduce_range=True)
    precision = result.precision
    assert precision is not None
    assert not precision.met
    assert precision.result.value == max(trial.value for trial in precision.evaluations)
    assert "The target is NOT met" in caplog.text
    assert len(precision.evaluations) <= 10


class Unsure(SqnrGoal):
    """Its samples prove nothing."""

    def judge(self, measured: Any) -> Judgement:
        found = super().judge(measured)
        return replace(found, met=False, enough=False, likely=is_enough(found.value, self.required))


def test_where_nothing_is_sure_no_more_layers_go_to_float_than_are_likely_to_be_enough(images: np.ndarray) -> None:
    result = amct_onnx.quantize(make_model(weight=True), images, effort="fast", full_int8=True)
    feeds = [{"x": image[None]} for image in images]
    goal = Unsure(quantized=result, samples=feeds[:24], held_out=feeds[24:], required=25.0)
    precision = search_mixed(result, goal, feeds[:24], silent).precision
    assert precision is not None
    assert not precision.met
    assert precision.result.value >= 25
    enough = [trial.cost for trial in precision.evaluations if trial.value >= 25]
    assert precision.result.cost == min(enough) < max(enough)
    assert len(precision.result.float_layers) < LAYERS / 2


def test_max_drop_is_counted_from_the_float_model(images: np.ndarray) -> None:
    values = iter([80.0, 78.0, *[79.8] * 20])
    result = amct_onnx.quantize(make_model(), images, evaluator=lambda session: next(values), max_drop=1)
    precision = result.precision
    assert precision is not None
    assert (precision.reference, precision.required) == (80.0, 79.0)
    assert [trial.value for trial in precision.evaluations][:2] == [78.0, 79.8]
    assert precision.met
    # All else is good enough, so the first layer of the order is left.
    assert len(precision.result.float_layers) <= 2


def test_a_drop_is_met_by_what_rounding_leaves_of_it(images: np.ndarray) -> None:
    values = iter([82.8, np.mean([100.0] * 827 + [0.0] * 173) - 1e-14])
    result = amct_onnx.quantize(make_model(), images, evaluator=lambda _: next(values), max_drop=0.1)
    assert result.precision is not None
    assert result.precision.result.enough
    assert result.precision.result.value < 82.7
    missed = iter([82.8, *[82.6999] * 20])
    result = amct_onnx.quantize(make_model(), images, evaluator=lambda _: next(missed), max_drop=0.1)
    assert result.precision is not None
    assert not result.precision.evaluations[0].met


def test_without_a_target_nothing_is_different(images: np.ndarray) -> None:
    result = amct_onnx.quantize(make_model(), images)
    assert result.precision is None
    found = amct_onnx.quantize(make_model(), images, min_sqnr=10, reduce_range=True)
    assert found.to("ascend").precision is None


def test_the_same_search_finds_the_same_model(images: np.ndarray) -> None:
    first, second = (
        amct_onnx.quantize(make_model(weight=True), images, min_sqnr=25, reduce_range=True) for _ in range(2)
    )
    assert first.precision == second.precision
    assert ir.to_proto(first.model()).SerializeToString() == ir.to_proto(second.model()).SerializeToString()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_drop": 1}, ArgumentError, "max_drop needs an evaluator"),
        ({"evaluator": len}, ArgumentError, "An evaluator goes with max_drop or target_accuracy"),
        ({"evaluator": len, "min_sqnr": 9}, ArgumentError, "An evaluator goes with"),
        (
            {"evaluator": len, "min_sqnr": 9, "max_drop": 1},
            ArgumentError,
            "max_drop and min_sqnr are different targets",
        ),
        ({"evaluator": len, "max_drop": -1}, ArgumentError, "would be a gain"),
        ({"evaluator": len, "max_drop": "1"}, ArgumentTypeError, "max_drop must be a number, got str"),
        ({"evaluator": 3, "max_drop": 1}, ArgumentTypeError, "evaluator must be a function of a session, got int"),
        ({"evaluator": lambda session: None, "max_drop": 1}, ArgumentTypeError, "must return a number"),
        ({"min_sqnr": float("nan")}, ArgumentError, "min_sqnr is NaN"),
    ],
)
def test_wrong_arguments(images: np.ndarray, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        amct_onnx.quantize(make_model(), images, **arguments)


def test_statistics_cannot_be_searched(images: np.ndarray) -> None:
    statistics = amct_onnx.quantize(make_model(), images).statistics
    with pytest.raises(ArgumentError, match="give data, and not their statistics"):
        amct_onnx.quantize(make_model(), statistics, min_sqnr=9)


def test_the_command(images: np.ndarray, tmp_path: Path) -> None:
    ir.save(make_model(weight=True), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "judge.py").write_text(
        "import numpy as np\n"
        f"x = np.load({str(tmp_path / 'x.npy')!r})\n"
        "exact = None\n"
        "def evaluate(session):\n"
        "    global exact\n"
        "    got = session.run(None, {'x': x})[0]\n"
        "    exact = got if exact is None else exact\n"
        "    return -((got - exact) ** 2).sum() / (exact ** 2).sum()\n"
    )
    words = ["quantize", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npy"), "--reduce_range", "--no_report"]
    for form, goal in {
        "a": ["--min_sqnr", "25"],
        "b": ["--max_drop", "0.003", "--evaluator", str(tmp_path / "judge.py")],
    }.items():
        assert main([*words, "--save_path", str(tmp_path / form), *goal]) == 0
        nodes = {node.name: node for node in ir.load(tmp_path / f"{form}_onnxruntime.onnx").graph}
        weights = {name: nodes[name].inputs[1].producer() for name in nodes if name.startswith("conv")}
        assert [name for name, maker in weights.items() if maker is None] == [HOPELESS]


@pytest.mark.slow
def test_mobilenetv2_keeps_its_accuracy_with_few_evaluations(test_data: TestData) -> None:
    """A tenth of a point on fifty calibration images is none of them."""
    model, folder = MODELS["mobilenetv2"], test_data("images").parent
    images = read_labels(model.calibration, folder)
    data = np.stack([load(image.path, model.prepare) for image in images[::5]])
    labels = np.array([image.label for image in images[::5]])
    calls = []

    def top1(session: ort.InferenceSession) -> float:
        calls.append(session)
        found = np.concatenate([session.run(None, {model.input: data[k : k + 10]})[0] for k in range(0, len(data), 10)])
        return 100 * float((found.reshape(len(data), -1).argmax(axis=1) == labels).mean())

    result = amct_onnx.quantize(model.path(folder), data, evaluator=top1, max_drop=0.1, reduce_range=saturates())
    assert len(calls) < 12
    assert result.precision is not None
    assert result.precision.result.enough  # fifty images cannot prove it for others
    assert top1(session_of(result)) == result.precision.result.value >= result.precision.reference - 0.1
