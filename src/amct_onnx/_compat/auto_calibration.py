"""AMCT's function, with its signature and argument checks (amct_formats.md: accuracy_based_auto_calibration)."""

from __future__ import annotations

from typing import TypeVar

from amct_onnx._compat.arguments import checked
from amct_onnx.amct.auto_calibration import OnnxAutoCalibration
from amct_onnx.amct.binary_search import BinarySearchStrategy
from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity
from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase, SensitivityBase
from amct_onnx.errors import SearchError

T = TypeVar("T")


@checked(files=("model_file", "config_file", "record_file"), prefixes=("save_dir",), written=("record_file",))
def accuracy_based_auto_calibration(
    model_file: str,
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: str,
    record_file: str,
    save_dir: str,
    strategy: str | AutoCalibrationStrategyBase = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
) -> None:
    """Quantize as many layers as the accuracy allows, and write what `save_model` writes
    (amct_formats.md: Accuracy-based calibration).

    model_evaluator runs calibration data, measures models and says what is accurate enough. config_file, of
    `create_quant_config`, is read only. record_file gets the factors of the answer. save_dir is a folder and a prefix,
    as in `save_model`; the final configuration and the ranking of the layers go to the folder too, the trials to
    ./amct_log.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError for an evaluator, a strategy or a
    sensitivity that is none or does not do its part, OSError when a result cannot be written. What the evaluator or the
    strategy raise passes unchanged.
    """
    where = " (of amct_onnx.common.auto_calibration)"
    evaluator = _instance("model_evaluator", model_evaluator, AutoCalibrationEvaluatorBase, behind=where)
    if strategy == "BinarySearch":
        strategy = BinarySearchStrategy()
    chosen = _instance("strategy", strategy, AutoCalibrationStrategyBase, before='"BinarySearch" or ')
    if sensitivity == "CosineSimilarity":
        sensitivity = CosineSimilaritySensitivity()
    measure = _instance("sensitivity", sensitivity, SensitivityBase, before='"CosineSimilarity" or ')
    OnnxAutoCalibration(model_file, evaluator, config_file, record_file, save_dir, chosen, measure).run()


def _instance(name: str, value: object, kind: type[T], *, before: str = "", behind: str = "") -> T:
    """The argument `name` if it is an instance of `kind`. Raises SearchError."""
    if isinstance(value, kind):
        return value
    got = repr(value) if isinstance(value, str) else f"an object of type {type(value).__name__}"
    if isinstance(value, type):
        got = f"the class {value.__name__} itself: make an instance of it"
    what = f"{before}an instance of a subclass of {kind.__name__}{behind}"
    raise SearchError(f"Argument {name} must be {what}, got {got}.")
