"""How near the outputs of a quantized model are to those of the float network, for a user to read."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import AmctError
from amct_onnx.graph.outputs import class_output
from amct_onnx.measure.output_judge import OutputJudge
from amct_onnx.numerics.arrays import Feed
from amct_onnx.targets.target import Lowered
from amct_onnx.values.accuracy import Accuracy

_log = logging.getLogger("amct_onnx.Quantize")


def measure_accuracy(
    model: ir.Model, lowered: Lowered, samples: Sequence[Feed], *, held_out: bool, judge: OutputJudge | None = None
) -> Accuracy | None:
    """The accuracy of a quantized form of the float `model` on samples.

    judge: one that has run the float model on these samples already. It is None where there are no samples or no float
    outputs, and where a model does not take the samples: that takes nothing from the result.
    """
    classes, same = class_output(model), list[bool]()

    def look(exact: Feed, found: Feed) -> None:
        if classes is not None and exact[classes].shape == found[classes].shape:
            wanted, got = (outputs[classes].reshape(len(outputs[classes]), -1) for outputs in (exact, found))
            same.extend((wanted.argmax(axis=1) == got.argmax(axis=1)).tolist() if wanted.size else ())

    try:
        known = judge or (OutputJudge(model, samples) if samples else None)
        if known is None or not known.parts:
            return None
        scores = known.scores(lowered, look)
    except AmctError as reason:
        _log.debug("The accuracy cannot be measured: %s", reason)
        return None
    share = float(np.mean(same)) if same else None
    return Accuracy(decibels=scores.decibels, samples=len(samples), same_top1=share, held_out=held_out)
