"""The recipe of `quantize`: a few steps against the error of quantization, each kept only where it helps.

The first samples of the data are kept. A third of them at least judge, the others serve to fit: a step is kept if it
raises the signal-to-noise ratio of the outputs (`measure.output_judge`) on samples that it has not seen, by more than
the standard error of that gain. `PLANS` says what each effort tries.

0. Where the first samples reach much further than the calmest of them, those may calibrate the first quantization on
   which the next steps are tried (`ptq.recipe.calm_samples`).
1. Placement: first and last layers in float, where that costs little time (`ptq.recipe.placement`).
2. Equalization of channels (`graph.passes.equalize`), before the calibration, so that statistics are of the equalized
   network: of all tensors, or only of those that nothing clips, whose function stays. Then SmoothQuant of outlier
   channels in front of matrix products (`graph.passes.smooth`), where the target has use for it. They are tried on a
   first quantization, calibrated with some of the samples alone.
3. Once all data have been seen: the ranges of a first quantization, where rare values have made them worse; ranges as
   the target's own tool finds them, where it has one; in front of scores on a grid, as a detector's, the extremes of
   tensors as their ranges; "best" only: ranges of activations that cost the outputs less (`ptq.recipe.ranges`).
4. Rounding of weights by GPTQ from the moments of their inputs, with biases that make up for what it does to the mean
   of a layer's outputs; "best" tries it without them, and AdaRound, as well. A first quantization serves to judge it,
   if there was one.

"default" leaves out what takes long and seldom helps: equalization that promises little (`ptq.recipe.equalization`),
and rounding where weights make little of the noise, or of a large network that has no bias to correct.

A step is a generator of trials. `Bench.run` is the one loop that solves and judges them; the step sees in `best`
whether its last trial was kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from amct_onnx.files.onnx_file import model_bytes
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import as_layer
from amct_onnx.graph.passes.equalize import ChannelGroup, channel_groups
from amct_onnx.measure.output_judge import Scores, gain
from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.numerics.channel_factors import has_outliers, smooth_factors
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.ptq.recipe.bench import Bench, Candidate, Trial, Trials
from amct_onnx.ptq.recipe.equalization import group_factors, promised_gain
from amct_onnx.ptq.recipe.placement import InFloat, first_layers, last_layers
from amct_onnx.ptq.recipe.ranges import cheaper_ranges
from amct_onnx.ptq.recipe.rounding import Method, grid_arrays, grids_of_arrays, round_weights, with_rounded_weights
from amct_onnx.ptq.recipe.scores import extremes_near
from amct_onnx.targets.calibration import Calibration
from amct_onnx.values.findings import Tuning
from amct_onnx.words import given, named

# Of the shared models, equalization helped where it promised 3.2 dB or more, and not where it was 1.8 or less.
_PROMISE = 2.5
_LEAST_SHARE = 0.05  # of the noise, which weights make: without it, a quarter of a decibel is gained
# dB of a first quantization: behind fewer, the calibrated model is measured as well, which may have some dB less.
_SURE = 30.0
_NEAR = (1, 3)  # layers in front of scores
_OBJECT = 0.2  # a score that stands for something
_LARGE = 1 << 26  # bytes of weights
_log = logging.getLogger("amct_onnx.Quantize")
_WIDER = 0.25  # octaves, the mean over ranges: those of all data may cost what a first quantization had
_SHARES = (1.0, 0.5, 0.2)  # of the ranges that were found: few large gains may do more good than many small ones

Spans = Mapping[tuple[str, ...], tuple[float, float]]


class Recipe:
    """The steps for one model, target and request, on a `Bench`, which has what was tried and found."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self._plan = bench, bench.plan
        self._reached: Scores | None = None  # of a first quantization on which all was tried
        self._ranges: Spans = {}  # of its tensors
        self._measures = False  # what the calibration with all data makes of that

    def prepare(self) -> tuple[FusedModel, Tuning]:
        """The model with channels equalized and outlier channels smoothed as far as that helps a first quantization,
        and what was found for it otherwise, as layers in float, or rounded weights; from the samples alone."""
        bench = self.bench
        bench.run("calibration with the calmest samples", self._calm())
        bench.run("first and last layers in float", self._place())
        bench.run("equalization", self._equalize())
        bench.run("smoothing of outlier channels", self._smooth())
        if bench.best is not None and not self._plan.ranges:
            bench.run("rounding", self._round())
        self._reached = bench.scores()
        if bench.best is not None and self._reached is not None:
            self._measures = self._measures or self._reached.decibels < _SURE
            self._ranges = bench.best.lowered.spans()
        return bench.found(), bench.let_go()

    @property
    def asks_later_data(self) -> bool:
        """Whether `tune` has use for samples behind the first ones."""
        return bool(self._ranges)

    def tune(self, calibrated: Candidate, later: Sequence[Feed] = ()) -> Candidate:
        """The calibrated model with those of the later steps that help. later: samples behind the first ones."""
        bench = self.bench
        tried, bench.best, bench.is_first = self._reached is not None, calibrated, False
        if self._measures or _wider(calibrated.lowered.spans(), self._ranges) > _WIDER:
            bench.run("calibration with all data", self._measure(later))
        bench.run("usual ranges", self._find_otherwise())
        bench.run("extremes of scores", self._widen())
        if not tried or self._plan.ranges:
            bench.run("ranges by what they cost the outputs", self._choose_ranges())
            bench.run("rounding", self._round())
        return bench.best

    def _calm(self) -> Trials:
        bench, look = self.bench, self.bench.look
        calm = None if look is None else look.calmest
        if calm is None or bench.judged(first := bench.first()).decibels >= _SURE:
            return
        yield Trial(name="calibration with the calmest samples", make=lambda _: bench.quick(bench.source, calm))
        if bench.best is not first:
            bench.look, self._measures = calm, True

    def _place(self) -> Trials:
        if self.bench.target.prices is None or self.bench.request.full_int8:
            return
        start, model = self.bench.first(), self.bench.source.model
        for chosen in first_layers(model, start.lowered):
            if not set(chosen.layers) <= self.bench.first().calibration.tuning.in_float.keys():
                yield Trial(name=chosen.name, make=partial(_placed, chosen))
        for chosen in last_layers(model, self.bench.first().lowered):
            yield Trial(name=chosen.name, make=partial(_placed, chosen))

    def _equalize(self) -> Trials:
        start = self.bench.source
        groups = channel_groups(start.model) if self._plan.strengths else ()
        if not groups:
            return
        if not self._plan.thorough and model_bytes(start.model) > _LARGE:
            first = self.bench.judged(self.bench.first()).decibels
            if first > _SURE:
                reason = f"of a large network; {given('effort', 'best')} tries it where so little is to be gained"
                yield Trial(name="equalization of channels", reason=reason, measured=True)
                return
        maxima = self.bench.maxima(start, {name for group in groups for name in group.measured}, 1)
        placed = () if self.bench.best is None else self.bench.best.calibration.tuning.in_float
        tries, left_out = [], {}
        for name, chosen, strength in self._equalizations(groups):
            factors = group_factors(chosen, maxima, strength)
            promise = promised_gain(start.model, chosen, maxima, factors, placed)
            if self._plan.thorough or promise >= _PROMISE:
                tries.append((name, factors))
            elif factors:
                left_out[name] = f"it promises {promise:.1f} dB, and less than {_PROMISE} seldom holds"
        yield from self._divide(start, tries, until_kept=not self._plan.thorough)
        if self.bench.found() is start:
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
        start = self.bench.found()
        wanted = self.bench.target.smoothable(start, self.bench.request) if self._plan.smooth else ()
        maxima = self.bench.maxima(start, wanted, -1)
        found = {name: maxima[name] for name in wanted if name in maxima and has_outliers(maxima[name])}
        tries = []
        for strength in self._plan.smooth:
            factors = {name: smooth_factors(magnitudes, strength) for name, magnitudes in found.items()}
            tries.append((f"outlier channels smoothed, strength {strength}", factors))
        yield from self._divide(start, tries, until_kept=False)  # how strong it is decides what it brings

    def _divide(
        self, start: FusedModel, tries: Iterable[tuple[str, Mapping[str, Floats]]], *, until_kept: bool
    ) -> Trials:
        """Trials of `start` with its channels divided by factors: all, or up to the first that helps."""

        def divided(factors: Mapping[str, Floats], _: Candidate) -> Calibration:
            return self.bench.quick(start.divided(factors))

        for name, factors in tries:
            if factors:
                yield Trial(name=name, make=partial(divided, factors))
                if until_kept and self.bench.found() is not start:
                    return

    def _find_otherwise(self) -> Trials:
        start, solver = self.bench.best, self.bench.target.usual
        if start is None or solver is None or self.bench.request.algorithm is not None:
            return
        made = replace(start.calibration, tuning=replace(start.calibration.tuning, ranges={}, algorithm=solver))
        yield Trial(name=f"ranges by {type(solver).__name__.lower()}", make=partial(_given, made))

    def _widen(self) -> Trials:
        start, judge = self.bench.best, self.bench.judge
        if start is None or judge is None or not self._plan.samples:
            return
        model, dense = start.calibration.source.model, judge.dense_scores()
        if dense and judge.highest(dense) < _OBJECT:
            _log.warning(
                "No score of the network is above %.1f for the samples that judge: calibrate with samples that have "
                "something to find.",
                _OBJECT,
            )
        for layers in _NEAR if dense else ():
            ranges = extremes_near(model, [judge.parts[number] for number in dense], start.lowered, layers)
            if ranges:
                tuning = replace(start.calibration.tuning, ranges={**start.calibration.tuning.ranges, **ranges})
                made = replace(start.calibration, tuning=tuning)
                name = f"extremes for {len(ranges)} tensors in front of scores"
                yield Trial(name=name, make=partial(_given, made), outputs=dense)

    def _choose_ranges(self) -> Trials:
        start = self.bench.best
        if start is None or not self._plan.ranges:
            return
        model, choices = start.calibration.source.model, start.lowered.range_choices()
        found = cheaper_ranges(model, choices, self.bench.feeds(self._plan.ranges), self.bench.progress)

        def narrowed(count: int, _: Candidate) -> Calibration:
            ranges = {**start.calibration.tuning.ranges, **dict(found[:count])}
            tuning = replace(start.calibration.tuning, ranges=ranges)
            return replace(start.calibration, tuning=tuning)

        for count in dict.fromkeys(round(share * len(found)) for share in _SHARES):
            if count:
                name = f"ranges of {count} tensors by what they cost the outputs"
                yield Trial(name=name, make=partial(narrowed, count))

    def _round(self) -> Trials:
        start = self.bench.best
        if start is None or not self._plan.rounding:
            return
        if self.bench.request.reduce_range:
            yield Trial(name="rounding", reason=f"{named('reduce_range')} chooses the integers of weights")
            return
        grids, biased = start.lowered.rows, _with_bias(start, adds_bias=self.bench.target.adds_bias)
        if grids and not self._plan.thorough:
            if not biased and model_bytes(start.calibration.source.model) > _LARGE:
                reason = f"of a large network without a bias to correct; {given('effort', 'best')} tries it"
                yield Trial(name="rounding", reason=reason)
                return
            if (share := self._weights_share(start)) < _LEAST_SHARE:
                yield Trial(name="rounding", reason=f"weights make {share:.0%} of the noise", measured=True)
                return
        for method in self._plan.rounding if grids else ():
            tries = [(f"rounding by {method}, biases corrected", biased)] if biased else []
            if self._plan.thorough or not biased:
                tries.append((f"rounding by {method}", frozenset()))
            before = self.bench.best
            for name, corrected in tries:
                if self.bench.best is before:
                    yield Trial(name=name, make=partial(self._rounded, method, corrected))

    def _weights_share(self, start: Candidate) -> float:
        """What nearest weights do to the outputs, as a share of the noise: all that rounding can take away."""
        return self.bench.share_of(with_rounded_weights(start.calibration.source.model, start.lowered.rows), start)

    def _rounded(self, method: Method, corrected: frozenset[str], start: Candidate) -> Calibration:
        """`start` with weights rounded by `method`, and with these layers' biases corrected."""
        params = start.lowered.rows
        rounded = partial(
            round_weights,
            start.calibration.source.model,
            list(params),
            self._feeds(),
            params,
            method=method,
            corrected=corrected,
            progress=self.bench.progress,
            engine=self.bench.engine,
        )
        weights = grids_of_arrays(self.bench.recalled("weights", lambda: grid_arrays(rounded())), params)
        return replace(start.calibration, tuning=replace(start.calibration.tuning, weights=weights))

    def _feeds(self) -> list[Feed]:
        """Twice the samples of a first quantization: a few thousand positions of a layer show what it reads."""
        return self.bench.feeds(2 * self._plan.quick)

    def _measure(self, later: Sequence[Feed]) -> Trials:
        start, now = self.bench.best, self.bench.scores()
        if start is None or now is None or self._reached is None:
            return
        self.bench.note("calibration with all data", self._reached, now, kept=True)
        better, error = gain(now, self._reached)
        if self._ranges and better > error:  # rare values cost all others, or the first samples are not like the rest
            made = replace(start.calibration, tuning=replace(start.calibration.tuning, ranges=self._ranges))
            yield Trial(name="ranges of the first samples", make=partial(_given, made), also=later)


def _wider(spans: Spans, others: Spans) -> float:
    """By how many octaves ranges are wider than others of the same tensors, the mean over those."""
    pairs = [(span, others[key]) for key, span in spans.items() if key in others]
    found = [np.log2((one[1] - one[0]) / (two[1] - two[0])) for one, two in pairs]
    return float(np.mean(found)) if found else 0.0


def _placed(chosen: InFloat, best: Candidate) -> Calibration:
    """`best` with more layers in float."""
    tuning = best.calibration.tuning
    in_float = {**tuning.in_float, **dict.fromkeys(chosen.layers, chosen.reason)}
    return replace(best.calibration, tuning=replace(tuning, in_float=in_float))


def _given(made: Calibration, _: Candidate) -> Calibration:
    return made


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
