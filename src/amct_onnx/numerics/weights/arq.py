"""ARQ: weights scaled by their extremes (amct_formats.md: ARQ)."""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.grid import QParams, QSpec, symmetric_from_range


def solve_arq(weight: Floats, spec: QSpec) -> QParams:
    """QParams of `weight`, one scale or one per index of the spec's axis; an all-zero channel gets scale 1.

    Raises ValueError when the weight is empty, holds NaN or Inf, or is too large.
    """
    if weight.size == 0:
        raise ValueError("the weight is empty")
    if not np.isfinite(weight).all():
        raise ValueError("the weight holds NaN or Inf")
    axis = spec.channel_axis
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    return symmetric_from_range(rows.min(axis=1), rows.max(axis=1), spec)
