"""The recipe of `quantize`: a few steps against the error of quantization, each kept only where it helps.

The first samples of the data are kept. A third of them at least judge, the others serve to fit: a step is kept if it
raises the signal-to-noise ratio of the outputs (`measure.output_judge`) on samples that it has not seen, by more than
the standard error of that gain. `PLANS` says what each effort tries.

1. Placement: the first layers in float, where that costs no time (`ptq.recipe.placement`).
2. Equalization of channels (`graph.passes.equalize`), before the calibration, so that statistics are of the equalized
   network: of all tensors, or only of those that nothing clips, whose function stays. Then SmoothQuant of outlier
   channels in front of matrix products (`graph.passes.smooth`), where the target has use for it. They are tried on a
   first quantization, calibrated with some of the samples alone.
3. "best" only: ranges of activations that cost the outputs less (`ptq.recipe.ranges`).
4. Rounding of weights by GPTQ from the moments of their inputs, with biases that make up for what it does to the mean
   of a layer's outputs; "best" tries it without them, and AdaRound, as well. A first quantization serves to judge it,
   if there was one.

"default" leaves out what takes long and seldom helps: equalization that promises little (`ptq.recipe.equalization`),
and rounding where no bias can be corrected or weights make little of the noise.

A step is a generator of trials. `Recipe.run` is the one loop that solves and judges them; the step sees in `best`
whether its last trial was kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import as_layer
from amct_onnx.graph.passes.equalize import ChannelGroup, channel_groups
from amct_onnx.measure.output_judge import OutputJudge, Scores, gain
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.numerics.channel_factors import smooth_factors
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.observe.channel_maxima import channel_maxima
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.progress import Progress
from amct_onnx.ptq.recipe.equalization import group_factors, promised_gain
from amct_onnx.ptq.recipe.first_samples import FirstSamples
from amct_onnx.ptq.recipe.placement import Prefix, float_prefixes
from amct_onnx.ptq.recipe.ranges import cheaper_ranges
from amct_onnx.ptq.recipe.rounding import Method, round_weights, with_rounded_weights
from amct_onnx.ptq.recipe.smoothing import outlier_inputs
from amct_onnx.run.session import open_exact_session
from amct_onnx.targets.calibration import Calibration, SolvedGrids
from amct_onnx.targets.table import observed_tensors
from amct_onnx.targets.target import Lowered, Target
from amct_onnx.values.findings import Step, Tuning
from amct_onnx.values.request import Request

_LEAST_SAMPLES = 4  # two to fit, two to judge
_REASONS = (CalibrationError, DataError, ModelError)  # why a step cannot be tried; quantization itself may go on
# Of the shared models, equalization helped where it promised 3.2 dB or more, and not where it was 1.8 or less.
_PROMISE = 2.5
_LEAST_SHARE = 0.1  # of the noise, which weights make: without it, half a decibel is gained
# dB of a first quantization: behind fewer, the calibrated model is measured as well, which may have some dB less.
_SURE = 20.0
_SHARES = (1.0, 0.5, 0.2)  # of the ranges that were found: few large gains may do more good than many small ones


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A calibration, solved for the target of the recipe."""

    calibration: Calibration
    lowered: Lowered


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What `make` makes of the best calibration so far; or, without it, why it is not tried.

    measured: the reason came from a measurement of the best so far.
    """

    name: str
    make: Callable[[Candidate], Calibration] | None = None
    reason: str = ""
    measured: bool = False


Trials = Iterator[Trial]


class Recipe:
    """The steps for one model, target and request. `best` is what has been found, `steps` what was tried.

    Where there are too few samples, or settings of the user, nothing is tried.
    """

    def __init__(
        self, source: FusedModel, target: Target, request: Request, samples: FirstSamples, progress: Progress
    ) -> None:
        self.best: Candidate | None = None
        self.steps: list[Step] = []
        self._source, self._target, self._request = source, target, request
        self._samples, self._plan, self._progress = samples, samples.plan, progress
        self.solved_weights: dict[bytes, QParams] = {}  # the grids of weights, which all trials share
        self._scores: Scores | None = None  # of the best
        self._is_first = True  # trials are of a first quantization
        self._reached: Scores | None = None  # of a first quantization on which all was tried
        self._fit: list[Feed] = []
        self._judge: OutputJudge | None = None
        self._problem = ""
        kept = samples.samples
        if len(kept) < _LEAST_SAMPLES or not request.allows_recipe or not self._plan.samples:
            return
        judges = samples.judges()
        self._fit = [sample for index, sample in enumerate(kept) if index not in judges]
        try:
            self._judge = OutputJudge(source.model, [kept[index] for index in judges])
            self._rows = _rows_at_once(source.model, samples, self._fit)
        except _REASONS as reason:  # samples that do not run are the calibration's to tell of
            self._problem = str(reason)

    def prepare(self) -> tuple[FusedModel, Tuning]:
        """The model with channels equalized and outlier channels smoothed as far as that helps a first quantization,
        and what was found for it otherwise, as first layers in float, or rounded weights; from the samples alone."""
        self._run("first layers in float", self._place())
        self._run("equalization", self._equalize())
        self._run("smoothing of outlier channels", self._smooth())
        if self.best is not None and not self._plan.ranges:
            self._run("rounding", self._round())
            self._reached = self.scores()
        found, tuning = self._found(), Tuning() if self.best is None else self.best.calibration.tuning
        self.best = self._scores = None  # memory for the calibration
        return found, tuning

    def tune(self, calibrated: Candidate) -> Candidate:
        """The calibrated model with those of the later steps that help."""
        self.best, self._is_first = calibrated, False
        if self._reached is None:
            self._run("ranges by what they cost the outputs", self._choose_ranges())
            self._run("rounding", self._round())
        elif self._reached.decibels < _SURE:
            self._run("calibration with all data", self._measure())
        return self.best

    def _run(self, step: str, trials: Trials) -> None:
        """Solve and judge the trials of a step; the best so far is replaced where one is better."""
        if self._problem:
            self._leave_out(step, self._problem)
        if self._judge is None:
            return
        try:
            for trial in trials:
                if trial.make is None:
                    self._leave_out(trial.name, trial.reason, measured=trial.measured)
                    continue
                best = self._first()
                try:
                    before, made = self._judged(best), trial.make(best)
                    candidate = Candidate(calibration=made, lowered=self._target.solve(made))
                    after = self._judge.scores(candidate.lowered)
                except _REASONS as reason:
                    self._leave_out(trial.name, str(reason))
                    continue
                better, error = gain(before, after)
                kept = better > error
                self._note(trial.name, before, after, kept=kept, error=error)
                if kept:
                    self.best, self._scores = candidate, after
        except _REASONS as reason:
            self._leave_out(step, str(reason))

    def _first(self) -> Candidate:
        """The best so far; in the beginning a first quantization."""
        if self.best is None:
            first = self._quick(self._source)
            self.best = Candidate(calibration=first, lowered=self._target.solve(first))
        return self.best

    def scores(self) -> Scores | None:
        """What the best so far is worth on the samples that judge; None where there are none."""
        return None if self.best is None or self._judge is None else self._judged(self.best)

    def _judged(self, best: Candidate) -> Scores:
        """The same of the best so far, measured once."""
        if self._scores is None and self._judge is not None:
            self._scores = self._judge.scores(best.lowered)
        if self._scores is None:
            raise RuntimeError("nothing judges: no trial is made then")
        return self._scores

    def _note(self, name: str, before: Scores, after: Scores, *, kept: bool, error: float = 0.0) -> None:
        one, two = before.decibels, after.decibels
        self.steps.append(Step(name=name, before=one, after=two, kept=kept, first=self._is_first, error=error))

    def _leave_out(self, name: str, reason: str, *, measured: bool = False) -> None:
        """Tell why a step is not tried."""
        scores = self.scores() if measured else None
        before = math.inf if scores is None else scores.decibels
        first = self._is_first and self.best is not None
        self.steps.append(Step(name=name, before=before, after=None, kept=False, reason=reason, first=first))

    def _feeds(self, most: int | None = None) -> list[Feed]:
        """The samples to fit, or the first of them, in batches."""
        return self._samples.batches(self._fit[:most], self._rows)

    def _quick(self, source: FusedModel) -> Calibration:
        """A calibration of `source` with the samples to fit."""
        statistics = Statistics(
            tensors=collect_statistics(source.model, observed_tensors(source), self._feeds(self._plan.quick)),
            samples=len(self._fit[: self._plan.quick]),
            digest="",  # nobody gets to see them
            factors=source.factors,
        )
        solved = SolvedGrids(self.solved_weights)
        tuning = Tuning() if self.best is None else Tuning(in_float=self.best.calibration.tuning.in_float)
        return Calibration(source=source, statistics=statistics, request=self._request, tuning=tuning, solved=solved)

    def _place(self) -> Trials:
        if self._target.prices is None or self._request.full_int8:
            return
        first = self._first()
        for prefix in float_prefixes(first.calibration, first.lowered, self._target.prices):
            now = 0 if self.best is None else len(self.best.calibration.tuning.in_float)
            if now < len(prefix.layers):
                yield Trial(name=prefix.name, make=partial(_placed, prefix))

    def _equalize(self) -> Trials:
        start = self._source
        groups = channel_groups(start.model) if self._plan.strengths else ()
        if not groups:
            return
        maxima = channel_maxima(start.model, [name for group in groups for name in group.measured], self._feeds())
        tries, left_out = [], {}
        for name, chosen, strength in self._equalizations(groups):
            factors = group_factors(chosen, maxima, strength)
            promise = promised_gain(start.model, chosen, maxima, factors)
            if self._plan.thorough or promise >= _PROMISE:
                tries.append((name, factors))
            elif factors:
                left_out[name] = f"it promises {promise:.1f} dB, and less than {_PROMISE} seldom holds"
        yield from self._divide(start, tries)
        if self._found() is start:
            for name, reason in left_out.items():
                yield Trial(name=name, reason=reason)

    def _equalizations(
        self, groups: Sequence[ChannelGroup]
    ) -> Iterator[tuple[str, list[ChannelGroup], tuple[float, float]]]:
        """What is tried, as words, groups and the two strengths; the most promising first."""
        free = [group for group in groups if group.ceiling == np.inf]
        if len(free) < len(groups):
            for strength in self._plan.strengths:
                words = f"strengths {strength[0]} and {strength[1]} behind a Clip"
                yield f"equalization of channels, {words}", list(groups), strength
        for power in dict.fromkeys(strength[0] for strength in self._plan.strengths) if free else ():
            yield f"equalization of channels that nothing clips, strength {power}", free, (power, 0.0)

    def _smooth(self) -> Trials:
        start = self._found()
        wanted = self._target.smoothable(start, self._request) if self._plan.smooth else ()
        found = outlier_inputs(start.model, wanted, [*self._feeds(), *self._samples.more])
        tries = []
        for strength in self._plan.smooth:
            factors = {name: smooth_factors(magnitudes, strength) for name, magnitudes in found.items()}
            tries.append((f"outlier channels smoothed, strength {strength}", factors))
        yield from self._divide(start, tries)

    def _found(self) -> FusedModel:
        """The float model of the best so far."""
        return self._source if self.best is None else self.best.calibration.source

    def _divide(self, start: FusedModel, tries: Iterable[tuple[str, Mapping[str, Floats]]]) -> Trials:
        """Trials of `start` with its channels divided by factors; up to the first that helps, unless thorough."""

        def divided(factors: Mapping[str, Floats], _: Candidate) -> Calibration:
            return self._quick(start.divided(factors))

        for name, factors in tries:
            if factors:
                yield Trial(name=name, make=partial(divided, factors))
                if self._found() is not start and not self._plan.thorough:
                    return

    def _choose_ranges(self) -> Trials:
        start = self.best
        if start is None or not self._plan.ranges:
            return
        model, choices = start.calibration.source.model, start.lowered.range_choices()
        found = cheaper_ranges(model, choices, self._feeds(self._plan.ranges), self._progress)

        def narrowed(count: int, _: Candidate) -> Calibration:
            tuning = replace(start.calibration.tuning, ranges=dict(found[:count]))
            return replace(start.calibration, tuning=tuning)

        for count in dict.fromkeys(round(share * len(found)) for share in _SHARES):
            if count:
                name = f"ranges of {count} tensors by what they cost the outputs"
                yield Trial(name=name, make=partial(narrowed, count))

    def _round(self) -> Trials:
        start = self.best
        if start is None or not self._plan.rounding:
            return
        if self._request.reduce_range:
            yield Trial(name="rounding", reason="reduce_range chooses the integers of weights")
            return
        grids, biased = start.lowered.rows, _with_bias(start, adds_bias=self._target.adds_bias)
        if grids and biased and not self._plan.thorough and (share := self._weights_share(start)) < _LEAST_SHARE:
            yield Trial(name="rounding", reason=f"weights make {share:.0%} of the noise", measured=True)
            return
        for method in self._plan.rounding if grids else ():
            tries = [(f"rounding by {method}, biases corrected", biased)] if biased else []
            if self._plan.thorough:
                tries.append((f"rounding by {method}", frozenset()))
            if not tries:
                reason = 'no layer has a bias to correct; effort="best" tries it'
                yield Trial(name=f"rounding by {method}", reason=reason)
            before = self.best
            for name, corrected in tries:
                if self.best is before:
                    yield Trial(name=name, make=partial(self._rounded, method, corrected))

    def _weights_share(self, start: Candidate) -> float:
        """What nearest weights do to the outputs, as a share of the noise: all that rounding can take away."""
        if self._judge is None:
            return 0.0
        alone = self._judge.scores_of(
            open_exact_session(with_rounded_weights(start.calibration.source.model, start.lowered.rows))
        )
        return min(1.0, 10 ** ((self._judged(start).decibels - alone.decibels) / 10))

    def _rounded(self, method: Method, corrected: frozenset[str], start: Candidate) -> Calibration:
        """`start` with weights rounded by `method`, and with these layers' biases corrected."""
        params = start.lowered.rows
        weights = round_weights(
            start.calibration.source.model,
            list(params),
            self._feeds(),
            params,
            method=method,
            corrected=corrected,
            progress=self._progress,
        )
        return replace(start.calibration, tuning=replace(start.calibration.tuning, weights=weights))

    def _measure(self) -> Trials:
        now = self.scores()
        if self._reached is not None and now is not None:
            self._note("calibration with all data", self._reached, now, kept=True)
        yield from ()


def _placed(prefix: Prefix, best: Candidate) -> Calibration:
    """`best` with the layers of a prefix in float."""
    in_float = dict.fromkeys(prefix.layers, prefix.reason)
    return replace(best.calibration, tuning=replace(best.calibration.tuning, in_float=in_float))


def _rows_at_once(model: ir.Model, samples: FirstSamples, fit: Sequence[Feed]) -> int:
    """How many samples the network takes at a time: those that run alone may not run together."""
    if samples.rows == 1:
        return 1
    try:
        OutputNoise(model, samples.batches(fit[: samples.rows], samples.rows))
    except DataError:
        return 1
    return samples.rows


def _with_bias(best: Candidate, *, adds_bias: bool) -> frozenset[str]:
    """The quantized layers whose bias can make up for something: one number for each output channel, or none yet.

    adds_bias: the target gives a layer without a bias one.
    """
    found, weights = [], best.lowered.rows
    for node in best.calibration.source.model.graph:
        layer = as_layer(node) if node.name in weights and node.op_type in ("Conv", "Gemm") else None
        if layer is None:
            continue
        bias = constant_tensor(layer.bias_value)
        if (layer.bias_value is None and adds_bias) or (bias is not None and bias.size == layer.output_channels):
            found.append(layer.name)
    return frozenset(found)
