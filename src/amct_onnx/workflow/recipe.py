"""The recipe of `quantize`: a few steps against the error of quantization, each kept only where it helps.

The first samples of the data are kept. Two of three serve to fit, the others judge: a step is kept if it raises the
signal-to-noise ratio of the outputs on samples that it has not seen. `PLANS` says what each effort tries.

1. Equalization of channels (`graph.passes.equalize`), before the calibration, so that statistics are of the equalized
   network: of all tensors, or only of those that nothing clips, whose function stays. Then SmoothQuant of outlier
   channels in front of matrix products (`graph.passes.smooth`), for Q/DQ targets.
2. "best" only: ranges of activations that cost the outputs less (`workflow.ranges`).
3. Rounding of weights by GPTQ from the moments of their inputs, with biases that make up for what it does to the mean
   of a layer's outputs, or without. "best" tries AdaRound as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from amct_onnx.core.balance import equalizing_factors, smooth_factors
from amct_onnx.core.qparams import QParams
from amct_onnx.core.sensitivity import decibel
from amct_onnx.core.statistics import Statistics
from amct_onnx.core.tuning import Effort, Step, WeightGrid
from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.graph.digest import model_digest
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.graph.passes.equalize import ChannelGroup, channel_groups
from amct_onnx.runtime.channels import channel_maxima
from amct_onnx.runtime.collect import collect_statistics
from amct_onnx.runtime.judge import Judge
from amct_onnx.targets.qdq_rules import QDQ_TARGETS
from amct_onnx.workflow.choice import Choice
from amct_onnx.workflow.progress import Progress
from amct_onnx.workflow.qdq_planner import plan_qdq
from amct_onnx.workflow.quantized import ASCEND_NAME, QuantizedModel
from amct_onnx.workflow.ranges import cheaper_ranges
from amct_onnx.workflow.second_order import Method, round_weights
from amct_onnx.workflow.smoothing import outlier_inputs
from amct_onnx.workflow.source import FloatSource

Feed = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]

_LEAST_SAMPLES = 4  # two to fit, two to judge
_SMALL, _MORE = 1 << 16, 4  # samples of fewer bytes are cheap, and say less: so many times as many are kept
# Rare outliers decide the factors of SmoothQuant: on a sentence encoder, those of 16 samples reach 21 dB, of 104 25.
_CHANNEL_SAMPLES = 128
_REASONS = (CalibrationError, DataError, ModelError)  # why a step cannot be tried; quantization itself may go on
_SHARES = (1.0, 0.5, 0.2)  # of the ranges that were found: few large gains may do more good than many small ones


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an effort tries.

    samples: so many are kept, of at most `memory` bytes together, and one of `judges` judges. quick: of those to fit,
    so many are for a first quantization. strengths: of equalization without and with a Clip. smooth: strengths of
    SmoothQuant. rounding: methods. ranges: on so many samples it is measured what ranges cost.
    """

    samples: int
    memory: int
    judges: int
    quick: int
    strengths: tuple[tuple[float, float], ...]
    smooth: tuple[float, ...]
    rounding: tuple[Method, ...]
    ranges: int

    def for_samples_of(self, size: int) -> Plan:
        """The plan for samples of so many bytes: more of them if they are small."""
        if size > _SMALL:
            return self
        return replace(self, samples=self.samples * _MORE, quick=self.quick * _MORE, ranges=self.ranges * _MORE)


PLANS: Mapping[Effort, Plan] = {
    "fast": Plan(samples=0, memory=0, judges=0, quick=0, strengths=(), smooth=(), rounding=(), ranges=0),
    "default": Plan(
        samples=24,
        memory=24 << 20,
        judges=3,
        quick=8,
        strengths=((0.5, 0.25),),
        smooth=(0.7,),
        rounding=("gptq",),
        ranges=0,
    ),
    "best": Plan(
        samples=96,
        memory=96 << 20,
        judges=3,
        quick=32,
        strengths=((0.5, 0.25), (0.7, 0.25), (0.7, 0.4)),
        smooth=(0.5, 0.7, 0.85),
        rounding=("gptq", "adaround"),
        ranges=24,
    ),
}


class Front:
    """The first samples of `feeds`, which iterating gives before the others.

    A sample is a feed of one row where the model leaves the batch open, else a whole feed. `plan` is that for their
    size. `more`: the feeds behind the samples, within the same memory, which show the magnitudes of channels.
    """

    def __init__(self, feeds: Iterator[Feed], inputs: Sequence[ModelInput], plan: Plan) -> None:
        rows = all(value.shape and value.shape[0] is None for value in inputs)
        self.samples: list[Feed] = []
        self.plan = plan
        read: list[Feed] = []
        size = 0
        while len(self.samples) < self.plan.samples and size < plan.memory and (feed := next(feeds, None)) is not None:
            count = min(len(array) for array in feed.values()) if rows else 1
            if not read:
                self.plan = plan.for_samples_of(sum(array.nbytes for array in feed.values()) // max(1, count))
            read.append(feed)
            for index in range(min(count, self.plan.samples - len(self.samples))):
                kept = {name: np.array(array[index : index + 1] if rows else array) for name, array in feed.items()}
                self.samples.append(kept)
                size += sum(array.nbytes for array in kept.values())
        self.more: list[Feed] = []
        count = len(self.samples)
        while self.samples and count < _CHANNEL_SAMPLES and size < plan.memory and (feed := next(feeds, None)):
            self.more.append(feed)
            count += max((len(array) for array in feed.values() if array.ndim), default=1) if rows else 1
            size += sum(array.nbytes for array in feed.values())
        self._feeds = chain(read, self.more, feeds)

    def __iter__(self) -> Iterator[Feed]:
        return self._feeds


@dataclass
class Recipe:
    """The steps for one model, target and choice; `steps` has what was tried so far."""

    source: FloatSource
    target: str
    choice: Choice
    effort: Effort
    plan: Plan
    samples: Sequence[Feed]
    more: Sequence[Feed]
    progress: Progress

    def __post_init__(self) -> None:
        self.steps: list[Step] = []
        self.judges = list(self.samples[:: self.plan.judges]) if self.plan.judges else []
        self.fit = (
            [sample for index, sample in enumerate(self.samples) if index % self.plan.judges] if self.judges else []
        )
        self.known: dict[bytes, QParams] = {}

    @property
    def tries(self) -> bool:
        """Whether there is anything to try, and samples to try it on."""
        return len(self.samples) >= _LEAST_SAMPLES and self.choice.is_ours

    def equalize(self) -> FloatSource:
        """The model with channels equalized and outlier channels smoothed as far as that helps a first quantization,
        from the samples alone."""
        try:
            return self._smooth(self._equalize())
        except _REASONS as reason:  # samples that do not run are the calibration's to tell of
            self.steps.append(Step(name="equalization", before=math.inf, after=None, kept=False, reason=str(reason)))
            return self.source

    def _smooth(self, start: FloatSource) -> FloatSource:
        if not self.tries or not self.plan.smooth or self.target == ASCEND_NAME:
            return start
        plan = plan_qdq(start.fused, QDQ_TARGETS[self.target], off=self.choice.off())
        found = outlier_inputs(start.fused, plan, [*self.fit, *self.more])
        best, least = start, self._ratio(self._quick(start)) if found else 0.0
        for strength in self.plan.smooth if found else ():
            factors = {name: smooth_factors(magnitudes, strength) for name, magnitudes in found.items()}
            candidate = start.equalized(factors)
            ratio = self._ratio(self._quick(candidate))
            self._note(f"outlier channels smoothed, strength {strength}", least, ratio)
            if ratio < least:
                best, least = candidate, ratio
        return best

    def _equalize(self) -> FloatSource:
        groups = channel_groups(self.source.fused) if self.tries else ()
        if not groups or not self.plan.strengths:
            return self.source
        maxima = channel_maxima(self.source.fused, [n for group in groups for n in group.measured], self.fit)
        best, least = self.source, self._ratio(self._quick(self.source))
        for name, chosen, strength in self._equalizations(groups):
            factors = _factors(chosen, maxima, strength)
            if not factors:
                continue
            candidate = self.source.equalized(factors)
            ratio = self._ratio(self._quick(candidate))
            self._note(f"equalization of {name}", least, ratio)
            if ratio < least:
                best, least = candidate, ratio
                if self.effort == "default":
                    break
        return best

    def _equalizations(
        self, groups: Sequence[ChannelGroup]
    ) -> Iterator[tuple[str, list[ChannelGroup], tuple[float, float]]]:
        """What is tried, as words, groups and the two strengths; the most promising first."""
        free = [group for group in groups if group.ceiling == np.inf]
        if len(free) < len(groups):
            for strength in self.plan.strengths:
                yield f"channels, strengths {strength[0]} and {strength[1]} behind a Clip", list(groups), strength
        for power in dict.fromkeys(strength[0] for strength in self.plan.strengths) if free else ():
            yield f"channels that nothing clips, strength {power}", free, (power, 0.0)

    def tune(self, result: QuantizedModel) -> QuantizedModel:
        """`result` with those of the later steps that help."""
        if self.tries and (self.plan.rounding or self.plan.ranges):
            try:
                result = self._tuned(result)
            except _REASONS as reason:
                self.steps.append(Step(name="rounding", before=math.inf, after=None, kept=False, reason=str(reason)))
        return replace(result, steps=tuple(self.steps))

    def _tuned(self, result: QuantizedModel) -> QuantizedModel:
        least = self._ratio(result)
        if self.plan.ranges and self.target != ASCEND_NAME:
            result, least = self._choose_ranges(result, least)
        if self.choice.reduce_range:
            why = "reduce_range chooses the integers of weights"
            self.steps.append(Step(name="rounding", before=decibel(least), after=None, kept=False, reason=why))
            return result
        return self._round(result, least)[0]

    def _round(self, result: QuantizedModel, least: float) -> tuple[QuantizedModel, float]:
        layers = list(result.weights)
        params = {layer: result.weight_params(layer) for layer in layers}
        biased = _with_bias(result)
        for method in self.plan.rounding if layers else ():
            for corrected in (biased, frozenset[str]()) if biased else (biased,):
                name = f"rounding by {method}{', biases corrected' if corrected else ''}"
                try:
                    found = round_weights(
                        result.source.fused,
                        layers,
                        self.fit,
                        params,
                        method=method,
                        corrected=corrected,
                        progress=self.progress,
                    )
                except CalibrationError as error:
                    self.steps.append(Step(name=name, before=decibel(least), after=None, kept=False, reason=str(error)))
                    break
                weights = {
                    layer: WeightGrid(
                        params=params[layer],
                        integers=integers,
                        correction=found.corrections[layer] if layer in corrected else None,
                    )
                    for layer, integers in found.integers.items()
                }
                candidate = replace(result, tuning=replace(result.tuning, weights=weights))
                ratio = self._ratio(candidate)
                self._note(name, least, ratio)
                if ratio < least:
                    result, least = candidate, ratio
                    break
        return result, least

    def _choose_ranges(self, result: QuantizedModel, least: float) -> tuple[QuantizedModel, float]:
        found = cheaper_ranges(result, self.fit[: self.plan.ranges], self.progress)
        start = result
        for share in _SHARES:
            count = round(share * len(found))
            if not count:
                continue
            candidate = replace(start, tuning=replace(start.tuning, ranges=dict(found[:count])))
            ratio = self._ratio(candidate)
            self._note(f"ranges of {count} tensors by what they cost the outputs", least, ratio)
            if ratio < least:
                result, least = candidate, ratio
        return result, least

    def _note(self, name: str, before: float, after: float) -> None:
        kept = after < before
        self.steps.append(Step(name=name, before=decibel(before), after=decibel(after), kept=kept))

    def _quick(self, source: FloatSource) -> QuantizedModel:
        """A quantized model of `source` from the samples to fit."""
        tensors = collect_statistics(source.fused, source.observed(), self.fit[: self.plan.quick])
        digest = model_digest(source.fused)
        statistics = Statistics(
            tensors=tensors, samples=len(self.fit[: self.plan.quick]), digest=digest, factors=source.factors
        )
        return QuantizedModel(
            source=source, target=self.target, choice=self.choice, statistics=statistics, known=self.known
        )

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.source.fused, self.judges)

    def _ratio(self, result: QuantizedModel) -> float:
        """Noise over signal of the outputs for the samples that judge."""
        if result.target == ASCEND_NAME:
            return self._judge.noise_of_deployed(result.model())
        return self._judge.noise(result.lowered)


def _with_bias(result: QuantizedModel) -> frozenset[str]:
    """The quantized layers whose bias can make up for something; target ascend takes it as it is there."""
    found = []
    for node in result.source.fused.graph:
        if node.name in result.weights and node.op_type in ("Conv", "Gemm"):
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is not None or result.target != ASCEND_NAME:
                found.append(node.name or "")
    return frozenset(found)


def _factors(
    groups: Sequence[ChannelGroup], maxima: Mapping[str, Floats], strengths: tuple[float, float]
) -> dict[str, Floats]:
    """The factors of each group that has some."""
    found = {}
    for group in groups:
        magnitudes = [maxima[name] for name in group.measured if name in maxima]
        if magnitudes and all(magnitude.size == group.channels for magnitude in magnitudes):
            factors = equalizing_factors(magnitudes, strength=strengths[group.ceiling < np.inf], ceiling=group.ceiling)
            if (factors != 1).any():
                found[group.key] = factors
    return found
