"""Which inputs of matrix products have outlier channels that can be smoothed for a Q/DQ target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.passes.equalize import channel_groups
from amct_onnx.graph.passes.smooth import product_inputs
from amct_onnx.numerics.channel_factors import has_outliers
from amct_onnx.observe.channel_maxima import channel_maxima
from amct_onnx.values.qdq_plan import QdqPlan

Floats = npt.NDArray[np.float32]
Feed = Mapping[str, npt.NDArray[Any]]


def outlier_inputs(model: ir.Model, plan: QdqPlan, feeds: Iterable[Feed]) -> dict[str, Floats]:
    """The tensors that `plan` quantizes for products with a weight alone and that have outlier channels, by name, with
    the largest magnitude of each channel over `feeds`, float32[C]. Raises CalibrationError or DataError."""
    wanted = _for_products(model, plan)
    maxima = channel_maxima(model, wanted, feeds, axis=-1) if wanted else {}
    return {name: values for name, values in maxima.items() if has_outliers(values)}


def _for_products(model: ir.Model, plan: QdqPlan) -> list[str]:
    """The tensors with a grid of their own that products with a weight read as integers, and nobody else."""
    own = {group.tensors[0] for group in plan.groups if len(group.tensors) == 1} - plan.integer
    own -= {group.key for group in channel_groups(model)}
    layers = set(plan.layers)
    values = {value.name: value for node in model.graph for value in node.outputs}
    found = []
    for tensor, products in product_inputs(model).items():
        if tensor not in own or tensor not in values or not layers.issuperset(products.layers):
            continue
        readers = {use.node.name for use in values[tensor].uses() if (use.node.name or "", use.idx) in plan.reads}
        if readers == set(products.layers):
            found.append(tensor)
    return found
