"""The base classes of accuracy-based automatic calibration at AMCT's historical import path: names only."""

from __future__ import annotations

from amct_onnx.search.accuracy import AccuracyBasedAutoCalibrationBase
from amct_onnx.search.interfaces import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase, SensitivityBase
from amct_onnx.search.sensitivity import CosineSimilaritySensitivity
from amct_onnx.search.strategy import BinarySearchStrategy

__all__ = [
    "AccuracyBasedAutoCalibrationBase",
    "AutoCalibrationEvaluatorBase",
    "AutoCalibrationStrategyBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "SensitivityBase",
]
