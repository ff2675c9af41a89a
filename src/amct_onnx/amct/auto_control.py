"""The control of a search for accuracy; a subclass works on models (amct_formats.md: Accuracy-based calibration)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase, SensitivityBase
from amct_onnx.errors import ArgumentError, ArgumentTypeError, SearchError, did_you_mean, listed
from amct_onnx.files.whole_files import write_atomic
from amct_onnx.progress import shown_on_terminal
from amct_onnx.values.answers import shown, to_number, to_truth

STOP_FLAG, ROLL_BACK_CONFIG = "stop_flag", "roll_back_config"
HISTORY_FILE = "accuracy_based_auto_calibration_record.json"
RANKING_FILE = "accuracy_based_auto_calibration_ranking_information.json"
CONFIG_FILE = "accuracy_based_auto_calibration_final_config.json"
_STARS = "*" * 20
# A strategy may repeat itself this often in a row, and try this many configurations, on top of what n layers justify:
# n repeats, and n * n trials, which is what rolling back one layer after another by trial of each takes.
_MARGIN = 10
_log = logging.getLogger("amct_onnx.AMCT")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration, by the layers that stay in float, and how it did."""

    rolled_back: frozenset[str]
    metric: Any
    satisfied: bool
    loss: float


class AccuracyBasedAutoCalibrationBase:
    """Searches for a configuration that is accurate enough; `run` does it all, by the methods that subclasses give.

    Every configuration is evaluated once. The paths are resolved at once, since an evaluator may change the folder.
    """

    def __init__(
        self,
        record_file: str,
        config_file: str,
        save_dir: str,
        evaluator: AutoCalibrationEvaluatorBase,
        strategy: AutoCalibrationStrategyBase,
        sensitivity: SensitivityBase,
    ) -> None:
        self.record_file, self.config_file = os.path.realpath(record_file), os.path.realpath(config_file)
        folder, prefix = os.path.split(save_dir)
        self.save_dir = os.path.join(os.path.realpath(folder), prefix)
        self.amct_log_dir = os.path.realpath("amct_log")
        self.evaluator, self.strategy, self.sensitivity = evaluator, strategy, sensitivity
        self.ranking_info: dict[str, float] = {}
        self.history: list[Trial] = []

    # What a subclass gives.

    def get_original_accuracy(self) -> Any:
        """The metric of the float model."""
        raise NotImplementedError

    def get_global_quant_accuracy(self) -> Any:
        """The metric with all layers quantized."""
        raise NotImplementedError

    def get_ranking_info(self) -> dict[str, float]:
        """The sensitivity of every quantized layer, in graph order."""
        raise NotImplementedError

    def roll_back_and_evaluate_model(self, roll_back_config: Mapping[str, bool]) -> Any:
        """The metric with those layers quantized whose value is true; at least one is."""
        raise NotImplementedError

    def save_results(self, roll_back_config: Mapping[str, bool]) -> None:
        """Write the models, the record and the configuration of the answer; at least one layer is quantized."""
        raise NotImplementedError

    # The search.

    def run(self) -> None:
        """Evaluate, calibrate, rank, search, save.

        Raises ArgumentError if the float model does not satisfy the evaluator, ArgumentTypeError or SearchError for
        what evaluator or strategy answer; what they raise passes unchanged.
        """
        with shown_on_terminal("evaluate the float model"):
            original = self.get_original_accuracy()
        if not self._judge(original, original, frozenset()).satisfied:
            text = "Compare between original_accuracy and original_accuracy can not satisfy the acc requirement, "
            _log.error("%splease check the metric_eval() function.", text)
            raise ArgumentError(f"{text}please check the metric_eval() function.")
        first = self._judge(original, self.get_global_quant_accuracy(), frozenset())
        with shown_on_terminal("rank the layers"):
            self.ranking_info = self.get_ranking_info()
        self._save_ranking()
        self._remember(first)
        if first.satisfied:
            text = "The model satisfy the requirement after all layers are quantized, automatic calibration succeed!"
            _log.info(text)
            answer = first
        else:
            answer = self._fine_search(original, first)
        _log.info("Accuracy of original model is %s", original)
        _log.info("Accuracy of global quantized model is %s", first.metric)
        self._finish(answer)

    def _finish(self, answer: Trial) -> None:
        layers = len(self.ranking_info)
        if len(answer.rolled_back) == layers:
            _log.info(
                "No quantized model are generated due to all quant layers are roll backed, the accuracy target may be "
                "too difficult to achieve."
            )
            return
        self.save_results(self._config(answer.rolled_back))
        _log.info("Accuracy of saved model is %s", answer.metric)
        if not answer.satisfied:
            _log.warning("The saved model does not satisfy metric_eval: the strategy chose it all the same.")
        _log.info("%d of %d layers are rolled back, after %d trials", len(answer.rolled_back), layers, self._trials)
        _log.info("The generated model is stored in dir: %s", os.path.dirname(self.save_dir))
        _log.info("The records file is stored in dir: %s", os.path.dirname(self.record_file))

    @property
    def _trials(self) -> int:
        return len(self.history) - 1

    def _fine_search(self, original: Any, first: Trial) -> Trial:
        """Ask the strategy until it stops; the trial of its last configuration."""
        tried = {first.rolled_back: first}
        everything = frozenset(self.ranking_info)
        tried[everything] = self._judge(original, original, everything)  # that is the float model
        self.strategy.initialize(dict(self.ranking_info))
        trial, repeats = first, 0
        while True:
            answer = self.strategy.update_quant_config((trial.satisfied, trial.loss))
            stop, rolled_back = self._parse(answer, trial.rolled_back)
            repeats = 0 if rolled_back not in tried else repeats + 1
            if rolled_back not in tried:
                step = self._trials + 1
                _log.info("%s fine search step %d %s", _STARS, step, _STARS)
                with shown_on_terminal(
                    f"fine search step {step}: {len(rolled_back)} of {len(everything)} layers rolled back"
                ):
                    metric = self.roll_back_and_evaluate_model(self._config(rolled_back))
                tried[rolled_back] = self._judge(original, metric, rolled_back)
                self._remember(tried[rolled_back])
            trial = tried[rolled_back]
            if stop:
                _log.info("Fine search finish, automatic calibration succeed!")
                return trial
            if repeats > len(everything) + _MARGIN or self._trials > len(everything) ** 2 + _MARGIN:
                return self._give_up()

    def _give_up(self) -> Trial:
        name = type(self.strategy).__name__
        good = [trial for trial in self.history if trial.satisfied]
        if not good:
            raise SearchError(
                f"The strategy {name} does not stop: it made no progress after {self._trials} trials, none of which "
                'satisfied metric_eval. Let update_quant_config() set "stop_flag" at last.'
            )
        _log.warning("The strategy %s does not stop after %d trials: the last good one is taken.", name, self._trials)
        return good[-1]

    def _parse(self, answer: Any, before: frozenset[str]) -> tuple[bool, frozenset[str]]:
        """ "stop_flag", and the layers that stay in float; one that the strategy does not name stays as it was in
        the last trial, where `before` was in float. Raises SearchError.
        """
        what = f"{type(self.strategy).__name__}.update_quant_config()"
        if not isinstance(answer, Mapping) or not {STOP_FLAG, ROLL_BACK_CONFIG} <= answer.keys():
            got = f"with {sorted(map(str, answer))}" if isinstance(answer, Mapping) else type(answer).__name__
            text = f'must return a dictionary with "{STOP_FLAG}" and "{ROLL_BACK_CONFIG}", got {got}'
            raise SearchError(f"{what} {text}")
        config = answer[ROLL_BACK_CONFIG]
        if not isinstance(config, Mapping):
            text = f'"{ROLL_BACK_CONFIG}" must map layers to bools, got {type(config).__name__}'
            raise SearchError(f"{what}: {text}")
        stop, quantized = _truth(answer[STOP_FLAG]), {layer: _truth(value) for layer, value in config.items()}
        if stop is None:
            raise SearchError(f'{what}: "{STOP_FLAG}" must be a bool, got {shown(answer[STOP_FLAG])}')
        unknown = [str(layer) for layer in config if layer not in self.ranking_info]
        wrong = [str(layer) for layer, value in quantized.items() if value is None]
        for layers, text in (
            (unknown, "names layers that are not quantized"),
            (wrong, "must map layers to bools, it does not for"),
        ):
            if layers:
                hint = did_you_mean(layers[0], self.ranking_info, "") if layers is unknown else ""
                names = listed(layers, 5) + (f"; {hint}" if hint else "")
                raise SearchError(f'{what}: "{ROLL_BACK_CONFIG}" {text}: {names}')
        named = frozenset(layer for layer, value in quantized.items() if not value)
        return stop, before.difference(quantized) | named

    def _judge(self, original: Any, metric: Any, rolled_back: frozenset[str]) -> Trial:
        """Ask the evaluator; a Python bool and float, whatever kinds of truth and number it answers with."""
        answer: Any = self.evaluator.metric_eval(original, metric)
        what = f"{type(self.evaluator).__name__}.metric_eval() must return (bool, float)"
        pair = list(answer) if isinstance(answer, tuple | list) or getattr(answer, "ndim", 0) == 1 else []
        if len(pair) != 2:
            raise ArgumentTypeError(f"{what}, got {_brief(answer)}")
        try:
            satisfied, loss = to_truth(pair[0]), to_number(pair[1])
        except TypeError as error:
            raise ArgumentTypeError(f"{what}, got ({', '.join(map(shown, pair))})") from error
        except ValueError as error:
            text = f"{what}, and it returned NaN: check the accuracies {_brief(original)} and {_brief(metric)}."
            raise ArgumentError(text) from error
        return Trial(rolled_back=rolled_back, metric=metric, satisfied=satisfied, loss=loss)

    # Files.

    def _config(self, rolled_back: frozenset[str]) -> dict[str, bool]:
        return {layer: layer not in rolled_back for layer in self.ranking_info}

    def _remember(self, trial: Trial) -> None:
        """Add a trial to the history, and write it: a search that is interrupted leaves it behind."""
        self.history.append(trial)
        if self._trials:
            rolled_back, layers = len(trial.rolled_back), len(self.ranking_info)
            verdict = (trial.satisfied, trial.loss)
            _log.info("%d of %d layers rolled back, metric_eval: %s", rolled_back, layers, verdict)
        records = [
            {ROLL_BACK_CONFIG: self._config(trial.rolled_back), "metric_eval": [trial.satisfied, trial.loss]}
            for trial in self.history
        ]
        write_atomic(Path(self.amct_log_dir, HISTORY_FILE), "".join(_json(record) for record in records))

    def _save_ranking(self) -> None:
        ranking = sorted(self.ranking_info.items(), key=lambda item: item[1])
        for layer, value in self.ranking_info.items():
            _log.debug("******** sensitivity of module %s is %s ********", layer, value)
        write_atomic(Path(os.path.dirname(self.save_dir), RANKING_FILE), _json([list(item) for item in ranking]))


def _truth(value: Any) -> bool | None:
    """Whether a value is true; None if it is no truth value."""
    try:
        return to_truth(value)
    except (TypeError, ValueError):
        return None


def _brief(value: Any) -> str:
    return f"{' '.join(repr(value).split()):.100}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=4, separators=(",", ":"), ensure_ascii=False)
