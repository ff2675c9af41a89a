"""AutoCalibrationEvaluatorBase at the path of AMCT's own module."""

from amct_onnx.search.interfaces import AutoCalibrationEvaluatorBase

__all__ = ["AutoCalibrationEvaluatorBase"]
