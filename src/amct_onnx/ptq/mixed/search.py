"""Mixed precision by measurement: the layers that a target of accuracy needs in float, or with int16 activations.

Effects are measured once (`ptq.mixed.effects`); they order the layers by what each buys for its cost. Along that order
the accuracy rises, so bisection finds the first set of layers that is enough. Each set is lowered and evaluated as it
will run: the answer is proven by its own evaluation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from amct_onnx.errors import AmctError, ArgumentTypeError
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.arrays import Feed
from amct_onnx.progress import Progress
from amct_onnx.ptq.mixed.effects import Effects, measure
from amct_onnx.ptq.mixed.order import Part, Wish, cost, greedy_path
from amct_onnx.ptq.options import Evaluator
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.run.session import open_session
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.answers import to_number
from amct_onnx.values.mixed_precision import Evaluation, MixedPrecision
from amct_onnx.values.request import Request
from amct_onnx.values.sensitivity import decibel

MOST_EVALUATIONS = 10  # of lowered models; the float model is one more
# What a multiplication costs beyond int8, in those of int8: by the bytes of an activation.
_PRICES: Mapping[str, float] = {"float": 3.0, "int16": 1.0}
_log = logging.getLogger("amct_onnx.Search")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a lowered model is measured by, and the least that is asked for. `reference` is the float model's value."""

    measure: str
    evaluate: Evaluator
    reference: float
    required: float

    def is_met_by(self, value: float) -> bool:
        """Whether a value is enough; 82.8 - 0.1 is not 82.7 in floating point, and counts as it."""
        return value >= self.required or math.isclose(value, self.required, rel_tol=1e-9)

    @classmethod
    def of_evaluator(
        cls,
        evaluator: Evaluator,
        quantized: QuantizedModel,
        *,
        max_drop: float | None,
        target_accuracy: float | None,
    ) -> Goal:
        """A value of the user's own measure; the float model is evaluated for it. Raises ArgumentTypeError."""
        reference = _number(evaluator(open_session(quantized.calibration.source.source.model.clone())))
        required = target_accuracy if target_accuracy is not None else reference - (max_drop or 0.0)
        return cls(measure="evaluator", evaluate=evaluator, reference=reference, required=required)

    @classmethod
    def of_sqnr(cls, quantized: QuantizedModel, samples: Sequence[Feed], least: float) -> Goal:
        """The signal-to-noise ratio of the outputs for `samples`, in dB."""
        judge = OutputNoise(quantized.calibration.source.source.model.clone(), samples)

        def sqnr(candidate: Any) -> float:
            return decibel(judge.noise_of(candidate))

        return cls(measure="SQNR in dB", evaluate=sqnr, reference=math.inf, required=least)


def _number(value: Any) -> float:
    try:
        return to_number(value)
    except (TypeError, ValueError) as error:
        text = f"evaluator must return a number, higher is better; it returned {value!r:.200}"
        raise ArgumentTypeError(text) from error


def search_mixed(
    quantized: QuantizedModel,
    goal: Goal,
    samples: Sequence[Feed],
    progress: Progress,
) -> QuantizedModel:
    """`quantized` with as few and as cheap layers in more than int8 as `goal` allows.

    The result has the search in `precision`. Where the goal is missed it is the best model that was evaluated, and a
    warning is logged. `samples`: a few, for the effects of layers.
    """
    search = _Search(quantized, goal, progress)
    enough = search.try_wishes(frozenset(), 0.0)
    if not enough and any(decision.quantized for decision in quantized.decisions):
        try:
            effects = measure(quantized, samples, progress=progress)
        except AmctError as error:  # e.g. outputs that are empty for all samples
            _log.warning("Which layers are to blame could not be measured: %s", error)
        else:
            search.nodes = {unit.name: unit.nodes for unit in effects.units}
            search.bisect(*_path(quantized, effects))
    result = search.result()
    if result.precision is not None and not result.precision.met:
        _log.warning("%s", result.precision)
    return result


def _path(quantized: QuantizedModel, effects: Effects) -> tuple[list[frozenset[Wish]], dict[Wish, float]]:
    """The sets of wishes to choose from, each of which has all of the one before it; and the price of each wish."""
    wide = TARGETS[quantized.target].wide_layers(quantized.calibration)
    parts: list[Part] = []
    prices: dict[Wish, float] = {}
    for unit, operations, constants, tensors in zip(
        effects.units, effects.operations, effects.constants, effects.tensors, strict=True
    ):
        if unit.nodes:
            prices["float", unit.name] = _PRICES["float"] * operations
            parts.append(Part(noise=float(constants.mean()), cures=(frozenset([("float", unit.name)]),)))
        cures: list[frozenset[Wish]] = []
        if unit.holders:
            cures.append(frozenset(("float", holder) for holder in unit.holders))
        if unit.name in wide:
            prices["int16", unit.name] = _PRICES["int16"] * operations
            cures.append(frozenset([("int16", unit.name)]))
        parts.append(Part(noise=float(tensors.mean()), cures=tuple(cures)))
    return greedy_path(parts, prices)[1:], prices


@dataclass
class _Search:
    quantized: QuantizedModel
    goal: Goal
    progress: Progress
    nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    known: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def bisect(self, path: Sequence[frozenset[Wish]], prices: Mapping[Wish, float]) -> None:
        """Find the first set of the path that is enough, as far as the accuracy rises along it."""
        whole = cost(frozenset(wish for wish in prices if wish[0] == "float"), prices)
        low, high = -1, len(path)
        while high - low > 1 and len(self.evaluations) < MOST_EVALUATIONS:
            middle = (low + high) // 2
            if self.try_wishes(path[middle], cost(path[middle], prices) / max(whole, 1e-30)):
                high = middle
            else:
                low = middle

    def try_wishes(self, wishes: frozenset[Wish], share: float) -> bool:
        """Lower and evaluate the model with these wishes; whether it is good enough. All in float is."""
        model = self._model(wishes)
        if model is None:
            return True
        request = model.calibration.request
        key = (model.decisions, request.wide)
        if key not in self.known:
            value = _number(self.goal.evaluate(model.lowered.session()))
            self.known[key] = met = self.goal.is_met_by(value)
            self.requests.append(request)  # and not the model, which holds its weights
            self.evaluations.append(
                Evaluation(
                    float_layers=_lost(self.quantized, model),
                    wide_layers=request.wide,
                    value=value,
                    cost=share,
                    met=met,
                )
            )
            self.progress("evaluation", len(self.evaluations) / MOST_EVALUATIONS)
        return self.known[key]

    def _model(self, wishes: frozenset[Wish]) -> QuantizedModel | None:
        """The quantized model with these wishes, None where no layer is left in integers."""
        if not wishes:
            return self.quantized
        units = {unit for kind, unit in wishes if kind == "float"}
        off = [node for name, nodes in self.nodes.items() if name in units for node in nodes]
        wide = [name for name in self.nodes if ("int16", name) in wishes and name not in units]
        request = self.quantized.calibration.request
        layers = {decision.layer for decision in self.quantized.decisions if decision.quantized}
        if layers <= set(off):
            return None
        skipped = tuple(dict.fromkeys([*request.skip_layers, *off]))
        model = self._solved(replace(request, skip_layers=skipped, wide=tuple(wide)))
        return model if any(decision.quantized for decision in model.decisions) else None

    def result(self) -> QuantizedModel:
        """The cheapest model that is good enough, or the best one."""
        found = range(len(self.evaluations))
        good = [number for number in found if self.evaluations[number].met]
        if good:
            chosen = min(good, key=lambda number: (self.evaluations[number].cost, -self.evaluations[number].value))
        else:
            chosen = max(found, key=lambda number: self.evaluations[number].value)
        precision = MixedPrecision(
            measure=self.goal.measure,
            reference=self.goal.reference,
            required=self.goal.required,
            evaluations=tuple(self.evaluations),
            chosen=chosen,
        )
        return replace(self._solved(self.requests[chosen]), precision=precision)

    def _solved(self, request: Request) -> QuantizedModel:
        """The quantized model with another request, from the same calibration."""
        if request == self.quantized.calibration.request:
            return self.quantized
        return self.quantized.solved(replace(self.quantized.calibration, request=request))


def _lost(whole: QuantizedModel, model: QuantizedModel) -> tuple[str, ...]:
    """The nodes that `whole` quantizes and `model` does not."""
    kept = {decision.layer for decision in model.decisions if decision.quantized}
    return tuple(d.layer for d in whole.decisions if d.quantized and d.layer not in kept)
