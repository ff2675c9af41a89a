"""Ranges of activations by what they cost the outputs of the model, and not the tensor itself.

Each group of tensors that share a grid is quantized alone, in ranges of several widths, and what lies behind it is run
in float. The squared error of a tensor says little about that: a channel that a Relu or small weights follow may be
clipped for free, a rare large value may carry the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amct_onnx.measure.rounded_network import Probe, power, side_by_side
from amct_onnx.numerics.grid import QParams
from amct_onnx.progress import Progress
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.values.qdq_plan import QdqPlan, TensorGroup
from amct_onnx.values.roundings import Change

Feed = Mapping[str, npt.NDArray[Any]]
Range = tuple[float, float]

_WIDTHS = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4)  # of the range of the extremes
_LEAST_GAIN = 0.1  # of the noise of a group: less may be chance


def cheaper_ranges(
    result: QuantizedModel, samples: Sequence[Feed], progress: Progress
) -> list[tuple[tuple[str, ...], Range]]:
    """Ranges that cost the outputs of a Q/DQ target less on `samples`, those that gain most first.

    Each is named by the sources of its group, as `Tuning.ranges` wants it. Memory: the activations of as many
    samples as there are threads.
    """
    plan, groups = result.plan, result.plan.groups
    if not groups or not samples:
        return []
    readers = _readers(result)
    tries = [_ranges(result, group) for group in groups]
    changes = [
        [_change(plan, group, readers, result.grid_of_range(*span)) for span in spans]
        for group, spans in zip(groups, tries, strict=True)
    ]
    current = [_change(plan, group, readers, result.activations[group.tensors[0]]) for group in groups]
    probe = Probe(result.source.fused, Change.union(current), {}, samples[0])

    def costs(feed: Feed) -> npt.NDArray[np.float64]:
        clean = probe.clean(feed)
        signal = [power(clean[name]) or 1.0 for name in probe.outputs]

        def cost(change: Change) -> float:
            return sum(noise / scale for noise, scale in zip(probe.noise(clean, change), signal, strict=True))

        found = [
            [cost(now), *(cost(change) for change in others)] for now, others in zip(current, changes, strict=True)
        ]
        return np.array(found)

    total = np.zeros((len(groups), 1 + len(_WIDTHS)))
    for start in range(0, len(samples), 2):
        for part in side_by_side(costs, samples[start : start + 2]):
            total += part
        progress("ranges", min(start + 2, len(samples)) / len(samples))
    best = total[:, 1:].argmin(axis=1)
    gains = total[:, 0] - total[np.arange(len(groups)), 1 + best]
    order = [int(i) for i in np.argsort(-gains, kind="stable") if gains[i] > _LEAST_GAIN * total[i, 0]]
    return [(groups[i].sources, tries[i][best[i]]) for i in order]


def _ranges(result: QuantizedModel, group: TensorGroup) -> list[Range]:
    low, high = result.extremes_of(group)
    return [(min(0.0, low * width), max(0.0, high * width)) for width in _WIDTHS]


def _readers(result: QuantizedModel) -> dict[str, list[tuple[str, int]]]:
    """For each tensor the inputs of nodes that read it quantized."""
    readers: dict[str, list[tuple[str, int]]] = {}
    for node in result.source.fused.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and (node.name or "", index) in result.plan.reads:
                readers.setdefault(value.name or "", []).append((node.name or "", index))
    return readers


def _change(
    plan: QdqPlan, group: TensorGroup, readers: Mapping[str, Sequence[tuple[str, int]]], grid: QParams
) -> Change:
    """What the grid of a group changes in the float model."""
    made = [tensor for tensor in group.sources if tensor in plan.integer]
    others = [tensor for tensor in group.sources if tensor not in plan.integer]
    return Change(
        tensors=dict.fromkeys(made, grid),
        reads={read: grid for tensor in others for read in readers.get(tensor, ())},
    )
