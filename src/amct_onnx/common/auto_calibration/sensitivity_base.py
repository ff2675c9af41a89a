"""SensitivityBase at the path of AMCT's own module."""

from amct_onnx.amct.interfaces import SensitivityBase

__all__ = ["SensitivityBase"]
