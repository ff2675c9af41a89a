"""Weights rounded so that the outputs of their layers change least on given data, by GPTQ or AdaRound.

Each layer is rounded for the inputs that it has in the float network. Rounding changes the mean of an output, and a
bias can make up for that: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.weights import join_groups, kernel_rows, output_rows_shape, row_scales, split_groups, weight_axis
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.bias import bias_correction
from amct_onnx.numerics.weights.second_order import Advance, covariances, round_rows
from amct_onnx.observe.second_moments import collect_moments
from amct_onnx.progress import Progress, silent
from amct_onnx.run.round_layers import RoundingJob, round_layers
from amct_onnx.run.threads import processors
from amct_onnx.values.findings import WeightGrid

Method = Literal["gptq", "adaround"]

# Longer rows are rounded in blocks: the time to round a block grows with its cube, and 256 channels of 3x3 fit.
_LONGEST = 2304


def round_weights(
    model: ir.Model,
    layers: Sequence[str],
    feeds: Collection[Feed],
    grids: Mapping[str, QParams],
    *,
    method: Method = "gptq",
    settings: AdaRound | None = None,
    corrected: Collection[str] = (),
    progress: Progress = silent,
) -> dict[str, WeightGrid]:
    """The integers of the weights of `layers` by GPTQ or AdaRound.

    model: a fused float model, which is left as it is. layers, feeds: as `collect_moments` takes them. grids: the
    scales of the output channels of each weight, symmetric, at most 8 bits. settings: those of AdaRound. corrected: the
    layers whose results have a correction of the bias. The mean of their errors costs nothing then, so they are rounded
    by the covariance of their inputs.

    Raises like `collect_moments`, and CalibrationError where a weight or its Gram matrix cannot be rounded.
    """
    copy = model.clone()
    normalize_layers(copy, frozenset(layers))
    index, learning = index_graph(copy), (settings or AdaRound()) if method == "adaround" else None

    def jobs() -> Iterator[RoundingJob[WeightGrid]]:
        for name, moments in collect_moments(copy, layers, feeds, longest=_LONGEST):
            solve = partial(_round, index.layer(name), grids[name], moments, learning, name in corrected)
            yield RoundingJob(layer=name, solve=solve)

    return round_layers(jobs(), total=len(layers), workers=processors(), what="rounding", progress=progress)


def _round(
    layer: Layer, grid: QParams, moments: SecondMoments, learning: AdaRound | None, corrected: bool, advance: Advance
) -> WeightGrid:
    shape = output_rows_shape(layer.shape, layer.node)
    rows = split_groups(kernel_rows(layer.array(), layer.node), shape, layer.node)
    scale = row_scales(grid.scale, shape)
    used = covariances(moments) if corrected else moments
    integers = round_rows(rows, scale, grid.spec, used, learning, advance)
    correction = None
    if corrected:
        means = moments.mean.reshape(shape[0], -1)[:, : shape[2]]
        correction = bias_correction(rows, integers.astype(np.float64) * scale[..., None], means).reshape(-1)
    return WeightGrid(
        params=grid, integers=np.ascontiguousarray(join_groups(integers, layer.node)), correction=correction
    )


def with_rounded_weights(model: ir.Model, grids: Mapping[str, QParams]) -> ir.Model:
    """A copy of a fused float model whose layers have the nearest weights on `grids`, as `round_weights` takes them."""
    copy = model.clone()
    normalize_layers(copy, frozenset(grids))
    index, names = index_graph(copy), ValueNames(copy)
    for name, grid in grids.items():
        layer = index.layer(name)
        axis = weight_axis(layer.node, len(layer.shape))
        params = replace(grid, spec=replace(grid.spec, channel_axis=axis))
        layer.replace_weight(fake_quantize(layer.array(), params), names=names)
    return copy
