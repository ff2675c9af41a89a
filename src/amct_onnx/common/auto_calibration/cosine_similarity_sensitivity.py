"""CosineSimilaritySensitivity at the path of AMCT's own module."""

from amct_onnx.search.sensitivity import CosineSimilaritySensitivity

__all__ = ["CosineSimilaritySensitivity"]
