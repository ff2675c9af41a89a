"""From a float model and data to a quantized model: calibrate once, solve, and try what may be better."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np

from amct_onnx.data.batches import BatchRule
from amct_onnx.errors import ModelError, StatisticsError
from amct_onnx.graph.digest import model_digest
from amct_onnx.measure.accuracy import measure_accuracy
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.recipe.bench import Bench, Candidate
from amct_onnx.ptq.recipe.first_samples import PLANS, FirstSamples
from amct_onnx.ptq.recipe.steps import Recipe
from amct_onnx.targets.calibration import Calibration, SolvedGrids
from amct_onnx.targets.table import observed_tensors
from amct_onnx.targets.target import Target, all_in_float
from amct_onnx.values.findings import Effort
from amct_onnx.values.request import Request
from amct_onnx.values.used_data import UsedData

_LATER = 24  # samples
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
) -> QuantizedModel:
    """Run the data through the model once, and solve what they say for a target.

    total: how many feeds there are, None where only their end shows it. rule: where their samples are.

    Raises ModelError for a model without a layer that can be quantized, CalibrationError, DataError.
    """
    observed = observed_tensors(source)
    if not observed:
        raise ModelError(all_in_float(source, target.name, target.decisions(source, request)))
    samples = FirstSamples(iter(feeds), rule, PLANS[effort])
    bench = Bench(source, target, request, samples, progress)
    recipe = Recipe(bench)
    prepared, tuning = recipe.prepare()
    counted = None if bench.look is None or prepared is not source else bench.look.counted
    if prepared is not source:
        source, observed = prepared, observed_tensors(prepared)
    memory = samples.plan.memory if recipe.asks_later_data else 0 if bench.judge is not None else _MEMORY
    watched = _Watched(samples, total, rule, progress, memory, behind=counted is not None)
    tensors = collect_statistics(source.model, observed, watched, counted=counted or {}, before=watched.feeds)
    if total is None:
        progress("calibration", 1.0)
    statistics = Statistics(
        tensors=tensors, samples=watched.samples, digest=model_digest(source.model), factors=source.factors
    )
    solved = SolvedGrids(bench.solved_weights)
    calibration = Calibration(source=source, statistics=statistics, request=request, tuning=tuning, solved=solved)
    best = recipe.tune(Candidate(calibration=calibration, lowered=target.solve(calibration)), watched.later)
    tell(best.lowered.notes)
    judges = bench.judges() or watched.kept()
    used = UsedData(samples=watched.samples, feeds=watched.feeds, whole=rule.whole)
    _log.info("Calibrated with %s.", used)
    if not any(decision.quantized for decision in best.lowered.decisions):
        tell([all_in_float(source, target.name, best.lowered.decisions)])
    return QuantizedModel(
        target=target.name,
        calibration=best.calibration,
        lowered=best.lowered,
        data=used,
        sample=watched.first,
        judges=tuple(judges),
        judges_held_out=bench.judge is not None,
        steps=tuple(bench.steps),
        effort=effort,
        accuracy=measure_accuracy(
            source.model, best.lowered, judges, held_out=bench.judge is not None, judge=bench.judge
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


class _Watched:
    """Feeds, `total` of them if that is known; keeps the first sample, counts feeds and samples, and shows progress.

    behind: the first samples are counted, and do not come again. later: samples at equal distances among those behind
    the first ones, 24 at most and of `memory` bytes together; none where that is 0.
    """

    def __init__(
        self,
        front: FirstSamples,
        total: int | None,
        rule: BatchRule,
        progress: Progress,
        memory: int,
        *,
        behind: bool = False,
    ) -> None:
        self._feeds, self._total, self._rule, self._progress = front, total, rule, progress
        self._memory, self._distance, self._behind = memory, 1, behind
        self.first: Feed | None = front.samples[0] if behind else None
        self.later: list[Feed] = []
        self._place = 0 if behind else -len(front.samples)
        self.samples, self.feeds = (front.count(), front.whole) if behind else (0, 0)

    def __iter__(self) -> Iterator[Feed]:
        total = self._total
        for feed in self._feeds.others() if self._behind else self._feeds.all():
            if self.first is None:
                self.first = self._rule.sample(feed, 0)
            if self._memory:
                self._keep(feed)
            yield feed
            self.samples += self._rule.rows(feed)
            self.feeds += 1
            self._progress("calibration", self.feeds / total if total else 0.0)

    def kept(self) -> list[Feed]:
        """Some of the first and of the later samples, at equal distances, to judge the result with."""
        pool = [*self._feeds.samples, *self.later]
        most = _FEW if sum(array.nbytes for array in (self.first or {}).values()) > _LARGE else _JUDGES
        places = np.linspace(0, len(pool), min(most, len(pool)), endpoint=False).astype(int)
        return [pool[place] for place in places]

    def _keep(self, feed: Feed) -> None:
        for index in range(self._rule.count(feed)):
            if self._place >= 0 and self._place % self._distance == 0:
                self.later.append(self._rule.sample(feed, index))
                size = sum(array.nbytes for sample in self.later for array in sample.values())
                if len(self.later) > _LATER or size > self._memory:
                    self.later, self._distance = self.later[::2], 2 * self._distance
            self._place += 1
