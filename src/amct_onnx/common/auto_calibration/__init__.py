"""The base classes of accuracy-based automatic calibration at AMCT's historical import path: names only."""

from __future__ import annotations

from amct_onnx.amct.auto_control import AccuracyBasedAutoCalibrationBase
from amct_onnx.amct.binary_search import BinarySearchStrategy
from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity
from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase, SensitivityBase

__all__ = [
    "AccuracyBasedAutoCalibrationBase",
    "AutoCalibrationEvaluatorBase",
    "AutoCalibrationStrategyBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "SensitivityBase",
]
