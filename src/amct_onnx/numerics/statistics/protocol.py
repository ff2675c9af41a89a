"""What every statistic of a tensor is: a commutative monoid, so that it streams, resumes and merges across machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self


class Statistic(Protocol):
    """Laws: merge is associative and commutative, empty() is its neutral element, and
    of(concatenation) == merge(of(part), of(part)), bit for bit."""

    @classmethod
    def empty(cls) -> Self: ...

    @classmethod
    def of(cls, x: npt.NDArray[np.floating]) -> Self: ...

    def merge(self, other: Self) -> Self: ...

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]: ...

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Self: ...
