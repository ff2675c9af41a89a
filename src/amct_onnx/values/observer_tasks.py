"""What an observer can collect besides the factors of an activation: values that travel in its node as JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Balance:
    """DMQ factors of the layer that reads the tensor (amct_formats.md: DMQ).

    axis: the tensor's channel axis, from the front or (negative) from the back. weight_maxima: the largest magnitude of
    the weight for each input channel. strength: migration strength in [0.2, 0.8].
    """

    axis: int
    strength: float
    weight_maxima: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight_maxima", tuple(self.weight_maxima))  # JSON has lists


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A layer's float output and its quantized one, joined on axis 0 in this order: how near are they?"""
