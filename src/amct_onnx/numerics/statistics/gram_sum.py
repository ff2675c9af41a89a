"""Gram matrices of columns that come in a fixed order: a fraction of the time and the memory of `Moments`.

Columns wait until there are enough for a product that is worth its time. It is BLAS's in float32, of what is left of
the columns behind the means of the first of them: so the covariances of columns that hardly vary are precise as well.
Sums are float32 too, which takes half of the memory.
The result depends on the order and on the cuts between arrays, by rounding; for one that does not depend on the number
of threads, BLAS must be given one.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.numerics.arrays import Doubles, Floats
from amct_onnx.numerics.statistics.moments import SecondMoments

WAITING = 256  # columns multiplied at a time: longer sums in float32 are less precise
_OVERFLOWS = np.errstate(over="ignore", invalid="ignore")  # a product that leaves float32 is infinite


class GramSum:
    """Sums columns float32[U, B, n] and their products, for U blocks of B entries."""

    def __init__(self, units: int, width: int) -> None:
        self._gram: Floats = np.zeros((units, width, width), np.float32)
        self._sum: Doubles = np.zeros((units, width))
        self._origin: Floats = np.zeros((units, width), np.float32)
        self._count = 0
        self._waiting: list[Floats] = []
        self._columns = 0

    @property
    def is_empty(self) -> bool:
        """Whether no column was added."""
        return not self._count and not self._columns

    def add(self, columns: Floats) -> None:
        """Take columns [U, B, n], which must not change later. Raises ValueError for NaN or Inf."""
        if not columns.shape[-1]:
            return
        if not np.isfinite(columns).all():
            raise ValueError("the tensor holds NaN or Inf: check the model and the calibration data")
        self._waiting.append(columns)
        self._columns += columns.shape[-1]
        if self._columns >= WAITING:
            self.multiply()

    @_OVERFLOWS
    def multiply(self) -> None:
        """Multiply the columns that wait."""
        if not self._waiting:
            return
        columns = np.concatenate(self._waiting, axis=2)
        self._waiting.clear()
        if not self._count:
            self._origin = columns.mean(axis=2)
        self._count += self._columns
        self._columns = 0
        for start in range(0, columns.shape[2], WAITING):
            part = columns[..., start : start + WAITING] - self._origin[..., None]
            self._gram += part @ part.transpose(0, 2, 1)
            self._sum += part.sum(axis=2, dtype=np.float64)

    @_OVERFLOWS
    def solve(self) -> SecondMoments:
        """Means of values and products; nothing may be added later. Raises ValueError without columns."""
        self.multiply()
        if not self._count:
            raise ValueError("no column was seen: the tensor is empty")
        origin, shift = self._origin.astype(np.float64), self._sum / self._count
        mean = origin + shift
        gram = self._gram.astype(np.float64)
        gram /= self._count
        gram += mean[..., None] * mean[:, None]
        gram -= shift[..., None] * shift[:, None]
        return SecondMoments(columns=self._count, mean=mean, gram=gram)
