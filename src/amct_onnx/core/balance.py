"""DMQ: factors that move the range of an activation's channels into the weight (spec section 6.5, SmoothQuant)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from amct_onnx.core.qparams import FLT_EPSILON

Floats = npt.NDArray[np.float32]


def dmq_factors(activation: npt.ArrayLike, weight: npt.ArrayLike, strength: float) -> Floats:
    """float32[C], f = a^m / w^(1-m): the activation's channel c is to be divided by f[c], the weight's multiplied.

    activation, weight: [C], the largest magnitude of each input channel, finite and >= 0. strength m in [0.2, 0.8].
    A channel that is zero on one side takes the factor that brings the other side to the largest balanced magnitude;
    one that is zero on both sides is left alone. All factors are 1 if either side is zero altogether.

    Raises ValueError when a factor leaves [FLT_EPSILON, 1/FLT_EPSILON].
    """
    a, w = np.asarray(activation, np.float64), np.asarray(weight, np.float64)
    factors = np.ones(a.shape)
    has_a, has_w = a >= FLT_EPSILON, w >= FLT_EPSILON
    both = has_a & has_w
    if both.any():
        factors[both] = a[both] ** strength / w[both] ** (1 - strength)
        top_a, top_w = (a[both] / factors[both]).max(), (w[both] * factors[both]).max()
        if top_a >= FLT_EPSILON and top_w >= FLT_EPSILON:
            factors[has_a & ~has_w] = a[has_a & ~has_w] / top_a
            factors[has_w & ~has_a] = top_w / w[has_w & ~has_a]
        else:
            factors[:] = 1
    rounded: Floats = factors.astype(np.float32)
    if ((rounded < FLT_EPSILON) | (rounded > 1 / FLT_EPSILON)).any():
        channel = int(np.abs(np.log(factors)).argmax())
        raise ValueError(
            f"the balance factor of channel {channel} would be {factors[channel]:.3g}: activation {a[channel]:.3g}, "
            f"weight {w[channel]:.3g}; take dmq_balancer away from this layer"
        )
    return rounded
