"""Awkward models that have something to quantize, for targets that take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import amct_onnx
from amct_onnx.graph.layers import default_opset
from amct_onnx.values.qdq_tables import QdqTarget

_NOTHING = {"overridable_weight", "overridable_bias", "behind_identity_of_overridable"}  # no weight is constant
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"}


@dataclass(frozen=True)
class Case:
    """A model and its data for one target."""

    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]
    target: QdqTarget

    def quantize(self, **more: Any) -> amct_onnx.QuantizedModel:
        return amct_onnx.quantize(
            self.model, self.feeds, target=self.target.name, algorithm="min_max", effort="fast", **more
        )

    @cached_property
    def result(self) -> amct_onnx.QuantizedModel:
        return self.quantize()

    @cached_property
    def outside(self) -> amct_onnx.QuantizedModel:
        """The same with those layers in float that are inside of bodies."""
        inside = {d.layer for d in self.result.decisions if d.quantized} - set(self.result.lowered.plan.layers)
        return self.quantize(skip_layers=sorted(inside)) if inside else self.result


def why_refused(awkward: Any, target: QdqTarget) -> str | None:
    """What the error says with which the model is refused for the target; None for a model that is taken."""
    model = ir.from_proto(awkward.model)
    opset = default_opset(model)
    if awkward.name in _NOTHING or not _LAYERS & {node.op_type for node in model.graph.all_nodes()}:
        return "no layer that can be quantized|leaves all in float"
    return f"opset {opset}" if opset > target.maximum_opset and not target.beyond else None


def make_case(awkward: Any, target: QdqTarget) -> Case:
    return Case(awkward.model, [dict(feed) for feed in awkward.feeds], target)
