"""AccuracyBasedAutoCalibrationBase at the path of AMCT's own module."""

from amct_onnx.search.accuracy import AccuracyBasedAutoCalibrationBase

__all__ = ["AccuracyBasedAutoCalibrationBase"]
