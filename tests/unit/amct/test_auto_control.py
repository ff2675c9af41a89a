"""The control of the search, without any model: what is evaluated, and what users' objects may answer."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searching import read_history

from amct_onnx.amct.auto_control import AccuracyBasedAutoCalibrationBase
from amct_onnx.amct.binary_search import BinarySearchStrategy
from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity
from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase
from amct_onnx.errors import ArgumentError, ArgumentTypeError, SearchError

LAYERS = ("a", "b", "c", "d")
FLOAT = 100.0


class Tensor:
    """As torch has it, which is not installed here: `item` gives the only element, and of several none."""

    def __init__(self, *elements: Any) -> None:
        self.elements = elements

    def item(self) -> Any:
        if len(self.elements) != 1:
            raise RuntimeError(f"a Tensor with {len(self.elements)} elements cannot be converted to Scalar")
        return self.elements[0]


class Castable:
    """A number that has neither `item` nor a base class, as TensorFlow's."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return float(self.value)


KINDS_OF_NUMBER: list[Callable[[float], Any]] = [
    *(float, np.float16, np.float32, np.float64, np.longdouble, np.array, Decimal, Fraction, Tensor, Castable),
    *(lambda v: np.array([v]), lambda v: np.array([[[v]]], np.float32)),
]
KINDS_OF_TRUTH: list[Callable[[bool], Any]] = [
    *(bool, int, float, np.bool_, np.int64, np.uint8, np.float32, np.array, Tensor),
    *(lambda v: np.array([v]), lambda v: np.array([[float(v)]]), lambda v: Tensor(int(v)), lambda v: 0.25 * v),
]


class Judge(AutoCalibrationEvaluatorBase):
    """At most `target` may be lost."""

    def __init__(self, target: float = 1.0) -> None:
        self.target = target

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        return original_metric - new_metric <= self.target, original_metric - new_metric


class Search(AccuracyBasedAutoCalibrationBase):
    """A search in which layer i of LAYERS costs `costs[i]` when it is quantized."""

    costs = (3.0, 2.0, 0.5, 0.25)

    def get_original_accuracy(self) -> float:
        return FLOAT

    def get_global_quant_accuracy(self) -> float:
        return FLOAT - sum(self.costs)

    def get_ranking_info(self) -> dict[str, float]:
        return {layer: 1 - cost / 10 for layer, cost in zip(LAYERS, self.costs, strict=True)}

    def roll_back_and_evaluate_model(self, roll_back_config: Mapping[str, bool]) -> float:
        self.evaluated = [*getattr(self, "evaluated", []), tuple(roll_back_config.values())]
        return FLOAT - sum(cost for cost, on in zip(self.costs, roll_back_config.values(), strict=True) if on)

    def save_results(self, roll_back_config: Mapping[str, bool]) -> None:
        self.saved = dict(roll_back_config)


class Scripted(AutoCalibrationStrategyBase):
    """Answers what it was given, one answer a call, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers, self.told = list(answers), []

    def initialize(self, ranking_info: dict[str, float]) -> None:
        self.ranking = ranking_info

    def update_quant_config(self, metric_eval: tuple[bool, float]) -> Any:
        self.told.append(metric_eval)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def answer(stop: Any, *values: Any) -> dict[str, Any]:
    return {"stop_flag": stop, "roll_back_config": OrderedDict(zip(LAYERS, values, strict=False))}


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    monkeypatch.chdir(tmp_path)

    def make(strategy: AutoCalibrationStrategyBase | None = None, evaluator: Any = None) -> Search:
        strategy, evaluator = strategy or BinarySearchStrategy(), evaluator or Judge()
        return Search("record.txt", "config.json", "out/model", evaluator, strategy, CosineSimilaritySensitivity())

    return make


def test_binary_search_rolls_back_what_is_needed(search: Callable[..., Search], tmp_path: Path) -> None:
    made = search()
    made.run()
    assert made.saved == {"a": False, "b": False, "c": True, "d": True}
    assert made.evaluated == [(False, False, True, True), (False, True, True, True)]
    assert read_history(tmp_path) == [
        {"roll_back_config": dict.fromkeys(LAYERS, True), "metric_eval": [False, 5.75]},
        {"roll_back_config": {"a": False, "b": False, "c": True, "d": True}, "metric_eval": [True, 0.75]},
        {"roll_back_config": {"a": False, "b": True, "c": True, "d": True}, "metric_eval": [False, 2.75]},
    ]
    ranking = json.loads((tmp_path / "out/accuracy_based_auto_calibration_ranking_information.json").read_text())
    assert ranking == [["a", 0.7], ["b", 0.8], ["c", 0.95], ["d", 0.975]]


def test_nothing_is_tried_when_all_layers_satisfy(search: Callable[..., Search]) -> None:
    strategy = Scripted(answer(True, False, False, False, False))
    made = search(strategy, Judge(6.0))
    made.run()
    assert made.saved == dict.fromkeys(LAYERS, True)
    assert strategy.told == []
    assert not hasattr(made, "evaluated")
    assert made.ranking_info  # AMCT ranks all the same


def test_nothing_is_saved_when_all_layers_are_rolled_back(search: Callable[..., Search]) -> None:
    made = search(evaluator=Judge(0.1))
    made.run()
    assert not hasattr(made, "saved")
    assert (False, False, False, False) not in made.evaluated  # that is the float model, which was evaluated


def test_a_strategy_is_told_python_values_from_the_first_trial_on(search: Callable[..., Search]) -> None:
    class NumpyJudge(Judge):
        def metric_eval(self, original_metric: float, new_metric: float) -> Any:
            return [np.bool_(original_metric - new_metric <= 1), np.float32(original_metric - new_metric)]

    strategy = Scripted(answer(False, False, True, True, True), answer(np.True_, False, False, True, np.bool_(True)))
    made = search(strategy, NumpyJudge())
    made.run()
    assert strategy.told == [(False, 5.75), (False, 2.75)]
    assert all(type(a) is bool and type(b) is float for a, b in strategy.told)
    assert made.saved == {"a": False, "b": False, "c": True, "d": True}  # tried when the strategy stopped with it
    assert len(made.evaluated) == 2


@pytest.mark.parametrize("make", KINDS_OF_TRUTH)
def test_a_truth_of_any_kind_is_understood(search: Callable[..., Search], make: Callable[[bool], Any]) -> None:
    class Other(Judge):
        def metric_eval(self, original_metric: float, new_metric: float) -> Any:
            return make(original_metric - new_metric <= 1), original_metric - new_metric

    strategy = Scripted(
        {"stop_flag": make(False), "roll_back_config": {"a": make(False), "b": make(True)}},
        {"stop_flag": make(True), "roll_back_config": {"a": make(False), "b": make(False)}},
    )
    made = search(strategy, Other())
    made.run()
    assert strategy.told == [(False, 5.75), (False, 2.75)]
    assert all(type(told[0]) is bool for told in strategy.told)
    assert made.saved == {"a": False, "b": False, "c": True, "d": True}


@pytest.mark.parametrize("make", KINDS_OF_NUMBER)
def test_a_number_of_any_kind_is_understood(
    search: Callable[..., Search], make: Callable[[float], Any], tmp_path: Path
) -> None:
    class Other(Judge):
        def metric_eval(self, original_metric: float, new_metric: float) -> Any:
            return [original_metric - new_metric <= 1, make(original_metric - new_metric)]

    search(evaluator=Other()).run()
    assert [trial["metric_eval"] for trial in read_history(tmp_path)] == [[False, 5.75], [True, 0.75], [False, 2.75]]


def test_an_array_of_both_is_understood(search: Callable[..., Search], tmp_path: Path) -> None:
    class Other(Judge):
        def metric_eval(self, original_metric: float, new_metric: float) -> Any:
            return np.array([original_metric - new_metric <= 1, original_metric - new_metric])

    search(evaluator=Other()).run()
    assert read_history(tmp_path)[0]["metric_eval"] == [False, 5.75]


def test_a_layer_that_a_strategy_does_not_name_stays_as_it_was(search: Callable[..., Search]) -> None:
    """As in AMCT, where each trial changes the entries of the layers that are named."""

    def partly(stop: bool, **config: bool) -> dict[str, Any]:
        return {"stop_flag": stop, "roll_back_config": config}

    answers = [partly(False, d=False), partly(False, a=False), partly(False), partly(True, d=True, b=False)]
    made = search(Scripted(*answers))
    made.run()
    assert made.evaluated == [(True, True, True, False), (False, True, True, False), (False, False, True, True)]
    assert made.saved == {"a": False, "b": False, "c": True, "d": True}


def test_no_configuration_is_evaluated_twice(search: Callable[..., Search]) -> None:
    one, two = (False, True, True, True), (False, False, True, True)
    strategy = Scripted(answer(False, *one), answer(False, *two), answer(False, *one), answer(True, *two))
    made = search(strategy)
    made.run()
    assert made.evaluated == [one, two]
    assert [loss for _, loss in strategy.told] == [5.75, 2.75, 0.75, 2.75]


def test_a_strategy_that_changes_what_it_returned_does_no_harm(search: Callable[..., Search], tmp_path: Path) -> None:
    class Reusing(Scripted):
        def update_quant_config(self, metric_eval: tuple[bool, float]) -> Any:
            config = self.answers[0]["roll_back_config"]
            layer = next(layer for layer, on in config.items() if on)
            config[layer] = False
            self.answers[0]["stop_flag"] = layer == "b"
            return self.answers[0]

    made = search(Reusing(answer(False, True, True, True, True)))
    made.run()
    assert [list(trial["roll_back_config"].values()).count(False) for trial in read_history(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("good", [True, False])
def test_a_strategy_that_never_stops_is_stopped(
    search: Callable[..., Search], good: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = (False, False, True, True) if good else (True, False, True, True)
    made = search(Scripted(answer(False, *config)))
    if good:
        made.run()
        assert made.saved == dict(zip(LAYERS, config, strict=True))
        assert "does not stop" in caplog.text
    else:
        with pytest.raises(SearchError, match=r"Scripted does not stop.*stop_flag"):
            made.run()
    assert made.evaluated == [config]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (None, "must return a dictionary with .*, got NoneType"),
        ({"stop_flag": True}, r"must return a dictionary with .*, got with \['stop_flag'\]"),
        (answer("yes", True, True, True, True), '"stop_flag" must be a bool, got str'),
        ({"stop_flag": True, "roll_back_config": ["a"]}, "must map layers to bools, got list"),
        ({"stop_flag": True, "roll_back_config": {**dict.fromkeys(LAYERS, True), "e": True}}, "not quantized: e$"),
        ({"stop_flag": True, "roll_back_config": {"A": True, "aa": 0}}, "not quantized: A, aa; did you mean 'a'"),
        (answer(True, True, "no", True, None), "it does not for: b, d$"),
    ],
)
def test_a_wrong_answer_of_a_strategy(search: Callable[..., Search], reply: Any, message: str) -> None:
    made = search(Scripted(reply))
    with pytest.raises(SearchError, match=f"Scripted.update_quant_config.*{message}"):
        made.run()


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (True, ArgumentTypeError, "got True"),
        (None, ArgumentTypeError, "got None"),
        ("no", ArgumentTypeError, "got 'no'"),
        ({"satisfied": True, "loss": 0.0}, ArgumentTypeError, "got {'satisfied'"),
        ((True, 0.0, 1), ArgumentTypeError, "got"),
        (np.zeros((2, 1)), ArgumentTypeError, r"got array\(\[\[0.\], \[0.\]\]\)$"),
        (("yes", 0.0), ArgumentTypeError, r"got \(str, float\)"),
        ((None, 0.0), ArgumentTypeError, r"got \(NoneType, float\)"),
        ((np.array([True, True]), 0.0), ArgumentTypeError, r"got \(ndarray of shape \(2,\), float\)"),
        ((True, "0.1"), ArgumentTypeError, r"got \(bool, str\)"),
        ((True, np.array("0.1")), ArgumentTypeError, r"got \(bool, ndarray\)"),
        ((True, True), ArgumentTypeError, r"got \(bool, bool\)"),
        ((True, 1j), ArgumentTypeError, r"got \(bool, complex\)"),
        ((True, np.zeros(3)), ArgumentTypeError, r"got \(bool, ndarray of shape \(3,\)\)"),
        ((True, Tensor(1, 2)), ArgumentTypeError, r"got \(bool, Tensor\)"),
        ((True, float("nan")), ArgumentError, "NaN: check the accuracies 100.0 and 100.0"),
        ((float("nan"), 1.0), ArgumentError, "NaN"),
        ((True, np.array([np.nan])), ArgumentError, "NaN"),
    ],
)
def test_a_wrong_answer_of_metric_eval(
    search: Callable[..., Search], reply: Any, error: type[Exception], message: str
) -> None:
    class Wrong(Judge):
        def metric_eval(self, original_metric: float, new_metric: float) -> Any:
            return reply

    with pytest.raises(error, match=r"Wrong.metric_eval\(\) must return \(bool, float\)") as caught:
        search(evaluator=Wrong()).run()
    assert caught.match(message)


def test_a_float_model_that_does_not_satisfy_is_amcts_error(search: Callable[..., Search]) -> None:
    text = "Compare between original_accuracy and original_accuracy can not satisfy the acc requirement, please check"
    with pytest.raises(ValueError, match=text):
        search(evaluator=Judge(-1)).run()


def test_a_saved_model_that_does_not_satisfy_is_warned_of(
    search: Callable[..., Search], caplog: pytest.LogCaptureFixture
) -> None:
    made = search(Scripted(answer(True, True, False, True, True)))
    made.run()
    assert made.saved["a"]
    assert "does not satisfy metric_eval" in caplog.text


def test_the_log_has_amcts_lines_and_does_not_grow_with_the_layers(
    search: Callable[..., Search], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="amct_onnx")
    search().run()
    lines = [record.getMessage() for record in caplog.records]
    stars = "*" * 20
    folder = str(Path("out").resolve())
    assert lines == [
        f"{stars} fine search step 1 {stars}",
        "2 of 4 layers rolled back, metric_eval: (True, 0.75)",
        f"{stars} fine search step 2 {stars}",
        "1 of 4 layers rolled back, metric_eval: (False, 2.75)",
        "Fine search finish, automatic calibration succeed!",
        "Accuracy of original model is 100.0",
        "Accuracy of global quantized model is 94.25",
        "Accuracy of saved model is 99.25",
        "2 of 4 layers are rolled back, after 2 trials",
        f"The generated model is stored in dir: {folder}",
        f"The records file is stored in dir: {Path.cwd()}",
    ]
