"""Weights of target ascend of `quantize`: by least squares where AMCT takes the extremes, and learned integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.constants import ValueNames, constant_tensor, constant_value, own_constant
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.tensors import Array, array_of
from amct_onnx.graph.weights import fake_quantized, from_kernel_rows, weight_axis, weight_rows
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.settings import Settings
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.ptq.request import solve_once
from amct_onnx.targets.to_integers import weight_spec
from amct_onnx.values.findings import Tuning, WeightGrid
from amct_onnx.values.layers import LayerRecord

_LAYERS = ("Conv", "Gemm", "MatMul")


def refine_weights(
    model: ir.Model,
    source: ir.Model,
    settings: Settings,
    records: dict[str, LayerRecord],
    tuning: Tuning,
    known: dict[bytes, QParams],
) -> Mapping[str, QParams]:
    """Give the layers of a prepared `model` weights of less error, in place, and `records` their scales.

    source: the fused float model. known: as for `Choice.weight`. Returns the grid of each weight, by layer; what
    `tuning` has for it is used.
    """
    floats, names = source.clone(), ValueNames(model)
    normalize_layers(floats, frozenset(records))
    originals = {node.name or "": node for node in floats.graph}
    nodes = {node.name or "": node for node in model.graph}
    grids: dict[str, QParams] = {}
    for layer, record in records.items():
        node, original = nodes.get(layer), originals.get(layer)
        if node is None or original is None or node.op_type not in _LAYERS or not record.scale_w:
            continue
        weight = constant_tensor(original.inputs[1])
        if weight is None or weight.dtype != ir.DataType.FLOAT:
            continue
        entry = settings.layers[layer].weight
        spec = weight_spec(entry.num_bits, channel_wise=entry.channel_wise)
        params = solve_once(solve_weight_mse, weight_rows(array_of(weight), original), spec, known)
        grids[layer] = params
        tuned = tuning.weight(layer, params)
        if tuned is None or tuned.integers is None:
            rounded: Array | ir.TensorProtocol = fake_quantized(weight, original, params)
        else:
            rounded = _restored(original, tuned, array_of(weight).shape)
            _correct_bias(node, tuned, names)
        own_constant(node, 1, rounded, f"{layer}.weight", names=names)
        records[layer] = replace(record, scale_w=tuple(float(scale) for scale in params.scale))
    return MappingProxyType(grids)


def _restored(node: ir.Node, grid: WeightGrid, shape: Collection[int]) -> Array:
    """The integers of a weight times their scales; rounding gives the integers again."""
    assert grid.integers is not None  # the caller has looked
    integers, scale = from_kernel_rows(node, grid.integers, tuple(shape)), grid.params.scale
    ones = [1] * integers.ndim
    if scale.size > 1:
        ones[weight_axis(node, integers.ndim)] = scale.size
    restored: Array = integers.astype(np.float32) * scale.reshape(ones)
    return restored


def _correct_bias(node: ir.Node, grid: WeightGrid, names: ValueNames) -> None:
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    if grid.correction is None or bias is None or bias.size != grid.correction.size:
        return
    corrected = (bias + grid.correction.reshape(bias.shape)).astype(np.float32)
    own_constant(node, 2, corrected, f"{node.name}.bias", names=names)
