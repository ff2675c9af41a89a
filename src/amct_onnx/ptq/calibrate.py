"""From a float model and data to a quantized model: calibrate once, solve, and try what may be better."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from amct_onnx.data.batches import BatchRule
from amct_onnx.errors import ModelError, StatisticsError
from amct_onnx.graph.digest import model_digest
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
_SPREAD, _SPREAD_BYTES = 8, 1 << 23  # samples to look at the result with
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
    if prepared is not source:
        source, observed = prepared, observed_tensors(prepared)
    watched = _Watched(samples, total, rule, progress, samples.plan.memory if recipe.asks_later_data else 0)
    tensors = collect_statistics(source.model, observed, watched)
    statistics = Statistics(
        tensors=tensors, samples=watched.samples, digest=model_digest(source.model), factors=source.factors
    )
    solved = SolvedGrids(bench.solved_weights)
    calibration = Calibration(source=source, statistics=statistics, request=request, tuning=tuning, solved=solved)
    best = recipe.tune(Candidate(calibration=calibration, lowered=target.solve(calibration)), watched.later)
    tell(best.lowered.notes)
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
        samples=tuple(watched.spread),
        steps=tuple(bench.steps),
        effort=effort,
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

    later: samples at equal distances among those behind the first ones, 24 at most and of `memory` bytes together; none
    where that is 0.
    """

    def __init__(
        self, front: FirstSamples, total: int | None, rule: BatchRule, progress: Progress, memory: int
    ) -> None:
        self._feeds, self._total, self._rule, self._progress = front, total, rule, progress
        self._memory, self._place, self._distance = memory, -len(front.samples), 1
        self.first: Feed | None = None
        self.later: list[Feed] = []
        self.spread: list[Feed] = []
        self._counted, self._spread_distance = 0, 1
        self.samples = self.feeds = 0

    def __iter__(self) -> Iterator[Feed]:
        total = self._total
        for feed in self._feeds:
            if self.first is None:
                self.first = self._rule.sample(feed, 0)
            if self._memory:
                self._keep(feed)
            self._spread_out(feed)
            yield feed
            self.samples += self._rule.rows(feed)
            self.feeds += 1
            self._progress("calibration", self.feeds / total if total else 0.0)

    def _spread_out(self, feed: Feed) -> None:
        """Keep each sample in the beginning, later every second one, and so on: a few from all over the data."""
        for index in range(self._rule.count(feed)):
            if self._counted % self._spread_distance == 0:
                self.spread.append(self._rule.sample(feed, index))
                size = sum(array.nbytes for sample in self.spread for array in sample.values())
                if len(self.spread) > 1 and (len(self.spread) > _SPREAD or size > _SPREAD_BYTES):
                    self.spread, self._spread_distance = self.spread[::2], 2 * self._spread_distance
            self._counted += 1

    def _keep(self, feed: Feed) -> None:
        for index in range(self._rule.count(feed)):
            if self._place >= 0 and self._place % self._distance == 0:
                self.later.append(self._rule.sample(feed, index))
                size = sum(array.nbytes for sample in self.later for array in sample.values())
                if len(self.later) > _LATER or size > self._memory:
                    self.later, self._distance = self.later[::2], 2 * self._distance
            self._place += 1
