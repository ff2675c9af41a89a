"""How near the outputs of a quantized model are to those of the float network, for a user to read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir

from amct_onnx.errors import AmctError
from amct_onnx.measure.output_judge import OutputJudge, Scores
from amct_onnx.numerics.arrays import Feed
from amct_onnx.targets.target import Lowered
from amct_onnx.values.accuracy import Accuracy

_log = logging.getLogger("amct_onnx.Quantize")


def measure_accuracy(
    model: ir.Model, lowered: Lowered, samples: Sequence[Feed], *, held_out: bool, scores: Scores | None = None
) -> Accuracy | None:
    """The accuracy of a quantized form of the float `model` on samples.

    scores: those of a judge by these samples, where there are some already. It is None where there are no samples or no
    float outputs, and where a model does not take the samples: that takes nothing from the result.
    """
    try:
        known = scores or (OutputJudge(model, samples).scores(lowered) if samples else None)
    except AmctError as reason:
        _log.debug("The accuracy cannot be measured: %s", reason)
        return None
    if known is None or not known.noise.size:
        return None
    same, rows = known.top.sum(axis=0)
    share = float(same / rows) if rows else None
    return Accuracy(decibels=known.decibels, samples=len(samples), same_top1=share, held_out=held_out)
