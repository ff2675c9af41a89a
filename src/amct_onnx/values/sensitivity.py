"""What quantization does to the output of a model, layer by layer: values, and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amct_onnx.numerics import sample_noise
from amct_onnx.values.shown import Shown, Table, plain

decibel = sample_noise.decibel

_SHOWN = 12
_LETTERS = 44


@dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """What the output loses by the roundings of one node: its weight, what it makes, and what it reads of a tensor that
    no other quantized node makes.

    effect: power of the error over that of the output for all samples together, the mean over all float outputs;
    `outputs` has each. median: the same of single samples, their median. from_weight: the share of the effect, 0 to 1,
    that comes from the weight and other constants; NaN where that is not known, as for a layer inside of an If, Loop or
    Scan. nodes: those whose roundings these are.
    """

    layer: str
    op_type: str
    nodes: tuple[str, ...]
    effect: float
    outputs: Mapping[str, float]
    median: float
    from_weight: float

    @property
    def sqnr(self) -> float:
        """Signal over noise in dB."""
        return decibel(self.effect)

    @property
    def median_sqnr(self) -> float:
        """Signal over noise of the median sample in dB."""
        return decibel(self.median)


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Shown):
    """`layers` by their effect, the largest first; `together`: all layers at once, measured and not added up.

    `outputs`: the same for each float output. `median`: that of the median sample. `samples`: how many samples were
    run. `str()` gives a short table.
    """

    target: str
    layers: tuple[LayerEffect, ...]
    together: float
    outputs: Mapping[str, float]
    median: float
    samples: int

    @property
    def sqnr(self) -> float:
        """Signal over noise of all layers together, in dB."""
        return decibel(self.together)

    @property
    def median_sqnr(self) -> float:
        """The same of the median sample."""
        return decibel(self.median)

    def lines(self) -> list[str]:
        """What is to be known, in a sentence."""
        samples = "one sample" if self.samples == 1 else f"{self.samples} samples"
        both = f"{self.sqnr:.1f} dB, {self.median_sqnr:.1f} dB of the median sample"
        return [f"Target {self.target}, all {len(self.layers)} layers together: {both}, on {samples}."]

    def tables(self) -> tuple[Table, ...]:
        columns = ("layer", "type", "noise/signal", "SQNR", "median", "weight")
        rows = [
            (one.layer, one.op_type, one.effect, one.sqnr, one.median_sqnr, 100 * one.from_weight)
            for one in self.layers
        ]
        return (Table.of("Layers by what each alone costs", columns, rows, SQNR="dB", median="dB", weight="%"),)

    def to_dict(self) -> dict[str, Any]:
        document = super().to_dict()
        document |= {"sqnr": plain(self.sqnr), "median_sqnr": plain(self.median_sqnr)}
        for entry, layer in zip(document["layers"], self.layers, strict=True):
            entry |= {"sqnr": plain(layer.sqnr), "median_sqnr": plain(layer.median_sqnr)}
        return document

    def __str__(self) -> str:
        shown = self.layers[:_SHOWN]
        width = max([len("all together"), *(len(_short(layer.layer)) for layer in shown)])
        kind = max([len("type"), *(len(layer.op_type) for layer in shown)])
        lines = [
            f"{'layer':<{width}}  {'type':<{kind}}  {'noise/signal':>12}  {'SQNR':>8}  {'median':>8}  {'weight':>6}"
        ]
        lines += [
            f"{_short(layer.layer):<{width}}  {layer.op_type:<{kind}}  {layer.effect:>12.3g}  {layer.sqnr:>5.1f} dB"
            f"  {layer.median_sqnr:>5.1f} dB  {'-' if math.isnan(layer.from_weight) else f'{layer.from_weight:.0%}':>6}"
            for layer in shown
        ]
        rest = len(self.layers) - len(shown)
        if rest:
            lines.append(f"and {rest} {'layer' if rest == 1 else 'layers'} with less")
        together = f"{self.together:>12.3g}  {self.sqnr:>5.1f} dB  {self.median_sqnr:>5.1f} dB"
        lines.append(f"{'all together':<{width}}  {'':<{kind}}  {together}")
        return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"...{name[-_LETTERS + 3 :]}"
