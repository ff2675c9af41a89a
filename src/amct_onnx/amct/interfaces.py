"""What a user may bring: an evaluator, a strategy, a measure of sensitivity (amct_formats.md: Evaluator classes)."""

from __future__ import annotations

from typing import Any

from amct_onnx.numerics.arrays import Floats


class AutoCalibrationEvaluatorBase:
    """Runs and judges models; subclasses implement all three methods."""

    def calibration(self, model_file: str) -> None:
        """Run at least batch_num batches through `model_file`, in this process, with `AMCT_SO`.

        It is called twice, with two models: the batches of the first call give the factors, those of the second one
        tell how sensitive each layer is.
        """
        raise NotImplementedError

    def evaluate(self, model_file: str) -> Any:
        """The metric of `model_file`, the float model or a fake-quant model: any object that `metric_eval` takes."""
        raise NotImplementedError

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        """Whether `new_metric` is good enough beside that of the float model, and what is lost.

        Both may be of any kind: numpy's, tensors, arrays of one element.
        """
        raise NotImplementedError


class AutoCalibrationStrategyBase:
    """Decides which layers to quantize in the next trial. The three attributes are there for subclasses, as in AMCT."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self.set_flag = True
        self.last_acc_result: dict[str, Any] = {}

    def initialize(self, ranking_info: dict[str, float]) -> None:
        """Begin a search over these layers; the smaller its value, the more a layer suffers from quantization."""
        raise NotImplementedError

    def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
        """{"stop_flag": bool, "roll_back_config": {layer: quantized}} after a trial that `metric_eval` judges.

        The first call tells of the model with all layers quantized. With "stop_flag" the configuration is the final
        one, otherwise that of the next trial. A layer that is not named stays as it was in the last trial.
        """
        raise NotImplementedError


class SensitivityBase:
    """Measures how near a layer's output after quantization is to the one before."""

    def compare(self, data: Floats, other: Floats) -> float:
        """Two float32 arrays of one shape, the float output and the quantized one: the larger, the nearer."""
        raise NotImplementedError
