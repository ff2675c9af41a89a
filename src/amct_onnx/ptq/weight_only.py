"""Weights of matrix products in few bits, activations in float: `quantize(..., weight_only=4)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.data_source import DataSource
from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import AmctError, ArgumentError, DataError, ModelError
from amct_onnx.graph.digest import model_digest
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.inputs import model_inputs
from amct_onnx.graph.layer_view import first_readers
from amct_onnx.graph.layers import candidates
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.measure.output_judge import OutputJudge, gain
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.weights.block_grid import solve_block_grid
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.block_rounding import RoundedBlocks, chosen_blocks, learn_blocks, nearest_blocks
from amct_onnx.ptq.held_out import Division, hold_out, spread_samples
from amct_onnx.ptq.quantized_model import QuantizedModel, WeightOnlyModel
from amct_onnx.ptq.recipe.rounding import Method
from amct_onnx.run.saturation import open_exact_session
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.table import TARGETS
from amct_onnx.targets.target import Target, all_in_float
from amct_onnx.targets.to_nbits import BlockWeight, PackedWeights, lower_nbits
from amct_onnx.values.findings import Effort, Step
from amct_onnx.values.layers import Decision, LayerTraits
from amct_onnx.values.request import Request
from amct_onnx.values.skipped_data import NOTHING_SKIPPED
from amct_onnx.values.used_data import UsedData
from amct_onnx.words import either, given, named

METHODS: Mapping[Effort, tuple[Method, ...]] = {"fast": (), "default": ("gptq",), "best": ("gptq", "adaround")}

_BITS = (4, 8)
_LEAST_BLOCK = 16
# Feeds are read once for each chunk of layers, so they are kept: so many bytes of them, at most so many samples.
_KEPT_BYTES, _KEPT_SAMPLES = 256 << 20, 512
_PRODUCTS = ("MatMul", "Gemm")
_NAMES: Mapping[Method, str] = {"gptq": "GPTQ", "adaround": "AdaRound"}


def check_weight_only(bits: Any, block_size: Any, target: Target, data: object, *, search: bool) -> None:
    """Raise ArgumentError for what a target does not have, for statistics instead of data, and for a search."""
    if search:
        raise ArgumentError(
            f"{named('weight_only')} does not search for mixed precision: leave out the target of accuracy."
        )
    if not target.packs_weights:
        able = " or ".join(name for name, other in TARGETS.items() if other.packs_weights)
        raise ArgumentError(
            f"{named('weight_only')} needs {named('target')} {able}, got {target.name}: leave one of them out."
        )
    if bits not in _BITS:
        raise ArgumentError(f"{given('weight_only', bits)} bits: use 4 or 8.")
    if not isinstance(block_size, int) or block_size < _LEAST_BLOCK or block_size & (block_size - 1):
        raise ArgumentError(f"{given('block_size', block_size)} is no power of two from {_LEAST_BLOCK} on, such as 32.")
    if isinstance(data, Statistics):
        raise ArgumentError(
            f"{named('weight_only')} cannot use statistics of activations: "
            + either("give data, or None.", "give --data, or none.")
        )


def quantize_weights(
    source: FusedModel,
    feeds: Iterable[Feed] | None,
    *,
    request: Request,
    target: Target,
    bits: int = 4,
    block_size: int = 32,
    methods: Sequence[Method] = ("gptq",),
    settings: AdaRound | None = None,
    progress: Progress = silent,
    engine: Engine = HERE,
) -> QuantizedModel:
    """Quantize the weights of all MatMul and Gemm with a constant weight of two dimensions.

    feeds: calibration data, of which the first 512 samples at most are used; None rounds to nearest. methods: what is
    tried beside the nearest, fitted on three samples of four. A layer takes what is best for its outputs on the others,
    and the model has that if its own outputs prove it on them. settings: those of AdaRound.

    Raises ModelError without such a layer, DataError and CalibrationError like `collect_moments`.
    """
    decisions = tuple(_decisions(source.model, request.off()))
    layers = [decision.layer for decision in decisions if decision.quantized]
    if not layers:
        text = f"{source.name} has no product whose weight could be quantized: it needs MatMul or Gemm."
        raise ModelError(all_in_float(source, target.name, decisions) if decisions else text)
    model = source.model.clone()
    normalize_layers(model, frozenset(layers))
    solve = partial(solve_block_grid, block=block_size, bits=bits)
    rounded: dict[str, RoundedBlocks] = {}
    sample, used, samples, division = None, None, 0, Division(fit=[], judge=[])
    if feeds is not None and methods:
        rule = feeds.rule if isinstance(feeds, DataSource) else BatchRule.of(model_inputs(source.model))
        kept, samples = _kept(feeds, rule)
        if not kept:
            raise DataError("There are no calibration data: give at least one batch.")
        sample = rule.sample(kept[0], 0)
        skipped = feeds.skipped if isinstance(feeds, DataSource) else NOTHING_SKIPPED
        used = UsedData(samples=samples, feeds=len(kept), whole=rule.whole, skipped=skipped)
        division = hold_out(kept, rule)
        if division.judge:
            learning = settings or AdaRound()
            source_index = index_graph(source.model)
            twins = first_readers(source_index.layer(name) for name in layers)
            rounded = learn_blocks(
                model,
                layers,
                twins,
                division,
                solve,
                methods=methods,
                settings=learning,
                progress=progress,
                engine=engine,
            )
    index, blocks = index_graph(model), dict[str, BlockWeight]()
    for done, name in enumerate(layers, 1):
        if name in rounded:
            blocks[name] = rounded[name].nearest
        else:  # there are no data to judge with, or none that reach the layer
            blocks[name] = nearest_blocks(index.layer(name), solve)
            progress("rounding", done / len(layers))
    steps: tuple[Step, ...] = ()
    judges: list[Feed] = []
    if sample is not None:
        judges = spread_samples(division.judge, rule)
        blocks, step = _proved(source.model, blocks, rounded, judges, methods)
        steps = (step,)
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
        steps=steps,
        judges=tuple(judges),
        judges_held_out=True,
    ).measured()


def _proved(
    model: ir.Model,
    nearest: dict[str, BlockWeight],
    rounded: Mapping[str, RoundedBlocks],
    samples: Sequence[Feed],
    methods: Sequence[Method],
) -> tuple[dict[str, BlockWeight], Step]:
    """The weights `nearest`, or those with what layers have chosen if it is better for the outputs, and how that went.

    samples: those that judge.
    """
    learned = chosen_blocks(rounded)
    used = [method for method in methods if any(rounded[name].method == method for name in learned)]
    name = f"rounding by {' and '.join(_NAMES[method] for method in used or methods)}"
    if not learned:
        reason = "no layer reads anything in the data" if samples else "it takes four samples or more to judge it"
        return nearest, Step(name=name, before=float("inf"), after=None, kept=False, reason=reason)
    if len(learned) < len(nearest):
        name += f" of {len(learned)} of {len(nearest)} weights"
    chosen = nearest | learned
    try:
        judge = OutputJudge(model, samples)
        before, after = (judge.scores_of(open_exact_session(_packed(model, blocks))) for blocks in (nearest, chosen))
    except AmctError as error:
        return nearest, Step(name=name, before=float("inf"), after=None, kept=False, reason=str(error))
    more, least = gain(before, after)
    kept = any(found.helps for found in rounded.values()) and more > least
    step = Step(name=name, before=before.decibels, after=after.decibels, kept=kept, error=least)
    return (chosen if kept else nearest), step


def _packed(model: ir.Model, blocks: Mapping[str, BlockWeight]) -> ir.Model:
    """A copy with these weights, which multiplies in float: what the runtime rounds beside them judges nothing."""
    copy = model.clone()
    lower_nbits(copy, blocks, exact=True)
    return copy


def _decisions(model: ir.Model, off: Mapping[str, str]) -> Iterable[Decision]:
    for traits in candidates(model):
        if traits.op_type in _PRODUCTS:
            reason = off.get(traits.name) or _reason(traits)
            yield Decision(layer=traits.name, quantized=not reason, reason=reason)


def _reason(traits: LayerTraits) -> str:
    if traits.two_operands:
        return "it multiplies two activations"
    if traits.reason is not None:
        return traits.reason
    return "" if traits.weight_rank == 2 else f"its weight has {traits.weight_rank} dimensions, and 2 are supported"


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
