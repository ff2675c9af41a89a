"""From a float model and data to a quantized model: calibrate once, solve, and try what may be better."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.data.fingerprint import feed_fingerprint
from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import ModelError, StatisticsError
from amct_onnx.files.state_folder import NO_STATE, StateFolder
from amct_onnx.graph.digest import model_digest
from amct_onnx.measure.accuracy import measure_accuracy
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.count_all import count_all
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.recipe.bench import Bench, Candidate
from amct_onnx.ptq.recipe.first_samples import PLANS, FirstSamples
from amct_onnx.ptq.recipe.steps import Recipe
from amct_onnx.ptq.shards import CountShards
from amct_onnx.targets.calibration import Calibration, SolvedGrids
from amct_onnx.targets.table import observed_tensors
from amct_onnx.targets.target import Target, all_in_float
from amct_onnx.values.findings import Effort
from amct_onnx.values.request import Request
from amct_onnx.values.used_data import UsedData

_MEMORY = 16 << 20  # bytes of them, where nothing else judges what comes of the calibration
_JUDGES, _FEW = 16, 8  # samples, the second of large ones
_LARGE = 1 << 16  # bytes
_log = logging.getLogger("amct_onnx.Config")


def calibrate(
    source: FusedModel,
    feeds: Iterable[Feed],
    total: int | None,
    *,
    target: Target,
    request: Request,
    effort: Effort,
    rule: BatchRule,
    progress: Progress = silent,
    parts: FeedParts | None = None,
    engine: Engine = HERE,
    state: StateFolder | None = None,
) -> QuantizedModel:
    """Run the data through the model once, and solve what they say for a target.

    total: how many feeds there are, None where only their end shows it. rule: where their samples are. parts: the same
    feeds by number, for the workers of `engine`; None where only this process can read them. state: where each
    feed is kept that is done, so that it is not run again.

    Raises ModelError for a model without a layer that can be quantized, CalibrationError, DataError.
    """
    observed = observed_tensors(source)
    if not observed:
        raise ModelError(all_in_float(source, target.name, target.decisions(source, request)))
    samples = FirstSamples(iter(feeds), rule, PLANS[effort])
    if state is not None:
        state.confirm("the first samples", " ".join(map(feed_fingerprint, samples.samples)))
    bench = Bench(source, target, request, samples, progress, state or NO_STATE, engine)
    recipe = Recipe(bench)
    prepared, tuning = recipe.prepare()
    counted = None if bench.look is None or prepared is not source else bench.look.counted
    if prepared is not source:
        source, observed = prepared, observed_tensors(prepared)
    memory = samples.plan.memory if recipe.asks_later_data else 0 if bench.judge is not None else _MEMORY
    digest = model_digest(source.model)
    work = CountShards(model=source.model, tensors=tuple(observed), rule=rule, parts=parts, state=state, digest=digest)
    found = count_all(work, samples, total, counted=counted, memory=memory, engine=engine, progress=progress)
    seen = found.seen
    statistics = Statistics(tensors=seen.tensors, samples=seen.samples, digest=digest, factors=source.factors)
    solved = SolvedGrids(bench.solved_weights)
    calibration = Calibration(source=source, statistics=statistics, request=request, tuning=tuning, solved=solved)
    best = recipe.tune(Candidate(calibration=calibration, lowered=target.solve(calibration)), found.later)
    tell(best.lowered.notes)
    judges = bench.judges() or _judges([*samples.samples, *found.later])
    used = UsedData(samples=seen.samples, feeds=seen.feeds, whole=rule.whole, skipped=seen.skipped)
    _log.info("Calibrated with %s.", used)
    if not any(decision.quantized for decision in best.lowered.decisions):
        tell([all_in_float(source, target.name, best.lowered.decisions)])
    return QuantizedModel(
        target=target.name,
        calibration=best.calibration,
        lowered=best.lowered,
        data=used,
        sample=found.first,
        judges=tuple(judges),
        judges_held_out=bench.judge is not None,
        steps=tuple(bench.steps),
        effort=effort,
        accuracy=measure_accuracy(
            source.model, best.lowered, judges, held_out=bench.judge is not None, scores=bench.known_scores()
        ),
    )


def from_statistics(source: FusedModel, statistics: Statistics, *, target: Target, request: Request) -> QuantizedModel:
    """Solve statistics of an earlier calibration for a target. Raises StatisticsError for those of another model."""
    divided = source.divided(statistics.factors)
    if statistics.digest != model_digest(divided.model):
        raise StatisticsError("The statistics belong to another model: calibrate this one with data.")
    calibration = Calibration(source=divided, statistics=statistics, request=request)
    lowered = target.solve(calibration)
    tell(lowered.notes)
    return QuantizedModel(target=target.name, calibration=calibration, lowered=lowered)


def tell(notes: Iterable[str]) -> None:
    """Log what a user should know."""
    for note in notes:
        _log.warning("%s", note)


def _judges(pool: Sequence[Feed]) -> list[Feed]:
    """Some of the first and of the later samples, at equal distances, to judge the result with."""
    large = sum(array.nbytes for array in pool[0].values()) > _LARGE if pool else False
    places = np.linspace(0, len(pool), min(_FEW if large else _JUDGES, len(pool)), endpoint=False).astype(int)
    return [pool[place] for place in places]
