"""Ranges of activations by what they cost the outputs of the model, and not the tensor itself.

Each group of tensors that share a grid is quantized alone, in ranges of several widths, and what lies behind it is run
in float. The squared error of a tensor says little about that: a channel that a Relu or small weights follow may be
clipped for free, a rare large value may carry the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.measure.rounded_network import RoundedNetwork, power, side_by_side
from amct_onnx.numerics.arrays import Doubles, Feed
from amct_onnx.progress import Progress
from amct_onnx.targets.target import RangeChoice
from amct_onnx.values.roundings import Roundings

Range = tuple[float, float]

_WIDTHS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4)  # of the range of the extremes
_LEAST_GAIN = 0.1  # of the noise of a group: less may be chance


def cheaper_ranges(
    model: ir.Model, choices: Sequence[RangeChoice], samples: Sequence[Feed], progress: Progress
) -> list[tuple[tuple[str, ...], Range]]:
    """Ranges of `choices` that cost the outputs of the float `model` less on `samples`, those that gain most first.

    Each is named by the key of its choice. Memory: the activations of as many samples as there are threads.
    """
    if not choices or not samples:
        return []
    tries = [[(min(0.0, c.low * width), max(0.0, c.high * width)) for width in _WIDTHS] for c in choices]
    changes = [[choice.within(*span) for span in spans] for choice, spans in zip(choices, tries, strict=True)]
    current = [choice.now for choice in choices]
    probe = RoundedNetwork(model, Roundings.union(current), {}, samples[0])

    def costs(feed: Feed) -> Doubles:
        clean = probe.clean(feed)
        signal = [power(clean[name]) or 1.0 for name in probe.outputs]

        def cost(change: Roundings) -> float:
            return sum(noise / scale for noise, scale in zip(probe.noise(clean, change), signal, strict=True))

        found = [
            [cost(now), *(cost(change) for change in others)] for now, others in zip(current, changes, strict=True)
        ]
        return np.array(found)

    total = np.zeros((len(choices), 1 + len(_WIDTHS)))
    for start in range(0, len(samples), 2):
        for part in side_by_side(costs, samples[start : start + 2]):
            total += part
        progress("ranges", min(start + 2, len(samples)) / len(samples))
    best = total[:, 1:].argmin(axis=1)
    gains = total[:, 0] - total[np.arange(len(choices)), 1 + best]
    order = [int(i) for i in np.argsort(-gains, kind="stable") if gains[i] > _LEAST_GAIN * total[i, 0]]
    return [(choices[i].key, tries[i][best[i]]) for i in order]
