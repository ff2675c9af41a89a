"""Matrix products that do not depend on the order of their sums, and so not on the threads of a BLAS library.

A matrix is written as (high + low * 2^-20) * unit, with integers of 20 bits. Up to LONGEST_SUM products of them sum up
exactly in float64, whatever the order.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Doubles

Digits = tuple[Doubles, Doubles, float]

_BITS = 20
_LEAST_POWER = -1000  # 2^1000 is a number
LONGEST_SUM = 4096  # two products of digits each, so many times, stay below 2^53


def digits(x: Doubles) -> Digits:
    """(high, low, unit): x ~ (high + low * 2^-20) * unit, integers with |high| <= 2^20 and |low| <= 2^19."""
    scaled, unit = _scaled(x)
    high = np.rint(scaled)
    scaled -= high
    return high, np.rint(scaled * 2.0**_BITS), unit


def _scaled(x: Doubles) -> tuple[Doubles, float]:
    largest = max(float(x.max()), -float(x.min()))
    power = max(int(np.frexp(largest)[1]) - _BITS, _LEAST_POWER)
    return x * 2.0**-power, 2.0**power  # exact, and many times faster than numpy's ldexp


def product_of_digits(x: Digits, y: Digits) -> Doubles:
    """x @ y to 40 bits of the largest entries; the sums are at most LONGEST_SUM long."""
    result: Doubles = x[0] @ y[0] + (x[0] @ y[1] + x[1] @ y[0]) * 2.0**-_BITS
    result *= x[2] * y[2]
    return result
