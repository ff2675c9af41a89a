"""AccuracyBasedAutoCalibrationBase at the path of AMCT's own module."""

from amct_onnx.amct.auto_control import AccuracyBasedAutoCalibrationBase

__all__ = ["AccuracyBasedAutoCalibrationBase"]
