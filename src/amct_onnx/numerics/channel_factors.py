"""Factors that even out the channels of activations: DMQ (amct_formats.md: DMQ), SmoothQuant and equalization.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amct_onnx.numerics.arrays import Floats, Reals
from amct_onnx.numerics.grid import FLT_EPSILON

_SILENT = 1e-6  # of the largest magnitude: channels below it count as this
_ROOM = 1.25  # between the largest magnitude that was seen and a bound that clips: other data has larger ones
_LEAST_FACTOR = 1 / 64
_MEAN_SQUARE = 1 / 20  # of a channel, as a share of its largest square: what activations have, roughly


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


def equalizing_factors(magnitudes: Sequence[Floats], *, strength: float, ceiling: float = np.inf) -> Floats:
    """float32[C] in (0, 1], of which the largest is 1: channel c of some tensors is to be divided by f[c].

    magnitudes: [C] of each tensor, the largest magnitude of each channel, finite and >= 0. f = r^strength, where r is
    the geometric mean over the tensors of magnitude / largest magnitude of that tensor: with strength 1 all channels of
    a single tensor get one range, with less the weights behind it keep some of theirs. ceiling: what divided tensors
    are clipped at; then no f is so small that less than 1.25 times the magnitude gets through.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1, with
    ranges of activations from data in place of those of weights: the latter have a scale for each channel here.
    """
    logs = np.zeros(magnitudes[0].shape)
    least = np.zeros(magnitudes[0].shape)
    for magnitude in magnitudes:
        values = np.asarray(magnitude, np.float64)
        if values.max(initial=0.0) < FLT_EPSILON:
            continue
        logs += np.log(np.maximum(values / values.max(), _SILENT)) / len(magnitudes)
        least = np.maximum(least, _ROOM * values / ceiling)
    factors = np.maximum(np.exp(strength * logs), _LEAST_FACTOR)
    factors = np.maximum(factors / factors.max(initial=_LEAST_FACTOR), np.minimum(least, 1.0))
    return np.asarray(factors, np.float32)


def rounding_noise(weight: Reals, magnitudes: Reals, *factors: Reals) -> tuple[float, ...]:
    """What int8 does to a layer whose input channel c is divided by factors[c] and its weight multiplied: estimated
    noise over signal of an output, the mean over outputs, for each of `factors`. It knows channels by their magnitudes
    alone.

    weight: [groups, outputs, inputs, taps]. magnitudes, factors: [groups * inputs], the largest magnitude of a channel,
    >= 0, and > 0. A step s makes an error of s^2/12 (one scale for the input, one for each output's weights), which
    goes through the layer as if elements were independent. Outputs without a signal do not count.
    """
    groups, _, inputs, taps = weight.shape
    squares = np.square(weight, dtype=np.float64).sum(axis=3)  # [groups, outputs, inputs], as all that follows
    largest = np.abs(weight).max(axis=3, initial=0.0)
    m, *divisors = (np.asarray(values, np.float64).reshape(groups, inputs, 1) for values in (magnitudes, *factors))
    power = _MEAN_SQUARE * m**2
    signal = squares @ power
    heard = signal > _SILENT * signal.max(initial=0.0)
    if not heard.any():
        return (0.0,) * len(factors)

    def noise(f: Reals) -> float:
        of_input = ((m / f).max() / 255) ** 2 * (squares @ f**2)
        widest = (largest * f.transpose(0, 2, 1)).max(axis=2, keepdims=True)
        of_weight = (widest / 127) ** 2 * taps * (power / f**2).sum(axis=1, keepdims=True)
        return float(((of_input + of_weight)[heard] / signal[heard]).mean() / 12)

    return tuple(map(noise, divisors))


def has_outliers(activation: npt.ArrayLike, ratio: float = 4.0) -> bool:
    """Whether the channel of the largest magnitude is more than `ratio` times that of the median; activation: [C]."""
    a = np.asarray(activation, np.float64)
    return bool(a.size and a.max() > ratio * np.median(a))


def smooth_factors(activation: npt.ArrayLike, strength: float = 0.7) -> Floats:
    """float32[C], powers of the channels' magnitudes: the activation's channel c is to be divided by f[c].

    activation: [C], the largest magnitude of each input channel, finite and >= 0. strength m in [0, 1]: f = a^m, in
    units of its geometric mean. The paper divides by w^(1-m) as well, the largest weight of a channel; where weights
    have a scale for each output, that was measured to lose more than it gains. A channel that is nearly silent counts
    as a thousandth of the loudest one, so that factors stay within 1000.
    """
    a = np.asarray(activation, np.float64)
    top = float(a.max()) if a.size else 0.0
    if top < FLT_EPSILON:
        return np.ones(a.shape, np.float32)
    logs = strength * np.log(np.maximum(a / top, 1e-3))
    return np.asarray(np.exp(logs - logs.mean()), np.float32)
