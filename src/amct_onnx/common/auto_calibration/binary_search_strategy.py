"""BinarySearchStrategy at the path of AMCT's own module."""

from amct_onnx.amct.binary_search import BinarySearchStrategy

__all__ = ["BinarySearchStrategy"]
