"""Second-order rounding: the integers of weights that change the outputs of their layers least, on given data.

Each layer is rounded for the inputs that it has in the float network, from their Gram matrix alone. Rounding changes
the mean of an output; `corrections` says what a bias would have to make up for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.core.qparams import QParams
from amct_onnx.core.settings import AdaRound
from amct_onnx.core.stats.moments import SecondMoments
from amct_onnx.core.weights.adaround import learn_rounding
from amct_onnx.core.weights.bias import bias_correction
from amct_onnx.core.weights.gptq import solve_gptq_groups
from amct_onnx.errors import CalibrationError
from amct_onnx.graph.constants import constant_tensor, constant_value
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.tensors import shape_of
from amct_onnx.graph.weights import kernel_rows, output_rows_shape
from amct_onnx.runtime.blas import one_blas_thread
from amct_onnx.runtime.collect import processors, run_side_by_side
from amct_onnx.runtime.grams import MEMORY, collect_moments
from amct_onnx.workflow.progress import Progress, silent

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int8]
Feed = Mapping[str, npt.NDArray[Any]]
Method = Literal["gptq", "adaround"]

# Longer rows are rounded in blocks: the time to round a block grows with its cube, and 256 channels of 3x3 fit.
_LONGEST = 2304
_DAMPING = 0.01


@dataclass(frozen=True, kw_only=True)
class RoundedWeights:
    """By layer: `integers` int8[C, n], in the layout of `graph/weights.kernel_rows`; and `corrections`, float64 for
    each output channel, which added to the bias keep the mean of the layer's output: those of a group of outputs stand
    together, as in the bias of a convolution."""

    integers: Mapping[str, Integers]
    corrections: Mapping[str, Doubles]


def round_weights(
    model: ir.Model,
    layers: Sequence[str],
    feeds: Collection[Feed],
    grids: Mapping[str, QParams],
    *,
    method: Method = "gptq",
    settings: AdaRound | None = None,
    memory: int = MEMORY,
    progress: Progress = silent,
) -> RoundedWeights:
    """Round the weights of `layers` by GPTQ or AdaRound.

    model: a fused float model, which is left as it is. layers, feeds, memory: as `collect_moments` takes them. grids:
    the scales of the output channels of each weight, symmetric, at most 8 bits. settings: those of AdaRound.

    Raises like `collect_moments`, and CalibrationError where a weight or its Gram matrix cannot be rounded.
    """
    copy = model.clone()
    normalize_layers(copy, frozenset(layers))
    nodes = {node.name or "": node for node in copy.graph}
    chosen = (settings or AdaRound()) if method == "adaround" else None
    integers, corrections = {}, {}
    stop = threading.Event()
    solve = partial(_solve, nodes, grids, chosen, partial(_go_on, stop))
    moments = collect_moments(copy, layers, feeds, memory=memory, longest=_LONGEST)
    with one_blas_thread(), closing(run_side_by_side(solve, moments, processors())) as rounded:
        try:
            for done, ((layer, _), running) in enumerate(rounded, 1):
                integers[layer], corrections[layer] = running.result()
                progress("rounding", done / len(layers))
        finally:
            stop.set()
    return RoundedWeights(integers=integers, corrections=corrections)


def _go_on(stop: threading.Event, share: float) -> None:
    if stop.is_set():
        raise InterruptedError


def _solve(
    nodes: Mapping[str, ir.Node],
    grids: Mapping[str, QParams],
    settings: AdaRound | None,
    advance: Callable[[float], None],
    item: tuple[str, SecondMoments],
) -> tuple[Integers, Doubles]:
    """Integers [C, n] and corrections of one layer."""
    layer, moments = item
    node, grid = nodes[layer], grids[layer]
    weight, tensor = constant_value(node.inputs[1]), constant_tensor(node.inputs[1])
    assert weight is not None  # `collect_moments` has looked
    assert tensor is not None  # as above
    rows = kernel_rows(node, weight)
    shape = output_rows_shape(shape_of(tensor), node)
    scale = np.broadcast_to(grid.scale, rows.shape[:1])
    grouped, scales = _by_groups(node, rows, shape), _scales_by_groups(node, scale, shape)
    try:
        if settings is None:
            found = _gptq(grouped, scales, grid, moments)
        else:
            found = learn_rounding(grouped, scales, grid.spec, moments, settings, advance).integers.astype(np.int8)
        means = moments.mean.reshape(shape[0], -1)[:, : shape[2]]
        correction = bias_correction(grouped, found.astype(np.float64) * scales[..., None], means)
    except ValueError as error:
        raise CalibrationError(f'Layer "{layer}" cannot be rounded: {error}.') from error
    return _from_groups(node, found, rows.shape), correction.reshape(-1)


def _gptq(rows: Floats, scales: Floats, grid: QParams, moments: SecondMoments) -> Integers:
    """GPTQ of rows [G, R, n], in blocks of columns as long as the Gram matrices."""
    groups, count, length = rows.shape
    units, width = moments.mean.shape
    blocks = units // groups
    filled = np.zeros((groups, count, blocks * width), np.float32)
    filled[..., :length] = rows
    cut = filled.reshape(groups, count, blocks, width).swapaxes(1, 2).reshape(units, count, width)
    found = solve_gptq_groups(cut, moments.gram, np.repeat(scales, blocks, axis=0), grid.spec, damping=_DAMPING)
    joined = found.reshape(groups, blocks, count, width).swapaxes(1, 2).reshape(groups, count, -1)
    return np.ascontiguousarray(joined[..., :length])


def _by_groups(node: ir.Node, rows: Floats, shape: tuple[int, int, int]) -> Floats:
    """Kernel rows as [groups, outputs of a group, inputs of a group]; only Conv has rows for each output of a group."""
    if node.op_type == "Conv":
        return rows.reshape(shape)
    groups, count, length = shape
    turned: Floats = rows.reshape(count, groups, length).swapaxes(0, 1)
    return turned


def _scales_by_groups(node: ir.Node, scale: Floats, shape: tuple[int, int, int]) -> Floats:
    return scale.reshape(shape[:2]) if node.op_type == "Conv" else np.broadcast_to(scale, shape[:2])


def _from_groups(node: ir.Node, found: Integers, shape: tuple[int, ...]) -> Integers:
    """Inverse of `_by_groups`."""
    turned = found if node.op_type == "Conv" else found.swapaxes(0, 1)
    return np.ascontiguousarray(turned.reshape(shape))
