"""AMCT's accuracy_based_auto_calibration, with its signature and argument checks (spec section 1.8)."""

from __future__ import annotations

from amct_onnx._compat.arguments import checked
from amct_onnx.amct.auto_calibration import OnnxAutoCalibration
from amct_onnx.amct.binary_search import BinarySearchStrategy
from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity
from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase, SensitivityBase
from amct_onnx.errors import SearchError


@checked(files=("model_file", "config_file", "record_file"), prefixes=("save_dir",))
def accuracy_based_auto_calibration(
    model_file: str,
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: str,
    record_file: str,
    save_dir: str,
    strategy: str | AutoCalibrationStrategyBase = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
) -> None:
    """Quantize as many layers as the accuracy allows, and write what `save_model` writes (spec section 9).

    model_evaluator runs calibration data, measures models and says what is accurate enough. config_file, of
    `create_quant_config`, is read only. record_file gets the factors of the answer. save_dir is a folder and a prefix,
    as in `save_model`; the final configuration and the ranking of the layers go to the folder too, the trials to
    ./amct_log.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError for an evaluator, a strategy or a
    sensitivity that is none or does not do its part, OSError when a result cannot be written. What the evaluator or the
    strategy raise passes unchanged.
    """
    if not isinstance(model_evaluator, AutoCalibrationEvaluatorBase):
        raise SearchError(
            "Argument model_evaluator must be an instance of a subclass of AutoCalibrationEvaluatorBase (of "
            f"amct_onnx.common.auto_calibration), got {_describe(model_evaluator)}."
        )
    if strategy == "BinarySearch":
        strategy = BinarySearchStrategy()
    if not isinstance(strategy, AutoCalibrationStrategyBase):
        raise SearchError(
            'Argument strategy must be "BinarySearch" or an instance of a subclass of AutoCalibrationStrategyBase, '
            f"got {_describe(strategy)}."
        )
    if sensitivity == "CosineSimilarity":
        sensitivity = CosineSimilaritySensitivity()
    if not isinstance(sensitivity, SensitivityBase):
        raise SearchError(
            'Argument sensitivity must be "CosineSimilarity" or an instance of a subclass of SensitivityBase, '
            f"got {_describe(sensitivity)}."
        )
    search = OnnxAutoCalibration(model_file, model_evaluator, config_file, record_file, save_dir, strategy, sensitivity)
    search.run()


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself: make an instance of it"
    return repr(value) if isinstance(value, str) else f"an object of type {type(value).__name__}"
