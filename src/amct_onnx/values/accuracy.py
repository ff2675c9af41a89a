"""How near the outputs of a quantized model are to those of the float network, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What a quantized model makes of some `samples`, beside the float network.

    decibels: signal over noise of the outputs, the mean of both views of `measure.output_judge`. same_top1: the share
    of samples for which the largest of the outputs is the same one, from 0 to 1; None where the outputs are no scores
    of classes. held_out: no step of the recipe was fitted on these samples, though they chose among the steps and count
    in the ranges of all data, unless a search kept them out; else they are some of those that calibrate. `str()` gives
    a phrase.
    """

    decibels: float
    samples: int
    same_top1: float | None = None
    held_out: bool = True

    def __str__(self) -> str:
        count = f"{self.samples} sample{'s' * (self.samples != 1)}"
        top = "" if self.same_top1 is None else f", same top-1 for {self.same_top1:.1%}"
        where = "held out" if self.held_out else "of the calibration"
        return f"SQNR {self.decibels:.1f} dB{top}, on {count} {where}"
