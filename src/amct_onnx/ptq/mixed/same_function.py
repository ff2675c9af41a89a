"""A calibration of the network as the user gave it, where a recipe has calibrated one of another function.

Equalization behind a Clip lets less of a channel through, whatever is quantized: a layer that goes back to float would
not compute what it computes in the user's model. All other steps change roundings only, which go with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from amct_onnx.graph.digest import model_digest
from amct_onnx.graph.passes.equalize import channel_groups
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.targets.calibration import SolvedGrids
from amct_onnx.targets.table import observed_tensors
from amct_onnx.values.findings import Tuning


def same_function(quantized: QuantizedModel, samples: Sequence[Feed]) -> QuantizedModel | None:
    """`quantized` calibrated again by `samples`, without the factors of channels that a Clip cuts off; None where it
    has no such factors. What was found for weights between other layers stays.

    Raises what a calibration raises.
    """
    calibration = quantized.calibration
    groups = [group for group in channel_groups(calibration.source.model) if group.ceiling < np.inf]
    clipped = [group for group in groups if group.key in calibration.source.factors]
    if not clipped:
        return None
    undone = {group.key for group in clipped}
    kept = {name: array for name, array in calibration.source.factors.items() if name not in undone}
    source = calibration.source.source.prepared().divided(kept)
    statistics = Statistics(
        tensors=collect_statistics(source.model, observed_tensors(source), samples),
        samples=len(samples),
        digest=model_digest(source.model),
        factors=source.factors,
    )
    touched = {layer for group in clipped for layer in (*group.producers, *group.consumers)}
    weights = {name: grid for name, grid in calibration.tuning.weights.items() if name not in touched}
    return quantized.solved(
        replace(
            calibration,
            source=source,
            statistics=statistics,
            tuning=Tuning(weights=weights, in_float=calibration.tuning.in_float),
            solved=SolvedGrids(calibration.solved.weights),
        )
    )
