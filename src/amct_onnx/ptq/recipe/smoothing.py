"""Which inputs of matrix products have outlier channels that can be smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.numerics.channel_factors import has_outliers
from amct_onnx.observe.channel_maxima import channel_maxima


def outlier_inputs(model: ir.Model, wanted: Sequence[str], feeds: Iterable[Feed]) -> dict[str, Floats]:
    """Those of the tensors `wanted` that have outlier channels, with the largest magnitude of each channel, float32[C].

    Raises CalibrationError or DataError where ONNX Runtime cannot run `feeds`.
    """
    maxima = channel_maxima(model, wanted, feeds, axis=-1) if wanted else {}
    return {name: values for name, values in maxima.items() if has_outliers(values)}
