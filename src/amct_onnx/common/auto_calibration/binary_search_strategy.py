"""BinarySearchStrategy at the path of AMCT's own module."""

from amct_onnx.search.strategy import BinarySearchStrategy

__all__ = ["BinarySearchStrategy"]
