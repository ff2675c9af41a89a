"""Weights of matrix products in few bits, activations in float: `quantize(..., weight_only=4)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.open_data import DataSource
from amct_onnx.errors import ArgumentError, ModelError
from amct_onnx.graph.digest import model_digest
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.layers import candidates
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.passes.smooth import product_inputs
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.numerics.weights.block_grid import BlockGrid, solve_block_grid
from amct_onnx.numerics.weights.second_order import Advance, round_block_rows
from amct_onnx.observe.second_moments import collect_moments
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.quantized_model import WeightOnlyModel
from amct_onnx.run.round_layers import RoundingJob, round_layers
from amct_onnx.run.threads import processors
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.table import TARGETS
from amct_onnx.targets.target import Target
from amct_onnx.targets.to_nbits import BlockWeight, PackedWeights
from amct_onnx.values.layers import Decision
from amct_onnx.values.request import Request
from amct_onnx.values.used_data import UsedData

Rounding = Literal["nearest", "gptq", "adaround"]

_BITS = (4, 8)
_LEAST_BLOCK = 16
_LONGEST = 4096  # columns whose second moments are known together
# Feeds are read once for each chunk of layers, so they are kept: so many bytes of them, at most so many samples.
_KEPT_BYTES, _KEPT_SAMPLES = 256 << 20, 512
_PRODUCTS = ("MatMul", "Gemm")


def check_weight_only(bits: Any, block_size: Any, target: Target, data: object, *, search: bool) -> None:
    """Raise ArgumentError for what a target does not have, for statistics instead of data, and for a search."""
    if search:
        raise ArgumentError("weight_only does not search for mixed precision: leave out the target of accuracy.")
    if not target.packs_weights:
        able = " or ".join(name for name, other in TARGETS.items() if other.packs_weights)
        raise ArgumentError(f"weight_only needs target {able}, got {target.name}: leave one of them out.")
    if bits not in _BITS:
        raise ArgumentError(f"weight_only={bits!r} bits: use 4 or 8.")
    if not isinstance(block_size, int) or block_size < _LEAST_BLOCK or block_size & (block_size - 1):
        raise ArgumentError(f"block_size={block_size!r} is no power of two from {_LEAST_BLOCK} on, such as 32.")
    if isinstance(data, Statistics):
        raise ArgumentError("weight_only cannot use statistics of activations: give data, or None.")


def quantize_weights(
    source: FusedModel,
    feeds: Iterable[Feed] | None,
    *,
    request: Request,
    target: Target,
    bits: int = 4,
    block_size: int = 32,
    rounding: Rounding = "gptq",
    settings: AdaRound | None = None,
    progress: Progress = silent,
) -> WeightOnlyModel:
    """Quantize the weights of all MatMul and Gemm with a constant weight of two dimensions.

    feeds: calibration data, of which the first 512 samples at most are used; None rounds to nearest. settings: those of
    AdaRound.

    Raises ModelError without such a layer, DataError and CalibrationError like `collect_moments`.
    """
    decisions = tuple(_decisions(source.model, request.off()))
    layers = [decision.layer for decision in decisions if decision.quantized]
    if not layers:
        raise ModelError(f"{source.name} has no product whose weight could be quantized: it needs MatMul or Gemm.")
    model = source.model.clone()
    normalize_layers(model, frozenset(layers))
    index, solve = index_graph(model), partial(solve_block_grid, block=block_size, bits=bits)
    samples, blocks, sample, used = 0, {}, None, None
    if feeds is not None and rounding != "nearest":
        rule = feeds.rule if isinstance(feeds, DataSource) else BatchRule.of(model_inputs(source.model))
        kept, samples = _kept(feeds, rule)
        sample = rule.sample(kept[0], 0) if kept else None
        used = UsedData(samples=samples, feeds=len(kept), whole=rule.whole)
        learning = (settings or AdaRound()) if rounding == "adaround" else None

        def jobs() -> Iterator[RoundingJob[BlockWeight]]:
            for name, moments in collect_moments(model, layers, kept, longest=_LONGEST):
                yield RoundingJob(layer=name, solve=partial(_round, index.layer(name), solve, moments, learning))

        blocks = round_layers(jobs(), total=len(layers), workers=processors(), what="rounding", progress=progress)
    for done, name in enumerate(layers, 1):
        if name not in blocks:  # there are no data, or none that reach the layer
            rows, grid = _rows_and_grid(index.layer(name), solve)
            blocks[name] = BlockWeight(integers=grid.quantize(rows), grid=grid)
            progress("rounding", done / len(layers))
    statistics = Statistics(tensors={}, samples=samples, digest=model_digest(source.model))
    return WeightOnlyModel(
        target=target.name,
        calibration=Calibration(source=source, statistics=statistics, request=request),
        lowered=PackedWeights(
            float_model=source.model,
            blocks=blocks,
            decisions=decisions,
            target=target.name,
        ),
        assumptions=feeds.assumptions if isinstance(feeds, DataSource) else (),
        data=used,
        sample=sample,
    )


def _decisions(model: ir.Model, off: frozenset[str]) -> Iterable[Decision]:
    possible = {layer for tensor in product_inputs(model).values() for layer in tensor.layers}
    for traits in candidates(model):
        if traits.op_type in _PRODUCTS:
            reason = _reason(traits.name in possible, traits.reason, traits.two_operands, traits.name in off)
            yield Decision(layer=traits.name, quantized=not reason, reason=reason)


def _reason(possible: bool, unfit: str | None, two_operands: bool, off: bool) -> str:
    if off:
        return "it is switched off by the settings"
    if two_operands:
        return "it multiplies two activations"
    if unfit is not None:
        return unfit
    return "" if possible else "its weight is no float32 matrix"


def _kept(feeds: Iterable[Feed], rule: BatchRule) -> tuple[list[Feed], int]:
    """The first feeds, and how many samples they are; at least one feed if there is one."""
    kept: list[Feed] = []
    size = samples = 0
    for feed in feeds:
        size += sum(array.nbytes for array in feed.values())
        if kept and (size > _KEPT_BYTES or samples >= _KEPT_SAMPLES):
            break
        kept.append({name: np.array(array) for name, array in feed.items()})
        samples += rule.rows(feed)
    return kept, samples


def _rows_and_grid(layer: Layer, solve: Callable[[Floats], BlockGrid]) -> tuple[Floats, BlockGrid]:
    """The weight of a layer in rows of outputs, and its grid."""
    rows = kernel_rows(layer.array(), layer.node)
    try:
        return rows, solve(rows)
    except ValueError as error:
        raise ModelError(f'Layer "{layer.name}": {error}. Correct the model or switch the layer off.') from error


def _round(
    layer: Layer,
    solve: Callable[[Floats], BlockGrid],
    moments: SecondMoments,
    learning: AdaRound | None,
    advance: Advance,
) -> BlockWeight:
    rows, grid = _rows_and_grid(layer, solve)
    return BlockWeight(integers=round_block_rows(rows, grid, moments, learning, advance), grid=grid)
