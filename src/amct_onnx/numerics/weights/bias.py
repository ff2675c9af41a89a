"""Bias correction: a layer whose weight is rounded gets back the mean of its output.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2; with means of
the input from data.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Reals


def bias_correction(rows: Reals, rounded_rows: Reals, means: Doubles) -> Doubles:
    """What to add to the bias, float64[..., C]: (rows - rounded_rows) E[x], for rows [..., C, n] and means [..., n].

    The axes in front are those of groups, with columns of their own. Raises ValueError where shapes do not fit or a
    value is not finite.
    """
    if rows.shape != rounded_rows.shape or rows.ndim < 2 or means.shape != (*rows.shape[:-2], rows.shape[-1]):
        raise ValueError(f"rows {rows.shape}, rounded rows {rounded_rows.shape} and means {means.shape} do not fit")
    if not all(np.isfinite(values).all() for values in (rows, rounded_rows, means)):
        raise ValueError("the rows or the means hold NaN or Inf")
    lost = rows.astype(np.float64)
    lost -= rounded_rows
    lost *= means[..., None, :]
    return np.asarray(lost.sum(axis=-1))  # numpy's sum, not BLAS: the order is fixed
