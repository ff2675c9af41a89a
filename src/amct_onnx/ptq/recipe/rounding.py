"""Second-order rounding: the integers of weights that change the outputs of their layers least, on given data.

Each layer is rounded for the inputs that it has in the float network, from their Gram matrix alone. Rounding changes
the mean of an output; `corrections` says what a bias would have to make up for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.errors import CalibrationError
from amct_onnx.graph.constants import ValueNames, constant_tensor, constant_value, own_constant
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.tensors import shape_of
from amct_onnx.graph.weights import from_kernel_rows, kernel_rows, output_rows_shape
from amct_onnx.numerics.grid import FLT_EPSILON, QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.adaround import learn_rounding
from amct_onnx.numerics.weights.bias import bias_correction
from amct_onnx.numerics.weights.gptq import solve_gptq_groups
from amct_onnx.observe.second_moments import MEMORY, collect_moments
from amct_onnx.progress import Progress, silent
from amct_onnx.run.threads import one_blas_thread, processors, run_side_by_side

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int8]
Feed = Mapping[str, npt.NDArray[Any]]
Method = Literal["gptq", "adaround"]

# Longer rows are rounded in blocks: the time to round a block grows with its cube, and 256 channels of 3x3 fit.
_LONGEST = 2304
_DAMPING = 0.01
_NOISE = 1e-9  # of the mean square of inputs


@dataclass(frozen=True, kw_only=True)
class RoundedWeights:
    """By layer: `integers` int8[C, n], in the layout of `graph/weights.kernel_rows`; `grids`, whose scales they are
    for; and `corrections`, float64 for each output channel, which added to the bias keep the mean of the layer's
    output: those of a group of outputs stand together, as in the bias of a convolution."""

    integers: Mapping[str, Integers]
    grids: Mapping[str, QParams]
    corrections: Mapping[str, Doubles]


def round_weights(
    model: ir.Model,
    layers: Sequence[str],
    feeds: Collection[Feed],
    grids: Mapping[str, QParams],
    *,
    method: Method = "gptq",
    settings: AdaRound | None = None,
    corrected: Collection[str] = (),
    ratios: Sequence[float] = (1.0,),
    memory: int = MEMORY,
    progress: Progress = silent,
) -> RoundedWeights:
    """Round the weights of `layers` by GPTQ or AdaRound.

    model: a fused float model, which is left as it is. layers, feeds, memory: as `collect_moments` takes them. grids:
    the scales of the output channels of each weight, symmetric, at most 8 bits. settings: those of AdaRound.
    corrected: the layers whose biases will get the `corrections`. The mean of their errors costs nothing then, so they
    are rounded by the covariance of their inputs. ratios: of the scales; each channel takes the one that costs its
    output least. That pays with few bits: (0.9, 1.0, 1.1) gains one decibel with 4, next to nothing with 8.

    Raises like `collect_moments`, and CalibrationError where a weight or its Gram matrix cannot be rounded.
    """
    copy = model.clone()
    normalize_layers(copy, frozenset(layers))
    nodes = {node.name or "": node for node in copy.graph}
    stop = threading.Event()

    def go_on(share: float) -> None:
        if stop.is_set():
            raise InterruptedError

    wishes = _Wishes(
        learning=(settings or AdaRound()) if method == "adaround" else None,
        corrected=frozenset(corrected),
        ratios=tuple(ratios),
        go_on=go_on,
    )
    integers, found, corrections = {}, {}, {}
    moments = collect_moments(copy, layers, feeds, memory=memory, longest=_LONGEST)
    solve = partial(_solve, nodes, grids, wishes)
    with one_blas_thread(), closing(run_side_by_side(solve, moments, processors())) as rounded:
        try:
            for done, ((layer, _), running) in enumerate(rounded, 1):
                integers[layer], found[layer], corrections[layer] = running.result()
                progress("rounding", done / len(layers))
        finally:
            stop.set()
    return RoundedWeights(integers=integers, grids=found, corrections=corrections)


def with_rounded_weights(model: ir.Model, grids: Mapping[str, QParams]) -> ir.Model:
    """A copy of a fused float model whose layers have the nearest weights on `grids`, as `round_weights` takes them."""
    copy = model.clone()
    normalize_layers(copy, frozenset(grids))
    names = ValueNames(copy)
    for node in copy.graph:
        weight = constant_value(node.inputs[1]) if node.name in grids else None
        if weight is not None:
            rounded = fake_quantize(kernel_rows(node, weight), grids[node.name or ""])
            own_constant(node, 1, from_kernel_rows(node, rounded, weight.shape), f"{node.name}.weight", names=names)
    return copy


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """How to round: by AdaRound where there is `learning`. `go_on` raises where it is to end."""

    learning: AdaRound | None
    corrected: frozenset[str]
    ratios: tuple[float, ...]
    go_on: Callable[[float], None]


def _solve(
    nodes: Mapping[str, ir.Node],
    grids: Mapping[str, QParams],
    wishes: _Wishes,
    item: tuple[str, SecondMoments],
) -> tuple[Integers, QParams, Doubles]:
    """Integers [C, n], grid and corrections of one layer."""
    layer, moments = item
    node, grid = nodes[layer], grids[layer]
    weight, tensor = constant_value(node.inputs[1]), constant_tensor(node.inputs[1])
    assert weight is not None  # `collect_moments` has looked
    assert tensor is not None  # as above
    rows = kernel_rows(node, weight)
    shape = output_rows_shape(shape_of(tensor), node)
    grouped: Floats = _by_groups(node, rows, shape)
    means = moments.mean.reshape(shape[0], -1)[:, : shape[2]]
    used = _covariances(moments) if layer in wishes.corrected else moments
    integers, scale = np.empty(rows.shape, np.int8), np.broadcast_to(grid.scale, rows.shape[:1])
    if grid.scale.size != scale.size and wishes.ratios != (1.0,):
        raise CalibrationError(f'Layer "{layer}" has one scale for all channels, which cannot choose a ratio each.')
    chosen, least = scale, np.full(rows.shape[0], np.inf)
    try:
        for ratio in wishes.ratios:
            tried = np.clip(scale * np.float32(ratio), FLT_EPSILON, 1 / FLT_EPSILON)
            scales = _scales_by_groups(node, tried, shape)
            if wishes.learning is None:
                found, errors = _gptq(grouped, scales, grid.spec, used, compared=len(wishes.ratios) > 1)
            else:
                learned = learn_rounding(grouped, scales, grid.spec, used, wishes.learning, wishes.go_on)
                found, errors = learned.integers.astype(np.int8), learned.learned
            error = errors.reshape(-1) if node.op_type == "Conv" else errors.sum(axis=0)
            better = error < least
            integers[better] = _from_groups(node, found, rows.shape)[better]
            chosen, least = np.where(better, tried, chosen), np.where(better, error, least)
        rounded: Doubles = integers.astype(np.float64) * chosen[:, None]
        correction = bias_correction(grouped, _by_groups(node, rounded, shape), means)
    except ValueError as error:
        raise CalibrationError(f'Layer "{layer}" cannot be rounded: {error}.') from error
    own = grid.scale.size == chosen.size  # one scale for all rows stays as it is
    return integers, replace(grid, scale=chosen) if own else grid, correction.reshape(-1)


def _covariances(moments: SecondMoments) -> SecondMoments:
    """The moments of columns without their means."""
    gram = moments.gram - moments.mean[:, :, None] * moments.mean[:, None, :]
    # What is left of columns that do not vary is noise: it must not make the matrix indefinite.
    index = np.arange(gram.shape[1])
    gram[:, index, index] += _NOISE * np.einsum("ukk->uk", moments.gram).mean(axis=1, keepdims=True)
    return SecondMoments(columns=moments.columns, mean=np.zeros_like(moments.mean), gram=gram)


def _gptq(
    rows: Floats, scales: Floats, spec: QSpec, moments: SecondMoments, *, compared: bool
) -> tuple[Integers, Doubles]:
    """GPTQ of rows [G, R, n], in blocks of columns as long as the Gram matrices.

    Beside the integers the squared error of each row's output, where it is `compared`.
    """
    groups, count, length = rows.shape
    units, width = moments.mean.shape
    blocks = units // groups
    filled = np.zeros((groups, count, blocks * width), np.float32)
    filled[..., :length] = rows
    cut = filled.reshape(groups, count, blocks, width).swapaxes(1, 2).reshape(units, count, width)
    steps = np.repeat(scales, blocks, axis=0)
    found = solve_gptq_groups(cut, moments.gram, steps, spec, damping=_DAMPING)
    errors = np.zeros((groups, count))
    if compared:
        wrong = (found * steps[..., None].astype(np.float64) - cut).swapaxes(1, 2)
        errors = ((moments.gram @ wrong) * wrong).sum(axis=1).reshape(groups, blocks, count).sum(axis=1)
    joined = found.reshape(groups, blocks, count, width).swapaxes(1, 2).reshape(groups, count, -1)
    return np.ascontiguousarray(joined[..., :length]), errors


def _by_groups(node: ir.Node, rows: npt.NDArray[Any], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Kernel rows as [groups, outputs of a group, inputs of a group]; only Conv has rows for each output of a group."""
    if node.op_type == "Conv":
        return rows.reshape(shape)
    groups, count, length = shape
    turned: npt.NDArray[Any] = rows.reshape(count, groups, length).swapaxes(0, 1)
    return turned


def _scales_by_groups(node: ir.Node, scale: Floats, shape: tuple[int, int, int]) -> Floats:
    return scale.reshape(shape[:2]) if node.op_type == "Conv" else np.broadcast_to(scale, shape[:2])


def _from_groups(node: ir.Node, found: Integers, shape: tuple[int, ...]) -> Integers:
    """Inverse of `_by_groups`."""
    turned = found if node.op_type == "Conv" else found.swapaxes(0, 1)
    return np.ascontiguousarray(turned.reshape(shape))
