"""accuracy_based_auto_calibration as a user's script drives it: what it finds, what it writes, what it leaves alone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, everything_below, node_named, normal, operators
from refusal import refused, results_below
from searching import (
    AGREEMENT_DB,
    LAYERS,
    SUFFERING,
    ErrorEvaluator,
    Fixed,
    Search,
    agreement,
    pictures,
    read_history,
    suffering,
)

import amct_onnx as amct
from amct_onnx.common.auto_calibration import (
    AutoCalibrationStrategyBase,
    CosineSimilaritySensitivity,
    SensitivityBase,
)
from amct_onnx.errors import (
    ArgumentError,
    ArgumentTypeError,
    CalibrationError,
    ConfigError,
    FileMissingError,
    ModelFileError,
    OutputError,
    RecordError,
    SearchError,
)
from amct_onnx.files.record import read_record
from amct_onnx.observe import operators as observer_op

# Percent of relative error of `suffering`: all layers quantized 79, without conv2 31, without both that suffer 1.5.
ALL, ONE, TWO, NEVER = 90.0, 40.0, 3.0, 1e-6
RESULTS = {
    "results/accuracy_based_auto_calibration_final_config.json",
    "results/accuracy_based_auto_calibration_ranking_information.json",
    "results/model_deploy_model.onnx",
    "results/model_fake_quant_model.onnx",
    "results/model_quant.json",
}
HISTORY = "amct_log/accuracy_based_auto_calibration_record.json"


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluator(target: float = TWO, batches: int = 2, **more: Any) -> ErrorEvaluator:
    return ErrorEvaluator([pictures(seed) for seed in range(batches)], target, **more)


def files_below(folder: Path) -> set[str]:
    """All files but AMCT's own log, which opens where the first call of the process was."""
    return {name for name, data in everything_below(folder).items() if data is not None} - {"amct_log/amct_onnx.log"}


def error_of(model_file: str, judge: ErrorEvaluator) -> float:
    assert judge.reference is not None
    return ErrorEvaluator.evaluate(judge, model_file)


# What it finds


@pytest.mark.parametrize(
    ("target", "rolled_back"), [(ALL, ()), (ONE, SUFFERING[:1]), (TWO, SUFFERING)], ids=["all", "one", "two"]
)
def test_it_rolls_back_the_layers_that_suffer(tmp_path: Path, target: float, rolled_back: tuple[str, ...]) -> None:
    judge = evaluator(target)
    search = Search(tmp_path, batch_num=2).run(judge)
    quantized = [name for name in LAYERS if name not in rolled_back]
    assert search.quantized == list(read_record(search.flow.record)) == quantized
    assert operators(search.deploy).count("AscendQuant") == len(quantized)
    for name in LAYERS:
        weight = node_named(search.deploy, name).input[1]
        tensor = next(t for t in onnx.load(search.deploy).graph.initializer if t.name == weight)
        assert (tensor.data_type == onnx.TensorProto.INT8) == (name in quantized), name
    assert error_of(search.fake_quant, judge) <= target
    assert agreement(search, {"x": pictures(99)}) > AGREEMENT_DB


def test_a_layer_that_is_rolled_back_has_its_float_weight(tmp_path: Path) -> None:
    search = Search(tmp_path, batch_num=2).run(evaluator())
    graphs = [onnx.load(path).graph for path in (search.flow.model, search.deploy, search.fake_quant)]
    weights = []
    for graph in graphs:
        node = next(node for node in graph.node if node.name == "conv2")
        tensor = next(tensor for tensor in graph.initializer if tensor.name == node.input[1])
        weights.append(onnx.numpy_helper.to_array(tensor))
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_array_equal(weights[2], weights[0])


def test_the_history_and_the_ranking_tell_of_the_search(tmp_path: Path) -> None:
    search = Search(tmp_path, batch_num=2).run(evaluator())
    ranking = search.ranking
    assert tuple(name for name, _ in ranking)[:2] == SUFFERING
    assert sorted(name for name, _ in ranking) == sorted(LAYERS)
    values = [value for _, value in ranking]
    assert values == sorted(values)
    assert values[1] < 0.99 < values[2]
    history = read_history(tmp_path)
    assert [sum(not on for on in trial["roll_back_config"].values()) for trial in history] == [0, 3, 1, 2]
    assert [trial["metric_eval"][0] for trial in history] == [False, True, False, True]
    assert all(list(trial) == ["roll_back_config", "metric_eval"] for trial in history)


def test_it_calibrates_once_whatever_the_number_of_trials(tmp_path: Path) -> None:
    judge = evaluator()
    Search(tmp_path, batch_num=2).run(judge)
    trials = len(read_history(tmp_path)) - 1
    assert trials == 3
    # The second run of the data ranks the layers.
    assert judge.calls == ["evaluate", "calibration", "evaluate", "calibration", *["evaluate"] * trials]


def test_the_factors_are_those_of_the_one_calibration(tmp_path: Path) -> None:
    search = Search(tmp_path / "search", batch_num=2).run(evaluator())
    flow = Search(tmp_path / "flow", batch_num=2).flow.quantize()
    flow.calibrate([{"x": pictures(seed)} for seed in range(2)])
    everything = flow.records()
    assert read_record(search.flow.record) == {name: everything[name] for name in ("conv1", "conv3", "conv5")}


def test_without_rollback_the_models_are_those_of_the_three_functions(tmp_path: Path) -> None:
    search = Search(tmp_path / "search", batch_num=2).run(evaluator(ALL))
    flow = Search(tmp_path / "flow", batch_num=2).flow.quantize()
    flow.calibrate([{"x": pictures(seed)} for seed in range(2)]).save()
    assert Path(search.deploy).read_bytes() == Path(flow.deploy).read_bytes()
    assert Path(search.fake_quant).read_bytes() == Path(flow.fake_quant).read_bytes()
    assert Path(search.flow.record).read_bytes() == flow.record_bytes()


def test_the_final_configuration_can_be_used_as_config_file(tmp_path: Path) -> None:
    judge = evaluator()
    search = Search(tmp_path, batch_num=2).run(judge)
    flow = search.flow
    final = search.results / "accuracy_based_auto_calibration_final_config.json"
    amct.quantize_model(str(final), flow.model, flow.modified, flow.record)
    flow.calibrate(judge.batches).save()
    assert list(flow.records()) == search.quantized
    assert error_of(flow.fake_quant, judge) <= TWO


@pytest.mark.parametrize("batch_num", [1, 2, 3, 7])
def test_any_batch_num(tmp_path: Path, batch_num: int) -> None:
    judge = ErrorEvaluator([pictures(seed, count=1 + seed % 3) for seed in range(batch_num)], TWO)  # different sizes
    search = Search(tmp_path, batch_num=batch_num).run(judge)
    assert search.quantized == ["conv1", "conv3", "conv5"]


def test_further_batches_change_nothing(tmp_path: Path) -> None:
    class More(ErrorEvaluator):
        def calibration(self, model_file: str) -> None:
            super().calibration(model_file)
            session = ort.InferenceSession(model_file, amct.AMCT_SO, providers=CPU)
            session.run(None, {"x": 100 * pictures(50)})

    exact, more = Search(tmp_path / "a", batch_num=2), Search(tmp_path / "b", batch_num=2)
    exact.run(evaluator())
    more.run(More([pictures(0), pictures(1)], TWO))
    assert Path(exact.flow.record).read_bytes() == Path(more.flow.record).read_bytes()
    assert exact.ranking == more.ranking


def test_the_same_search_writes_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    class Threaded(ErrorEvaluator):
        def calibration(self, model_file: str) -> None:
            session = ort.InferenceSession(model_file, amct.AMCT_SO, providers=CPU)
            threads = [threading.Thread(target=session.run, args=(None, batch)) for batch in self.batches]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    first = Search(tmp_path / "a", batch_num=4).run(evaluator(batches=4))
    second = Search(tmp_path / "b", batch_num=4).run(Threaded([pictures(seed) for seed in range(4)], TWO))
    assert everything_below(first.results) == everything_below(second.results)


def test_each_value_of_the_ranking_is_of_one_layer_alone(tmp_path: Path) -> None:
    """The oracle quantizes that layer only, and looks at its output in the whole network."""

    class OneAlone(AutoCalibrationStrategyBase):
        """Quantizes one layer after another, alone."""

        def initialize(self, ranking_info: dict[str, float]) -> None:
            self.trial = -1

        def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
            self.trial += 1
            config = OrderedDict((name, index == self.trial) for index, name in enumerate(LAYERS))
            return {"stop_flag": self.trial == len(LAYERS) - 1, "roll_back_config": config}

    layer_outputs: list[list[list[np.ndarray]]] = []  # of each model, each batch, each layer

    class Recording(ErrorEvaluator):
        """Keeps what the layers give to the nodes behind them, for each model that it evaluates."""

        def evaluate(self, model_file: str) -> float:
            model = onnx.load(model_file)
            names = [node.input[0] for node in model.graph.node if node.op_type == "Relu"]
            model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
            session = ort.InferenceSession(model.SerializeToString(), providers=CPU)
            layer_outputs.append([session.run([*names, "y"], batch) for batch in self.batches])
            return super().evaluate(model_file)

    search = Search(tmp_path, batch_num=2).run(Recording([pictures(0), pictures(1)], TWO), strategy=OneAlone())
    floats, alone = layer_outputs[0], layer_outputs[2:]
    cosine = CosineSimilaritySensitivity().compare
    for name, value in search.ranking:
        index = LAYERS.index(name)
        expected = np.mean([cosine(a[index], b[index]) for a, b in zip(floats, alone[index], strict=True)])
        assert value == pytest.approx(expected, abs=1e-9), name


def test_both_implementations_of_the_operators_rank_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Search(tmp_path / "usual", batch_num=2).run(evaluator())
    monkeypatch.setattr(observer_op, "compiled", None)
    options = observer_op.session_options()

    class InPython(ErrorEvaluator):
        def calibration(self, model_file: str) -> None:
            session = ort.InferenceSession(model_file, options, providers=CPU)
            for batch in self.batches:
                session.run(None, batch)

    search = Search(tmp_path / "python", batch_num=2).run(InPython([pictures(0), pictures(1)], TWO))
    assert everything_below(search.results) == everything_below(usual.results)


# A target that cannot be met


def test_a_target_that_cannot_be_met_writes_no_model_and_deletes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="amct_onnx")
    search = Search(tmp_path, batch_num=2)
    search.results.mkdir()
    mine = {name: f"mine {name}" for name in ("my_deploy_notes.txt", "other_deploy_model.onnx", "x_fake_quant.onnx")}
    for name, text in mine.items():
        (search.results / name).write_text(text)
    (tmp_path / "record.txt").write_text("mine")
    before = results_below(tmp_path)
    search.run(evaluator(NEVER))
    after = results_below(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"results/accuracy_based_auto_calibration_ranking_information.json"}
    assert "No quantized model are generated due to all quant layers are roll backed" in caplog.text
    assert [trial["metric_eval"][0] for trial in read_history(tmp_path)] == [False] * 3
    assert "Accuracy of saved model" not in caplog.text


# What it leaves alone


def test_config_json_and_all_files_of_the_user_stay_as_they_were(tmp_path: Path) -> None:
    search = Search(tmp_path, batch_num=2)
    config = Path(search.flow.config)
    config.write_text(config.read_text().replace('"conv5":{', '\n\n   "conv5":{') + "\n\n")  # written by hand
    os.utime(config, (1_000_000_000, 1_000_000_000))
    config.chmod(0o440)
    (search.results / "temp").mkdir(parents=True)
    (search.results / "temp" / "a_deploy_model.onnx").write_text("mine")
    (search.results / "other_fake_quant_model.onnx").write_text("mine")
    before = everything_below(tmp_path)
    search.run(evaluator())
    after = everything_below(tmp_path)
    assert {name: after[name] for name in before} == before
    assert config.stat().st_mtime == 1_000_000_000
    assert files_below(tmp_path) - set(before) == RESULTS | {HISTORY, "record.txt"}
    assert not [name for name in after if name.startswith("results/temp2")]


def test_a_layer_that_the_configuration_leaves_in_float_is_no_candidate(tmp_path: Path) -> None:
    search = Search(tmp_path, batch_num=2, skip_layers=["conv2", "conv5"]).run(evaluator())
    assert {name for name, _ in search.ranking} == {"conv1", "conv3", "conv4"}
    assert search.quantized == ["conv1", "conv3"]


@pytest.mark.parametrize(
    ("save_dir", "model"), [("", "deploy_model.onnx"), ("out/", "out/deploy_model.onnx"), ("m", "m_deploy_model.onnx")]
)
def test_save_dir_is_a_folder_and_a_prefix(tmp_path: Path, save_dir: str, model: str) -> None:
    Search(tmp_path, batch_num=1).run(evaluator(batches=1), save_dir=save_dir)
    assert (tmp_path / model).is_file()
    folder = (tmp_path / model).parent
    assert (folder / "accuracy_based_auto_calibration_final_config.json").is_file()
    assert not [path for path in folder.iterdir() if path.name.startswith("temp")]


def test_an_evaluator_may_change_the_working_folder(tmp_path: Path) -> None:
    class Wanderer(ErrorEvaluator):
        def evaluate(self, model_file: str) -> float:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            os.chdir(tmp_path / "elsewhere")
            return super().evaluate(model_file)

    search = Search(tmp_path, batch_num=1)
    paths = {name: os.path.relpath(path, tmp_path) for name, path in search.arguments.items()}
    amct.accuracy_based_auto_calibration(model_evaluator=Wanderer([pictures(0)], TWO), **paths)
    assert search.quantized == ["conv1", "conv3", "conv5"]
    assert read_history(tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# Other settings of the configuration


def test_balanced_layers_keep_their_factors_or_are_rolled_back_with_them(tmp_path: Path) -> None:
    search = Search(tmp_path, batch_num=2)
    config = json.loads(Path(search.flow.config).read_text())
    for name in ("conv3", "conv4"):
        config[name]["dmq_balancer_param"] = 0.5
    Path(search.flow.config).write_text(json.dumps(config))
    balancing = str(tmp_path / "balancing.onnx")
    amct.quantize_preprocess(search.flow.config, search.flow.record, search.flow.model, balancing)
    ort.InferenceSession(balancing, amct.AMCT_SO, providers=CPU).run(None, {"x": pictures(0)})
    factors = {n: r.tensor_balance_factor for n, r in read_record(search.flow.record).items()}
    assert list(factors) == ["conv3", "conv4"]

    search.run(evaluator())  # balancing is what conv4 needed
    assert search.quantized == ["conv1", "conv3", "conv4", "conv5"]
    records = read_record(search.flow.record)
    assert {n: r.tensor_balance_factor for n, r in records.items() if r.tensor_balance_factor} == factors
    final = search.results / "accuracy_based_auto_calibration_final_config.json"
    amct.quantize_model(str(final), search.flow.model, search.flow.modified, search.flow.record)
    search.run(evaluator(NEVER), strategy=Fixed("conv2", "conv4", "conv5"))
    balanced = {n: r.tensor_balance_factor for n, r in read_record(search.flow.record).items()}
    assert balanced == {"conv1": (), **factors}
    assert read_record(search.flow.record)["conv4"].scale_d is None
    assert operators(search.deploy).count("Mul") == 3  # the two of the model, and that in front of conv3


def test_levels_of_weights_stay_what_they_were_in_every_trial(tmp_path: Path) -> None:
    """The deploy model of the answer has the clustered weights of the calibration with all layers."""
    search = Search(tmp_path, batch_num=2)
    config = json.loads(Path(search.flow.config).read_text())
    config["conv5"]["weight_quant_params"] |= {"wts_algo": "nuq_quantize", "num_steps": 16, "num_of_iteration": 1}
    Path(search.flow.config).write_text(json.dumps(config))
    search.run(evaluator(ONE))
    cluster = read_record(search.flow.record)["conv5"].cluster
    assert 0 < len(cluster) <= 16
    weight = node_named(search.deploy, "conv5").input[1]
    tensor = next(tensor for tensor in onnx.load(search.deploy).graph.initializer if tensor.name == weight)
    assert set(onnx.numpy_helper.to_array(tensor).ravel().tolist()) <= set(cluster)


def test_a_warning_is_given_once_and_not_in_every_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = suffering()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w3")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0] = 1e-12
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w3"))
    search = Search(tmp_path, model, batch_num=2)
    config = json.loads(Path(search.flow.config).read_text())
    config["conv3"]["weight_quant_params"]["channel_wise"] = False
    Path(search.flow.config).write_text(json.dumps(config))
    search.run(evaluator())
    assert len(read_history(tmp_path)) > 2
    assert caplog.text.count("have weights so small") == 1


# Strategy and sensitivity


def test_a_strategy_of_the_users_own_decides(tmp_path: Path) -> None:
    class OneByOne(AutoCalibrationStrategyBase):
        """Rolls back conv5, and one layer more after each trial, the most sensitive one first."""

        def initialize(self, ranking_info: dict[str, float]) -> None:
            self.order = sorted(ranking_info, key=lambda name: ranking_info[name])
            self.count = 0

        def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
            stop = metric_eval[0]
            self.count += not stop
            config = OrderedDict(
                (name, index >= self.count and name != "conv5") for index, name in enumerate(self.order)
            )
            return {"stop_flag": stop, "roll_back_config": config}

    search = Search(tmp_path, batch_num=2).run(evaluator(), strategy=OneByOne())
    assert search.quantized == ["conv1", "conv3"]
    history = [[name for name, on in trial["roll_back_config"].items() if not on] for trial in read_history(tmp_path)]
    assert [sorted(names) for names in history] == [[], ["conv2", "conv5"], ["conv2", "conv4", "conv5"]]


def test_a_sensitivity_of_the_users_own_decides(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []

    class Reversed(SensitivityBase):
        def compare(self, data: np.ndarray, other: np.ndarray) -> float:
            assert data.shape == other.shape
            shapes.append(data.shape)
            value = -CosineSimilaritySensitivity().compare(data, other)
            data[:], other[:] = 0, 0  # its own copies
            return np.float64(value)

    search = Search(tmp_path, batch_num=2).run(evaluator(), sensitivity=Reversed())
    assert [name for name, _ in search.ranking][-1] == "conv2"
    assert not list(search.results.glob("*_model.onnx"))  # conv2 alone is too much, and is the last to go
    assert [sum(not on for on in trial["roll_back_config"].values()) for trial in read_history(tmp_path)] == [0, 3, 4]
    assert set(shapes) == {(4, 4, 8, 8), (4, 5, 8, 8)}
    assert len(shapes) == 2 * len(LAYERS)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("near", r"compare\(\) must return a number, got str"),
        (float("nan"), "NaN"),
        (ZeroDivisionError("mine"), "ZeroDivisionError: mine"),
    ],
)
def test_a_sensitivity_that_fails_is_named_with_the_layer(tmp_path: Path, reply: Any, message: str) -> None:
    class Wrong(SensitivityBase):
        def compare(self, data: np.ndarray, other: np.ndarray) -> float:
            if isinstance(reply, Exception):
                raise reply
            return reply

    search = Search(tmp_path, batch_num=1)
    search.results.mkdir()
    with refused(tmp_path, CalibrationError, 'outputs of layer "conv', message):
        search.run(evaluator(batches=1), sensitivity=Wrong())


# Mistakes


class Lazy(ErrorEvaluator):
    """Runs one batch."""

    def calibration(self, model_file: str) -> None:
        ort.InferenceSession(model_file, amct.AMCT_SO, providers=CPU).run(None, self.batches[0])


class Once(ErrorEvaluator):
    """Runs the data for the first model only."""

    def calibration(self, model_file: str) -> None:
        if "calibration" not in self.calls:
            super().calibration(model_file)


class Poisoned(ErrorEvaluator):
    """Has a NaN in its data."""

    def calibration(self, model_file: str) -> None:
        self.batches[1]["x"][0, 0, 0, 0] = np.nan
        super().calibration(model_file)


class Forgetful(ErrorEvaluator):
    """Forgets to return the metric."""

    def evaluate(self, model_file: str) -> None:  # type: ignore[override]
        super().evaluate(model_file)

    def metric_eval(self, original_metric: Any, new_metric: Any) -> Any:
        return original_metric is None, new_metric


class Strict(ErrorEvaluator):
    """Is not content with the float model."""

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        return False, 0.0


class NoPair(ErrorEvaluator):
    """Returns the verdict alone."""

    def metric_eval(self, original_metric: float, new_metric: float) -> Any:
        return True


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (Lazy, CalibrationError, r"Lazy.calibration\(\) ran 1 of the 2 batches.*config_file.*lower batch_num"),
        (Once, CalibrationError, r"Once.calibration\(\) ran no batch.*second time.*conv1.*same batches"),
        (Poisoned, RecordError, r'layer "conv1".*NaN'),
        (
            Forgetful,
            ArgumentTypeError,
            r"Forgetful.metric_eval\(\) must return \(bool, float\), got \(bool, NoneType\)",
        ),
        (Strict, ArgumentError, r"can not satisfy the acc requirement, please check the metric_eval\(\) function"),
        (NoPair, ArgumentTypeError, r"NoPair.metric_eval\(\) must return \(bool, float\), got True"),
    ],
)
def test_what_an_evaluator_does_wrong_is_named_and_nothing_is_written(
    tmp_path: Path, kind: type[ErrorEvaluator], error: Any, message: str
) -> None:
    search = Search(tmp_path, batch_num=2)
    search.results.mkdir()
    with refused(tmp_path, error, message):
        search.run(kind([pictures(0), pictures(1)], TWO))


@pytest.mark.parametrize("method", ["calibration", "evaluate", "metric_eval"])
@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt()])
def test_what_an_evaluator_raises_passes_unchanged(tmp_path: Path, method: str, error: BaseException) -> None:
    judge = evaluator()

    def fail(*_: object) -> None:
        raise error

    setattr(judge, method, fail)
    search = Search(tmp_path, batch_num=2)
    search.results.mkdir()
    before = results_below(tmp_path)
    with pytest.raises(type(error)) as caught:
        search.run(judge)
    assert caught.value is error
    assert results_below(tmp_path) == before


def test_a_search_that_fails_late_leaves_its_history_and_no_model(tmp_path: Path) -> None:
    class Failing(ErrorEvaluator):
        def evaluate(self, model_file: str) -> float:
            if self.calls.count("evaluate") == 3:
                raise OSError("disk gone")
            return super().evaluate(model_file)

    search = Search(tmp_path, batch_num=2)
    with pytest.raises(OSError, match="disk gone"):
        search.run(Failing([pictures(0), pictures(1)], TWO))
    assert len(read_history(tmp_path)) == 2
    written = files_below(tmp_path) - {HISTORY, "float.onnx", "config.json"}
    assert written == {"results/accuracy_based_auto_calibration_ranking_information.json"}
    assert [path.name for path in search.results.iterdir() if path.is_dir()] == []


def spoil(name: str) -> Callable[[Search], dict[str, Any]]:
    def write(search: Search) -> dict[str, Any]:
        Path(search.arguments[name]).write_text("{}}")
        return {}

    return write


def blocked(search: Search) -> dict[str, Any]:
    (search.folder / "file").write_text("")
    return {"save_dir": str(search.folder / "file" / "model")}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda _: {"model_evaluator": None}, SearchError, "model_evaluator must be an instance.*type NoneType"),
        (
            lambda _: {"model_evaluator": ErrorEvaluator},
            SearchError,
            "the class ErrorEvaluator itself: make an instance",
        ),
        (lambda _: {"strategy": "Bisection"}, SearchError, "strategy must be \"BinarySearch\" or.*got 'Bisection'"),
        (lambda _: {"strategy": AutoCalibrationStrategyBase}, SearchError, "strategy.*the class .* itself"),
        (lambda _: {"sensitivity": "MSE"}, SearchError, "sensitivity must be \"CosineSimilarity\" or.*got 'MSE'"),
        (lambda _: {"sensitivity": 1}, SearchError, "sensitivity must be.*of type int"),
        (lambda _: {"config_file": "nowhere.json"}, SearchError, "Can not find the config_file at .*nowhere.json"),
        (lambda _: {"config_file": ""}, ArgumentError, "config_file is empty"),
        (lambda _: {"model_file": "nowhere.onnx"}, FileMissingError, "nowhere.onnx"),
        (lambda _: {"record_file": "out/"}, ArgumentError, "record_file is 'out/', a folder"),
        (lambda _: {"save_dir": 1}, ArgumentTypeError, "argument save_dir must be str, got int"),
        (lambda _: {"save_dir": "a" * 300}, ArgumentError, "save_dir.*at most 241"),
        (blocked, OutputError, "file is a file and no folder"),
        (spoil("config_file"), ConfigError, "config.json:1"),
        (spoil("model_file"), ModelFileError, "float.onnx"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_run_or_written(
    tmp_path: Path, change: Callable[[Search], dict[str, Any]], error: Any, message: str
) -> None:
    search, judge = Search(tmp_path), evaluator()
    changes = change(search)
    with refused(tmp_path, error, message):
        search.run(judge, **changes)
    assert judge.calls == []


# Models


MODELS = {
    "batch normalization, shared tensor, classifier": (
        build(
            """g (float[N,3,H,W] x) => (float[N,6] y) {
                [conv] a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w)
                [bn] b = BatchNormalization (a, s, o, m, v)
                [left] l = Conv (b, w1)
                [right] r = Conv (b, w2)
                [add] c = Add (l, r)
                [pool] p = AveragePool <kernel_shape=[2,2], strides=[2,2]> (c)
                [mean] q = GlobalAveragePool (p)
                [flat] f = Flatten (q)
                [gemm] y = Gemm <transB=1, alpha=0.5> (f, w3, b3)
            }""",
            w=normal(1, 4, 3, 3, 3), s=normal(2, 4), o=normal(3, 4), m=normal(4, 4), v=np.abs(normal(5, 4)) + 1,
            w1=normal(6, 5, 4, 1, 1), w2=normal(7, 5, 4, 1, 1), w3=normal(8, 6, 5), b3=normal(9, 6),
        ),
        ["conv", "left", "right", "pool", "gemm"],
    ),
    "layer normalization": (
        build(
            """g (float[N,3,H,8] x) => (float[N,3,H,5] y) {
                [first] a = MatMul (x, w1)
                [norm] b = LayerNormalization <axis=-1> (a, s, o)
                [last] y = MatMul (b, w2)
            }""",
            w1=normal(1, 8, 6), s=normal(2, 6), o=normal(3, 6), w2=normal(4, 6, 5),
        ),
        ["first", "last"],
    ),
    "no names": (
        build(
            """g (float[N,3,H,W] x) => (float[N,5,H,W] y) {
                a = ConvTranspose (x, w1)
                r = Relu (a)
                y = Conv (r, w2)
            }""",
            w1=normal(1, 3, 4, 2, 2), w2=normal(2, 5, 4, 1, 1),
        ),
        ["ConvTranspose_0", "Conv_2"],
    ),
    "one layer": (
        build("g (float[N,3,8,8] x) => (float[N,4,8,8] y) {[c] y = Conv (x, w)}", w=normal(1, 4, 3, 1, 1)),
        ["c"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_layer_is_ranked_and_rolled_back(tmp_path: Path, name: str) -> None:
    model, layers = MODELS[name]
    search = Search(tmp_path, model, batch_num=2).run(evaluator(NEVER), strategy=Fixed(*layers[:-1]))
    assert sorted(layer for layer, _ in search.ranking) == sorted(layers)
    assert [value for _, value in search.ranking] == sorted(value for _, value in search.ranking)
    assert all(0.99 < value < 1 for _, value in search.ranking), search.ranking
    assert search.quantized == layers[-1:]
    assert agreement(search, {"x": pictures(99)}) > AGREEMENT_DB


# Terminal


def test_a_script_prints_the_log_and_nothing_else(tmp_path: Path) -> None:
    search = Search(tmp_path, batch_num=1)
    support = Path(__file__).resolve().parents[1] / "support"
    script = f"""
import sys
sys.path.insert(0, {str(support)!r})
import amct_onnx as amct
from searching import ErrorEvaluator, pictures
amct.accuracy_based_auto_calibration(
    "float.onnx", ErrorEvaluator([pictures(0)], {TWO}), "config.json", "record.txt", "results/model"
)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=search.folder, capture_output=True, text=True, check=True
    )
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("INFO - [AMCT]:[") for line in lines), lines
    assert len(lines) == 15


def test_a_model_with_external_data(tmp_path: Path) -> None:
    """Its weights are read from disk in each trial, and the results are the same but for where the weights are."""
    model = build(
        "g (float[N,512] x) => (float[N,8] y) { [m1] a = MatMul (x,w1) [m2] b = MatMul (a,w2) [m3] y = MatMul (b,w3) }",
        w1=normal(1, 512, 600),
        w2=normal(2, 600, 600),
        w3=normal(3, 600, 8),
    )
    batch = normal(0, 4, 512)
    plain = Search(tmp_path / "plain", model).run(ErrorEvaluator([batch], NEVER), strategy=Fixed("m1"))
    search = Search(tmp_path / "external", model)
    onnx.save(model, search.flow.model, save_as_external_data=True, location="w.bin", size_threshold=0)
    search.run(ErrorEvaluator([batch], NEVER), strategy=Fixed("m1"))
    assert search.quantized == plain.quantized == ["m2", "m3"]
    for path, same in ((search.deploy, plain.deploy), (search.fake_quant, plain.fake_quant)):
        assert Path(f"{path}.data").exists()
        assert arrays(path) == arrays(same)


def arrays(path: str) -> dict[str, list[Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in onnx.load(path).graph.initializer}


def test_options_that_are_not_of_single_layers_hold_in_every_trial(tmp_path: Path) -> None:
    """int16, a quantized tensor, joint factors, float16 and a MatMul of two activations, one layer rolled back."""
    model = build(
        """g (float[N,3,H,W] x) => (float y) {
            [conv1] a = Conv (x, w1) [conv2] b = Conv (x, w2) [sum] s = Add (a, b)
            [conv3] c = Conv (a, w1) [conv4] d = Conv (b, w2) [mul] m = MatMul (c, d) [last] y = Add (m, s)
        }""",
        w1=normal(1, 3, 3, 1, 1),
        w2=normal(2, 3, 3, 1, 1, scale=0.2),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    search = Search(tmp_path, model)
    config = Path(search.flow.config)
    document = json.loads(config.read_text())
    document |= {"joint_quant": True, "fakequant_precision_mode": "FORCE_FP16_QUANT"}
    document["tensor_quantize"] = [{"layer_name": "last", "input_index": 1}]
    document["mul"]["quant_enable"] = True
    document["conv1"]["activation_quant_params"]["num_bits"] = 16
    config.write_text(json.dumps(document))
    search.run(evaluator(NEVER, batches=1), strategy=Fixed("conv2"))
    records = read_record(search.flow.record)
    assert sorted(records) == ["conv1", "conv3", "conv4", "last:1", "mul"]
    assert {name for name, _ in search.ranking} == {"conv1", "conv2", "conv3", "conv4", "mul"}
    assert records["conv3"].scale_d == records["conv4"].scale_d
    assert node_named(search.deploy, "conv1.quant").attribute[2].s == b"INT16"
    assert operators(search.deploy).count("AscendAntiQuant") == 1
    feeds = {"x": pictures(7)}
    want = ort.InferenceSession(search.fake_quant, providers=CPU).run(None, feeds)[0]
    np.testing.assert_array_equal(amct.deployed_session(search.deploy).run(None, feeds)[0], want)
