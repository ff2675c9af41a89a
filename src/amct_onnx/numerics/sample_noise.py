"""How much noise a network has over its signal, from the noise of each of some samples, and what that says of others.

Noise and signal are sums of squares, float64[samples, outputs]. Most networks are judged by pooled noise over pooled
signal, the mean over outputs. Where a few wild samples own either of the two sums, they would decide alone: there the
median of the samples takes its place.
"""

from __future__ import annotations

import math

import numpy as np

from amct_onnx.numerics.arrays import Doubles

_FEW, _OWNED, _LEAST = 0.1, 0.75, 16  # so few samples, of so many at least, own more than this share
_TAIL = 6  # samples from which the tail of a distribution can be known
_LEAST_LEVEL = 1e-30  # of noise over signal, and of noise that is divided by
_DECIBELS = 10 / math.log(10)  # of a natural logarithm
_Z = 1.645  # of a normal distribution, 95 % lie below
_LOOKS = 2.13  # 98.3 %: a search looks about three times at the same samples, and takes the first model that is enough
_MEDIAN = 1.2533 * 1.4826  # the standard error of a median, from the median distance to it, times sqrt(n)


def relative(noise: Doubles, signal: Doubles) -> Doubles:
    """Noise over signal; an output that is zero throughout counts as 1."""
    found: Doubles = noise / np.where(signal > 0, signal, 1.0)
    return found


def pooled(noise: Doubles, signal: Doubles) -> Doubles:
    """Noise over signal of all samples together, float64[outputs]."""
    return relative(noise.sum(axis=0), signal.sum(axis=0))


def medians(noise: Doubles, signal: Doubles) -> Doubles:
    """The median over samples of their noise over signal, float64[outputs]."""
    found: Doubles = np.median(relative(noise, signal), axis=0)
    return found


def few_own(amounts: Doubles) -> bool:
    """Whether a tenth of the samples makes three quarters of the sum of one of the outputs; of few samples it is not
    asked."""
    if len(amounts) < _LEAST:
        return False
    largest = np.sort(amounts, axis=0)[-math.ceil(_FEW * len(amounts)) :]
    return bool((largest.sum(axis=0) > _OWNED * amounts.sum(axis=0)).any())


def is_wild(noise: Doubles, signal: Doubles) -> bool:
    """Whether a few samples own the pooled noise or the pooled signal."""
    return few_own(noise) or few_own(signal)


def typical(noise: Doubles, signal: Doubles, *, wild: bool) -> float:
    """One number for all outputs: the mean of the pooled figures, or that of the medians where samples are wild."""
    return float((medians if wild else pooled)(noise, signal).mean())


def decibel(level: float) -> float:
    """Signal over noise in dB, from noise over signal; infinite without noise."""
    return -10 * math.log10(level) if level > 0 else math.inf


def least_decibels(noise: Doubles, signal: Doubles, *, wild: bool, tails: bool = True) -> float:
    """The dB of `typical` that as many other samples of the same kind reach as well, in 19 of 20 cases or more, also
    where this is the best of three looks (Bonferroni).

    It is below the estimate by the standard error of a difference of two estimates times the quantile of Student's t.
    Errors have long tails, of which few samples show little: so from six samples on the pooled figure is also bounded
    as the mean of a log-normal distribution (Cox's method, in Zhou and Gao, "Confidence intervals for the log-normal
    mean", 1997), unless `tails` are left out of account. One sample says nothing: -inf.
    """
    count = len(noise)
    if count < 2:
        return -math.inf
    if not noise.any():
        return math.inf
    estimate = decibel(typical(noise, signal, wild=wild))
    quantile = one_sided(count - 1, _LOOKS)
    levels = np.log(np.maximum(relative(noise, signal).mean(axis=1), _LEAST_LEVEL))
    if wild:
        distance = float(np.median(np.abs(levels - np.median(levels))))
        return estimate - quantile * math.sqrt(2 / count) * _MEDIAN * distance * _DECIBELS
    left = relative(noise.sum(axis=0) - noise, signal.sum(axis=0) - signal).mean(axis=1)
    without = np.log(np.maximum(left, _LEAST_LEVEL))
    jackknife = math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))
    if count < _TAIL or not tails:
        return estimate - quantile * jackknife * _DECIBELS
    spread = float(levels.var(ddof=1))
    error = math.sqrt(2 * (spread / count + spread**2 / (2 * (count - 1))))
    mean = float(levels.mean()) + spread / 2
    return min(estimate - quantile * jackknife * _DECIBELS, -(mean + quantile * error) * _DECIBELS)


def one_sided(freedom: int, z: float = _Z) -> float:
    """The quantile of Student's t with so many degrees of freedom that belongs to `z` of the normal distribution, of
    which 95 % lie below 1.645 (Cornish-Fisher)."""
    n = float(freedom)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
