"""AutoCalibrationEvaluatorBase at the path of AMCT's own module."""

from amct_onnx.amct.interfaces import AutoCalibrationEvaluatorBase

__all__ = ["AutoCalibrationEvaluatorBase"]
