"""Cosine similarity of a layer's outputs before and after quantization (amct_formats.md: Cosine similarity)."""

from __future__ import annotations

import math

import numpy as np

from amct_onnx.amct.interfaces import SensitivityBase
from amct_onnx.numerics.arrays import Floats

_BLOCK = 1 << 14  # elements that stay in a fast cache as float64


class CosineSimilaritySensitivity(SensitivityBase):
    """(1 + cos) / 2 of the flattened arrays: 1 for the same direction, 0 for the opposite one."""

    def compare(self, data: Floats, other: Floats) -> float:
        a, b = np.ravel(data), np.ravel(other)
        products = np.zeros(3)
        for start in range(0, a.size, _BLOCK):
            x, y = (part[start : start + _BLOCK].astype(np.float64) for part in (a, b))
            # einsum adds without BLAS, whose threads would do it in an order of their own.
            products += [np.einsum("i,i", p, q) for p, q in ((x, x), (y, y), (x, y))]
        of_data, of_other, between = (float(product) for product in products)
        if not of_data:
            return 1.0
        if not of_other:
            return 0.0
        return 0.5 + 0.5 * between / (math.sqrt(of_data) * math.sqrt(of_other))
