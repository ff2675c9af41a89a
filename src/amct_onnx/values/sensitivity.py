"""What quantization does to the output of a model, layer by layer: values, and their table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_SHOWN = 12
_LETTERS = 44


def decibel(effect: float) -> float:
    """Signal over noise in dB, from noise over signal; infinite without noise."""
    return -10 * math.log10(effect) if effect > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class LayerEffect:
    """What the output loses where only this layer is quantized: what it reads, its weight, and what it makes.

    effect: power of the error over that of the output, the mean over all float outputs; `outputs` has each.
    from_weight: the share of it, 0 to 1, that comes from the weight and other constants; NaN where that is not known,
    as for a layer inside of an If, Loop or Scan. nodes: what else is computed
    in integers with it, itself included.
    """

    layer: str
    op_type: str
    nodes: tuple[str, ...]
    effect: float
    outputs: Mapping[str, float]
    from_weight: float

    @property
    def sqnr(self) -> float:
        """Signal over noise in dB."""
        return decibel(self.effect)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """`layers` by their effect, the largest first; `together`: all layers at once, measured and not added up.

    `outputs`: the same for each float output. `samples`: how many samples were run. `str()` gives a short table.
    """

    target: str
    layers: tuple[LayerEffect, ...]
    together: float
    outputs: Mapping[str, float]
    samples: int

    @property
    def sqnr(self) -> float:
        """Signal over noise of all layers together, in dB."""
        return decibel(self.together)

    def __str__(self) -> str:
        shown = self.layers[:_SHOWN]
        width = max([len("all together"), *(len(_short(layer.layer)) for layer in shown)])
        kind = max([len("type"), *(len(layer.op_type) for layer in shown)])
        lines = [f"{'layer':<{width}}  {'type':<{kind}}  {'noise/signal':>12}  {'SQNR':>8}  {'weight':>6}"]
        lines += [
            f"{_short(layer.layer):<{width}}  {layer.op_type:<{kind}}  {layer.effect:>12.3g}  {layer.sqnr:>5.1f} dB"
            f"  {'-' if math.isnan(layer.from_weight) else f'{layer.from_weight:.0%}':>6}"
            for layer in shown
        ]
        rest = len(self.layers) - len(shown)
        if rest:
            lines.append(f"and {rest} {'layer' if rest == 1 else 'layers'} with less")
        lines.append(f"{'all together':<{width}}  {'':<{kind}}  {self.together:>12.3g}  {self.sqnr:>5.1f} dB")
        return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"...{name[-_LETTERS + 3 :]}"
