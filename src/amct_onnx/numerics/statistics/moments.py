"""Second moments of a layer's input columns: the Gram matrix that learned rounding (and GPTQ) works on.

Floating point sums depend on their order; these do not. Each value is cut to an integer multiple v of a power of two,
towards zero, such that |v| < 2^20, and products of integers are summed: every partial sum is an integer below 2^53 in
float64 and below 2^63 in int64, hence exact, whatever order and number of threads a BLAS library takes. The exponent
is a multiple of 10 that depends on the largest magnitude alone. When a later batch needs a coarser grid, the sums over
it are there already: they are kept for the grid and for the next coarser one, on which values have the upper half of
their bits. trunc(trunc(x / 2^e) / 2^10) = trunc(x / 2^(e+10)), so coarsening is exact too, and merging is exact for
any order and any sharding. Beside the largest magnitude a value keeps 10 to 20 bits.

Long columns are cut into blocks, and only products within a block are kept: see `numerics/im2col.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Int64s, Reals

_STEP = 10  # bits from one grid to the next
_BITS = 2 * _STEP
_LOWEST = -1000  # exponent of columns of zeros; a multiple of _STEP below that of any float32
_EXACT_COLUMNS = 1 << (53 - 2 * _BITS)  # so many products sum up exactly in float64
_MOST_COLUMNS = 1 << (63 - 2 * _BITS)  # and so many in int64


@dataclass(frozen=True, kw_only=True)
class SecondMoments:
    """What a calibrated layer's columns look like: `mean` float64[U, B], `gram` float64[U, B, B] = E[x x^T].

    U counts the blocks of all groups. `columns` is how many were seen.
    """

    columns: int
    mean: Doubles
    gram: Doubles


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Moments of columns float32[U, B, n], U blocks of B entries each: a commutative monoid, as histograms are.

    Without arguments they are those of no columns, of any shape.

    sums: int64[2, U, B], products: int64[2, U, B, B], both in units of the grid 2^exponent (index 0) and of
    2^(exponent + 10) (index 1).
    """

    count: int = 0
    exponent: int = _LOWEST
    sums: Int64s = field(default_factory=lambda: np.zeros((2, 0, 0), np.int64))
    products: Int64s = field(default_factory=lambda: np.zeros((2, 0, 0, 0), np.int64))

    @classmethod
    def of(cls, x: Reals) -> Moments:
        """Moments of columns [U, B, n]. Raises ValueError for NaN or Inf."""
        units, width, count = x.shape
        largest = max(float(x.max()), -float(x.min())) if x.size else 0.0
        if not np.isfinite(largest):
            raise ValueError("the tensor holds NaN or Inf: check the model and the calibration data")
        exponent = _exponent(largest)
        sums = np.zeros((2, units, width), np.int64)
        products = np.zeros((2, units, width, width), np.int64)
        if largest > 0:
            for start in range(0, count, _EXACT_COLUMNS):
                part = np.ldexp(x[..., start : start + _EXACT_COLUMNS].astype(np.float64), -exponent)
                for index in range(2):
                    np.trunc(part, out=part)
                    sums[index] += part.sum(axis=2).astype(np.int64)
                    products[index] += (part @ part.transpose(0, 2, 1)).astype(np.int64)
                    part *= 2.0**-_STEP
        return cls(count=count, exponent=exponent, sums=sums, products=products)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of columns. Raises ValueError where shapes differ or int64 would overflow."""
        if not self.count or not other.count:
            return self if self.count else other
        if self.sums.shape != other.sums.shape:
            raise ValueError(f"columns of {self.sums.shape[1:]} and of {other.sums.shape[1:]} cannot be merged")
        if self.count + other.count >= _MOST_COLUMNS:
            raise ValueError(f"more than {_MOST_COLUMNS} columns: use fewer batches")
        exponent = max(self.exponent, other.exponent)
        first, second = self._coarsened(exponent), other._coarsened(exponent)
        return Moments(
            count=self.count + other.count,
            exponent=exponent,
            sums=first.sums + second.sums,
            products=first.products + second.products,
        )

    def solve(self) -> SecondMoments:
        """Means of values and products in float64. Raises ValueError without columns."""
        if not self.count:
            raise ValueError("no column was seen: the tensor is empty")
        unit = 2.0**self.exponent if self.exponent > _LOWEST else 0.0
        mean = self.sums[0] * (unit / self.count)
        return SecondMoments(columns=self.count, mean=mean, gram=self.products[0] * (unit * unit / self.count))

    def _coarsened(self, exponent: int) -> Moments:
        steps = (exponent - self.exponent) // _STEP
        if steps == 0:
            return self
        sums, products = np.zeros_like(self.sums), np.zeros_like(self.products)
        if steps == 1:  # on the grid after the next one all values are 0
            sums[0], products[0] = self.sums[1], self.products[1]
        return Moments(count=self.count, exponent=exponent, sums=sums, products=products)


def _exponent(largest: float) -> int:
    """The smallest multiple of _STEP with largest < 2^(exponent + _BITS)."""
    if largest == 0:
        return _LOWEST
    power = int(np.frexp(largest)[1])  # largest < 2^power
    return -((_BITS - power) // _STEP) * _STEP
