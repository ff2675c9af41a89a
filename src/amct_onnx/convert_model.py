"""convert_qat_model at the path of AMCT's own module."""

from amct_onnx._compat.api import convert_qat_model

__all__ = ["convert_qat_model"]
