"""Awkward models that have something to quantize, for targets that take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import amct_onnx
from amct_onnx.core.qdq_target import QdqTarget
from amct_onnx.errors import ModelError
from amct_onnx.graph.layers import default_opset

_NOTHING = {"overridable_weight", "overridable_bias", "behind_identity_of_overridable"}  # no weight is constant
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"}


@dataclass(frozen=True)
class Case:
    """A model and its data for one target."""

    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]
    target: QdqTarget

    def quantize(self) -> amct_onnx.QuantizedModel:
        return amct_onnx.quantize(self.model, self.feeds, target=self.target.name, algorithm="min_max")

    @cached_property
    def result(self) -> amct_onnx.QuantizedModel:
        return self.quantize()


def make_case(awkward: Any, target: QdqTarget) -> Case:
    """A case; a model that the target has to refuse is refused here, and the test ends."""
    case = Case(awkward.model, [dict(feed) for feed in awkward.feeds], target)
    opset = default_opset(ir.from_proto(case.model))
    reason = None
    if awkward.name in _NOTHING or not _LAYERS & {node.op_type for node in case.model.graph.node}:
        reason = "no layer that can be quantized"
    elif opset > target.maximum_opset and not target.beyond:
        reason = f"opset {opset}"
    if reason is not None:
        with pytest.raises(ModelError, match=reason):
            case.quantize().model()
        pytest.skip("it was refused, as it should be")
    return case
