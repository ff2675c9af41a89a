"""The range of each channel of a tensor, the last axis of what a matrix product reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelRange:
    """A `Statistic` of tensors [..., C]: the least and the largest value of each channel, float32[C], read-only.

    Without any element seen, C is 0.
    """

    lowest: Floats
    highest: Floats

    def __post_init__(self) -> None:
        for name in ("lowest", "highest"):
            array = np.array(getattr(self, name), np.float32)
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def empty(cls) -> ChannelRange:
        """No element, of any number of channels."""
        return cls(lowest=np.zeros(0, np.float32), highest=np.zeros(0, np.float32))

    @classmethod
    def of(cls, x: npt.NDArray[np.floating]) -> ChannelRange:
        """The range of each channel of `x` [..., C], which must not be empty."""
        rows = x.reshape(-1, x.shape[-1])
        return cls(lowest=rows.min(axis=0), highest=rows.max(axis=0))

    def merge(self, other: ChannelRange) -> ChannelRange:
        """The range of both. Raises ValueError where the numbers of channels differ."""
        if not self.lowest.size or not other.lowest.size:
            return self if self.lowest.size else other
        if self.lowest.size != other.lowest.size:
            raise ValueError(f"{self.lowest.size} channels and {other.lowest.size} cannot be merged")
        return ChannelRange(
            lowest=np.minimum(self.lowest, other.lowest), highest=np.maximum(self.highest, other.highest)
        )

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """All fields as arrays."""
        return {"lowest": self.lowest, "highest": self.highest}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> ChannelRange:
        """Inverse of `to_arrays`."""
        return cls(lowest=arrays["lowest"].astype(np.float32), highest=arrays["highest"].astype(np.float32))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelRange) and (
            np.array_equal(self.lowest, other.lowest) and np.array_equal(self.highest, other.highest)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def magnitude(self) -> Floats:
        """float32[C]: the largest magnitude of each channel."""
        largest: Floats = np.maximum(self.highest, -self.lowest)
        return largest
