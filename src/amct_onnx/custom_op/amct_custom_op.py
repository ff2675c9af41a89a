"""AMCT_SO at the path of AMCT's own module."""

from amct_onnx import AMCT_SO

__all__ = ["AMCT_SO"]
