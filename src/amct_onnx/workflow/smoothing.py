"""Which inputs of matrix products have outlier channels, and what becomes of model and grids when they are smoothed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from amct_onnx.core.balance import has_outliers, smooth_factors
from amct_onnx.core.qdq_plan import QdqPlan
from amct_onnx.core.qparams import QParams, asymmetric_from_range, symmetric_from_range
from amct_onnx.core.spec import QSpec
from amct_onnx.core.stats.channels import ChannelRange
from amct_onnx.graph.passes.smooth import product_inputs, smooth_inputs


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """A float model, and the ranges of those of its tensors that smoothing has changed or made."""

    model: ir.Model
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def grid(self, tensor: str, spec: QSpec) -> QParams | None:
        """The grid over the whole range of a smoothed tensor, None for another one.

        There are no outliers any more, so clipping would gain little; and the range follows from those of the channels,
        without a second look at the data.
        """
        if tensor not in self.ranges:
            return None
        low, high = self.ranges[tensor]
        return symmetric_from_range(low, high, spec) if spec.symmetric else asymmetric_from_range(low, high, spec)


def smooth_model(model: ir.Model, plan: QdqPlan, channels: Mapping[str, ChannelRange]) -> Smoothed:
    """Smooth what `plan` quantizes for matrix products alone and what has outlier channels; `model` stays as it is."""
    factors = {
        tensor: smooth_factors(channels[tensor].magnitude)
        for tensor in _for_products(model, plan)
        if tensor in channels and has_outliers(channels[tensor].magnitude)
    }
    if not factors:
        return Smoothed(model=model)
    copy = model.clone()
    ranges = {}
    for tensor, name in smooth_inputs(copy, factors).items():
        low, high = (bound / factors[tensor] for bound in (channels[tensor].lowest, channels[tensor].highest))
        ranges[name] = (min(0.0, float(low.min())), max(0.0, float(high.max())))
    return Smoothed(model=copy, ranges=ranges)


def _for_products(model: ir.Model, plan: QdqPlan) -> list[str]:
    """The tensors with a grid of their own that products with a weight read as integers, and nobody else."""
    own = {group.tensors[0] for group in plan.groups if len(group.tensors) == 1} - plan.integer
    layers = set(plan.layers)
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    found = []
    for tensor, products in product_inputs(model).items():
        readers = {use.node.name for use in values[tensor].uses() if (use.node.name or "", use.idx) in plan.reads}
        if tensor in own and layers.issuperset(products.layers) and readers == set(products.layers):
            found.append(tensor)
    return found
