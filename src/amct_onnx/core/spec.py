"""How a tensor is quantized: bits, symmetry, granularity. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index of `axis`."""

    axis: int


Granularity = PerTensor | PerChannel


@dataclass(frozen=True, kw_only=True)
class QSpec:
    """The integer grid of a tensor: signed two's complement, as every format here uses (spec section 6.0).

    `symmetric` fixes the zero point at 0. Raises ValueError unless 2 <= bits <= 16.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = PerTensor()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be within [2, 16], got {self.bits}")

    @property
    def qmin(self) -> int:
        """Lowest integer, -2^(bits-1)."""
        return -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Highest integer, 2^(bits-1) - 1."""
        return (1 << (self.bits - 1)) - 1
