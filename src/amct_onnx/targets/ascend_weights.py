"""Weights of layers for Ascend: their scales, and the model's weights rounded to them.

The weights of a calibration model are rounded before it runs, so that calibration sees their error. By default scales
come from the extremes of a weight, as in AMCT; a caller may bring scales of less error, and integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import LayerError
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, layer_of
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.graph.weights import channel_rows, fake_quantized, from_kernel_rows, weight_axis
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.settings import AdaRound, LayerSettings, Nuq
from amct_onnx.numerics.weights.adaround import solve_scale
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.nuq import cluster_levels
from amct_onnx.targets.recurrent_layers import quantize_recurrent
from amct_onnx.targets.to_integers import weight_spec
from amct_onnx.values.findings import WeightGrid
from amct_onnx.values.layers import GraphFacts, LayerRecord, QuantPlan
from amct_onnx.words import named

# ConvTranspose has one scale for an index in all groups, which least squares does not know.
_BETTER = ("Conv", "Gemm", "MatMul")
# Gives the grid of the weight of a layer, float32[C, n] as rows of `channel_rows`; None leaves it to the settings.
BetterGrid = Callable[[str, Array, QSpec], WeightGrid | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedWeights:
    """What is known of each layer and tensor of a plan before anything has run.

    records: by the keys of record.txt. better: the grids that did not come from the settings, by layer. notes: what a
    user should know, as sentences.
    """

    records: Mapping[str, LayerRecord]
    better: Mapping[str, QParams]
    notes: tuple[str, ...]


def quantize_weights(
    model: ir.Model, plan: QuantPlan, facts: GraphFacts, better: BetterGrid | None = None
) -> QuantizedWeights:
    """Replace the weights of the layers of `plan`, of a normalized model, by their rounded values, in place.

    better: then a layer of whose weight nothing would be left is an error too; AMCT makes it zero.

    Raises LayerError for a weight or bias that holds NaN or Inf, or is too large.
    """
    names, nodes = ValueNames(model), index_graph(model).nodes
    records: dict[str, LayerRecord] = {}
    grids: dict[str, QParams] = {}
    vanished: dict[str, int] = {}
    for layer in plan.layers:
        entry, traits = plan.settings[layer], facts.layers[layer]
        if traits.two_operands:
            records[layer] = LayerRecord(act_type=f"INT{entry.activation.num_bits}")
        elif not traits.has_weight:
            records[layer] = LayerRecord(act_type=f"INT{entry.activation.num_bits}", scale_w=(1.0,), offset_w=(0,))
        elif nodes[layer].op_type in RECURRENT_OPS:
            records[layer], vanished[layer] = quantize_recurrent(nodes[layer], entry, names)
        elif better is not None and (grid := _better_grid(layer_of(nodes[layer]), entry, better)) is not None:
            _store(layer_of(nodes[layer]), grid, names)
            records[layer], grids[layer] = _record(grid.params, entry), grid.params
        else:
            strict = better is not None
            records[layer], vanished[layer] = _quantize_weight(layer_of(nodes[layer]), entry, names, strict=strict)
    for key, tensor in plan.tensors.items():
        records[key] = LayerRecord(is_tensor_quantize=True, act_type=f"INT{tensor.activation.num_bits}")
    return QuantizedWeights(records=records, better=grids, notes=_notes({k: n for k, n in vanished.items() if n}))


def _notes(vanished: Mapping[str, int]) -> tuple[str, ...]:
    if not vanished:
        return ()
    where = f"{sum(vanished.values())} channels in {len(vanished)} layers (first: {next(iter(vanished))})"
    return (f"{where} have weights so small that int8 makes them 0, as AMCT does.",)


def _quantize_weight(layer: Layer, entry: LayerSettings, names: ValueNames, *, strict: bool) -> tuple[LayerRecord, int]:
    """The record of a layer's weight, and how many of its channels are not zero and become zero.

    strict: not all of them may.
    """
    rows = channel_rows(layer.array(), layer.node)
    solve = solve_scale if isinstance(entry.weight.solver, AdaRound) else solve_arq
    try:
        params = solve(rows, weight_spec(entry.weight.num_bits, channel_wise=entry.weight.channel_wise))
    except ValueError as error:
        raise _bad(layer, str(error)) from error
    _check_bias(layer)
    lost = _lost(layer, rows, params, strict=strict)
    solver = entry.weight.solver
    cluster = cluster_levels(rows, params, solver) if isinstance(solver, Nuq) else ()
    layer.replace_weight(fake_quantized(layer.weight, layer.node, params, levels=cluster), names=names)
    return replace(_record(params, entry), cluster=cluster), lost


def _lost(layer: Layer, rows: Array, params: QParams, *, strict: bool) -> int:
    """How many rows are not zero and become zero. Raises LayerError where (`strict`) none is left."""
    extremes = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True))
    nonzero, kept = extremes > 0, fake_quantize(extremes, params) != 0
    if strict and nonzero.any() and not kept.any():
        raise _bad(layer, f"every weight would round to zero: the largest is {extremes.max():.3g}")
    return int((nonzero & ~kept).sum())


def _record(params: QParams, entry: LayerSettings) -> LayerRecord:
    return LayerRecord(
        scale_w=tuple(float(s) for s in params.scale),
        offset_w=(0,) * params.scale.size,
        wts_type=f"INT{entry.weight.num_bits}",
    )


def _better_grid(layer: Layer, entry: LayerSettings, better: BetterGrid) -> WeightGrid | None:
    if layer.weight.dtype != ir.DataType.FLOAT or layer.op_type not in _BETTER:
        return None
    spec = weight_spec(entry.weight.num_bits, channel_wise=entry.weight.channel_wise)
    try:
        rows = channel_rows(layer.array(), layer.node)
        grid = better(layer.name, rows, spec)
    except ValueError as error:
        raise _bad(layer, str(error)) from error
    _check_bias(layer)
    if grid is not None:
        _lost(layer, rows, grid.params, strict=True)
    return grid


def _store(layer: Layer, grid: WeightGrid, names: ValueNames) -> None:
    """Give a layer the weight of a grid, and the bias that goes with its integers."""
    rounded: Array | ir.TensorProtocol
    if grid.integers is None:
        rounded = fake_quantized(layer.weight, layer.node, grid.params)
    else:  # the integers times their scales: rounding gives the integers again
        integers, scale = from_kernel_rows(grid.integers, layer.shape, layer.node), grid.params.scale
        ones = [1] * integers.ndim
        if scale.size > 1:
            ones[weight_axis(layer.node, integers.ndim)] = scale.size
        rounded = integers.astype(np.float32) * scale.reshape(ones)
    layer.replace_weight(rounded, names=names)
    bias = layer.bias
    if grid.correction is not None and bias is not None and bias.size == grid.correction.size:
        layer.replace_bias((bias + grid.correction.reshape(bias.shape)).astype(np.float32), names=names)


def _check_bias(layer: Layer) -> None:
    bias = layer.bias
    if bias is not None and not np.isfinite(bias).all():
        raise _bad(layer, "the bias holds NaN or Inf")


def _bad(layer: Layer, what: str) -> LayerError:
    text = f'Layer "{layer.name}": {what}. Correct the model or add the layer to {named("skip_layers")}.'
    return LayerError(text, layer=layer.name, reason=what)
