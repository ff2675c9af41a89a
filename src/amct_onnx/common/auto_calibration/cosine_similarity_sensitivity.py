"""CosineSimilaritySensitivity at the path of AMCT's own module."""

from amct_onnx.amct.cosine_similarity import CosineSimilaritySensitivity

__all__ = ["CosineSimilaritySensitivity"]
