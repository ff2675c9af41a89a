"""The recipe of `quantize`: a few steps against the error of quantization, each kept only where it helps.

The first samples of the data are kept. Two of three serve to fit, the others judge: a step is kept if it raises the
signal-to-noise ratio of the outputs on samples that it has not seen. `PLANS` says what each effort tries.

1. Equalization of channels (`graph.passes.equalize`), before the calibration, so that statistics are of the equalized
   network: of all tensors, or only of those that nothing clips, whose function stays. Then SmoothQuant of outlier
   channels in front of matrix products (`graph.passes.smooth`), for Q/DQ targets. They are tried on a first
   quantization, calibrated with some of the samples alone.
2. "best" only: ranges of activations that cost the outputs less (`ptq.recipe.ranges`).
3. Rounding of weights by GPTQ from the moments of their inputs, with biases that make up for what it does to the mean
   of a layer's outputs; "best" tries it without them, and AdaRound, as well. A first quantization serves to judge it,
   if there was one.

"default" leaves out what is dear and seldom pays: equalization that promises little (`ptq.recipe.equalization`), and
rounding where no bias can be corrected or weights make little of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import layer_of
from amct_onnx.graph.passes.equalize import ChannelGroup, channel_groups
from amct_onnx.measure.output_noise import Judge
from amct_onnx.numerics.channel_factors import smooth_factors
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.observe.channel_maxima import channel_maxima
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.progress import Progress
from amct_onnx.ptq.float_model import FloatSource
from amct_onnx.ptq.quantized_model import ASCEND_NAME, QuantizedModel
from amct_onnx.ptq.recipe.equalization import group_factors, promised_gain
from amct_onnx.ptq.recipe.first_samples import Front
from amct_onnx.ptq.recipe.ranges import cheaper_ranges
from amct_onnx.ptq.recipe.rounding import Method, round_weights, with_rounded_weights
from amct_onnx.ptq.recipe.smoothing import outlier_inputs
from amct_onnx.ptq.request import Choice
from amct_onnx.values.findings import Step, Tuning, WeightGrid
from amct_onnx.values.qdq_tables import QDQ_TARGETS
from amct_onnx.values.sensitivity import decibel

Feed = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]
T = TypeVar("T")
# What it is called, and what it makes of the best so far.
Try = tuple[str, Callable[[QuantizedModel], QuantizedModel]]

_LEAST_SAMPLES = 4  # two to fit, two to judge
_REASONS = (CalibrationError, DataError, ModelError)  # why a step cannot be tried; quantization itself may go on
# Of the shared models, equalization helped where it promised 3.2 dB or more, and not where it was 1.8 or less.
_PROMISE = 2.5
_LEAST_SHARE = 0.1  # of the noise, which weights make: without it, half a decibel is gained
# dB of a first quantization: behind fewer, the calibrated model is measured as well, which may have some dB less.
_SURE = 20.0
_SHARES = (1.0, 0.5, 0.2)  # of the ranges that were found: few large gains may do more good than many small ones


@dataclass
class Recipe:
    """The steps for one model, target and choice; `steps` has what was tried so far."""

    source: FloatSource
    target: str
    choice: Choice
    front: Front
    progress: Progress

    def __post_init__(self) -> None:
        self.steps: list[Step] = []
        self.plan, samples = self.front.plan, self.front.samples
        self._judges = samples[:: self.plan.judges] if self.plan.judges else []
        self._fit = [sample for index, sample in enumerate(samples) if index % self.plan.judges] if self._judges else []
        self.known: dict[bytes, QParams] = {}
        self._measured: tuple[QuantizedModel, float] | None = None  # the best of a step, and its noise over signal
        self._first: QuantizedModel | None = None  # a first quantization, of the best model so far
        self._reached: float | None = None  # noise over signal of a first quantization on which all was tried

    @property
    def tries(self) -> bool:
        """Whether there is anything to try, and samples to try it on."""
        return len(self.front.samples) >= _LEAST_SAMPLES and self.choice.is_ours

    def _feeds(self, most: int | None = None) -> list[dict[str, npt.NDArray[Any]]]:
        """The samples to fit, or the first of them, in batches."""
        _ = self._judge  # which tells whether the model takes batches
        return self.front.batches(self._fit[:most])

    def prepare(self) -> tuple[FloatSource, Tuning]:
        """The model with channels equalized and outlier channels smoothed as far as that helps a first quantization,
        and rounded weights if that could be judged by it as well; from the samples alone."""
        source = self._attempt("equalization", self._equalize, self.source)
        source = self._attempt("smoothing of outlier channels", self._smooth, source)
        tuning = Tuning()
        if self._first is not None and not self.plan.ranges:
            tuning = self._attempt("rounding", self._round, self._first).tuning
            self._reached = self._measured[1] if self._measured is not None else None
        self._first = self._measured = None  # memory for the calibration
        return source, tuning

    def tune(self, result: QuantizedModel) -> QuantizedModel:
        """`result` with those of the later steps that help."""
        if self._reached is None:
            result = self._attempt("ranges by what they cost the outputs", self._choose_ranges, result)
            result = self._attempt("rounding", self._round, result)
        elif decibel(self._reached) < _SURE:
            result = self._attempt("calibration with all data", partial(self._measure, self._reached), result)
        return result.with_steps(self.steps)

    def _measure(self, before: float, result: QuantizedModel) -> QuantizedModel:
        step = Step(
            name="calibration with all data", before=decibel(before), after=decibel(self._ratio(result)), kept=True
        )
        self.steps.append(step)
        return result

    def _attempt(self, name: str, step: Callable[[T], T], start: T) -> T:
        """What a step makes of `start`; `start` itself, with the reason in `steps`, where the step cannot be tried.

        Samples that do not run are the calibration's to tell of.
        """
        try:
            return step(start) if self.tries else start
        except _REASONS as reason:
            self._leave_out(name, str(reason))
            return start

    def _leave_out(self, name: str, reason: str, measured: QuantizedModel | None = None) -> None:
        """Tell why a step is not tried; `measured`: the best so far, if that is known."""
        before = math.inf if measured is None else decibel(self._noise_of(measured))
        self.steps.append(
            Step(name=name, before=before, after=None, kept=False, reason=reason, first=self._first is not None)
        )

    def _noise_of(self, best: QuantizedModel) -> float:
        """Noise over signal of the best so far, measured once."""
        if self._measured is None or self._measured[0] is not best:
            self._measured = (best, self._ratio(best))
        return self._measured[1]

    def _best_of(self, start: QuantizedModel, tries: Iterable[Try], *, thorough: bool) -> QuantizedModel:
        """The best of `start` and what `tries` make of the best so far; the first that helps, unless `thorough`."""
        best = start
        for name, make in tries:

            def improve(so_far: QuantizedModel, try_: Try = (name, make)) -> QuantizedModel:
                name, make = try_
                before, candidate = self._noise_of(so_far), make(so_far)
                after = self._ratio(candidate)
                kept = after < before
                step = Step(
                    name=name,
                    before=decibel(before),
                    after=decibel(after),
                    kept=kept,
                    first=self._first is not None,
                )
                self.steps.append(step)
                self._measured = (candidate, after) if kept else self._measured
                return candidate if kept else so_far

            found = self._attempt(name, improve, best)
            if found is not best and not thorough:
                return found
            best = found
        return best

    def _equalize(self, start: FloatSource) -> FloatSource:
        groups = channel_groups(start.fused) if self.plan.strengths else ()
        if not groups:
            return start
        maxima = channel_maxima(start.fused, [name for group in groups for name in group.measured], self._feeds())
        tries, left_out = [], {}
        for name, chosen, strength in self._equalizations(groups):
            factors = group_factors(chosen, maxima, strength)
            promise = promised_gain(start.fused, chosen, maxima, factors)
            if self.plan.thorough or promise >= _PROMISE:
                tries.append((name, factors))
            elif factors:
                left_out[name] = f"it promises {promise:.1f} dB, and less than {_PROMISE} seldom holds"
        found = self._divide(start, tries)
        for name, reason in left_out.items() if found is start else ():
            self._leave_out(name, reason)
        return found

    def _equalizations(
        self, groups: Sequence[ChannelGroup]
    ) -> Iterator[tuple[str, list[ChannelGroup], tuple[float, float]]]:
        """What is tried, as words, groups and the two strengths; the most promising first."""
        free = [group for group in groups if group.ceiling == np.inf]
        if len(free) < len(groups):
            for strength in self.plan.strengths:
                words = f"strengths {strength[0]} and {strength[1]} behind a Clip"
                yield f"equalization of channels, {words}", list(groups), strength
        for power in dict.fromkeys(strength[0] for strength in self.plan.strengths) if free else ():
            yield f"equalization of channels that nothing clips, strength {power}", free, (power, 0.0)

    def _smooth(self, start: FloatSource) -> FloatSource:
        if not self.plan.smooth or self.target == ASCEND_NAME:
            return start
        plan = plan_qdq(start.fused, QDQ_TARGETS[self.target], off=self.choice.off())
        found = outlier_inputs(start.fused, plan, [*self._feeds(), *self.front.more])
        tries = []
        for strength in self.plan.smooth:
            factors = {name: smooth_factors(magnitudes, strength) for name, magnitudes in found.items()}
            tries.append((f"outlier channels smoothed, strength {strength}", factors))
        return self._divide(start, tries)

    def _divide(self, start: FloatSource, tries: Iterable[tuple[str, Mapping[str, Floats]]]) -> FloatSource:
        """`start` with the factors under which a first quantization does best, or as it is."""

        def divided(factors: Mapping[str, Floats], _: QuantizedModel) -> QuantizedModel:
            return self._quick(start.equalized(factors))

        made = [(name, partial(divided, factors)) for name, factors in tries if factors]
        if not made:
            return start
        self._first = self._first or self._quick(start)
        self._first = self._best_of(self._first, made, thorough=self.plan.thorough)
        return self._first.source

    def _choose_ranges(self, start: QuantizedModel) -> QuantizedModel:
        if not self.plan.ranges or self.target == ASCEND_NAME:
            return start
        found = cheaper_ranges(start, self._feeds(self.plan.ranges), self.progress)

        def narrowed(count: int, _: QuantizedModel) -> QuantizedModel:
            return replace(start, tuning=replace(start.tuning, ranges=dict(found[:count])))

        counts = dict.fromkeys(round(share * len(found)) for share in _SHARES)
        tries = [(f"ranges of {n} tensors by what they cost the outputs", partial(narrowed, n)) for n in counts if n]
        return self._best_of(start, tries, thorough=True)

    def _round(self, start: QuantizedModel) -> QuantizedModel:
        if self.choice.reduce_range and self.plan.rounding:
            self._leave_out("rounding", "reduce_range chooses the integers of weights")
            return start
        best, biased = start, _with_bias(start) if self.plan.rounding else frozenset[str]()
        if best.weights and biased and not self.plan.thorough and (share := self._weights_share(start)) < _LEAST_SHARE:
            self._leave_out("rounding", f"weights make {share:.0%} of the noise", start)
            return start
        for method in self.plan.rounding if start.weights else ():
            tries: list[Try] = []
            if biased:
                tries.append((f"rounding by {method}, biases corrected", partial(self._rounded, method, biased)))
            if self.plan.thorough:
                tries.append((f"rounding by {method}", partial(self._rounded, method, frozenset())))
            if not tries:
                self._leave_out(f"rounding by {method}", 'no layer has a bias to correct; effort="best" tries it')
            best = self._best_of(best, tries, thorough=False)
        return best

    def _weights_share(self, start: QuantizedModel) -> float:
        """What nearest weights do to the outputs, as a share of the noise: all that rounding can take away."""
        grids = {layer: start.weight_params(layer) for layer in start.weights}
        alone = self._judge.noise(with_rounded_weights(start.source.fused, grids))
        together = self._noise_of(start)
        return alone / together if together > 0 else 0.0

    def _rounded(self, method: Method, corrected: frozenset[str], start: QuantizedModel) -> QuantizedModel:
        """`start` with weights rounded by `method`, and with these layers' biases corrected."""
        params = {layer: start.weight_params(layer) for layer in start.weights}
        found = round_weights(
            start.source.fused,
            list(params),
            self._feeds(),
            params,
            method=method,
            corrected=corrected,
            progress=self.progress,
        )
        weights = {
            layer: WeightGrid(
                params=params[layer],
                integers=integers,
                correction=found.corrections[layer] if layer in corrected else None,
            )
            for layer, integers in found.integers.items()
        }
        return replace(start, tuning=replace(start.tuning, weights=weights))

    def _quick(self, source: FloatSource) -> QuantizedModel:
        """A quantized model of `source` from the samples to fit."""
        statistics = Statistics(
            tensors=collect_statistics(source.fused, source.observed, self._feeds(self.plan.quick)),
            samples=len(self._fit[: self.plan.quick]),
            digest="",  # nobody gets to see them
            factors=source.factors,
        )
        return QuantizedModel(
            source=source, target=self.target, choice=self.choice, statistics=statistics, known=self.known
        )

    @cached_property
    def _judge(self) -> Judge:
        try:
            batches = self.front.batches(self._judges)
            apart = self._judges[: self.front.count(batches[0])]
            return Judge(self.source.fused, batches, apart=apart if len(apart) > 1 else ())
        except DataError:
            self.front.rows = 1  # the network may take one sample, or mix those of a batch, though the batch is open
            return Judge(self.source.fused, self._judges)

    def _ratio(self, result: QuantizedModel) -> float:
        """Noise over signal of the outputs for the samples that judge."""
        if result.target == ASCEND_NAME:
            return self._judge.noise_of_deployed(result.model())
        return self._judge.noise(result.lowered)


def _with_bias(result: QuantizedModel) -> frozenset[str]:
    """The quantized layers whose bias can make up for something: one number for each output channel, or none yet, of
    which target ascend makes none."""
    found, weights = [], result.weights
    for node in result.source.fused.graph:
        if node.name not in weights or node.op_type not in ("Conv", "Gemm"):
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = constant_tensor(bias)
        if (bias is None and result.target != ASCEND_NAME) or (
            tensor is not None and tensor.size == layer_of(node).output_channels
        ):
            found.append(node.name or "")
    return frozenset(found)
