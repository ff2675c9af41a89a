"""AutoCalibrationStrategyBase at the path of AMCT's own module."""

from amct_onnx.amct.interfaces import AutoCalibrationStrategyBase

__all__ = ["AutoCalibrationStrategyBase"]
