"""What accuracy a user asks of `quantize`, checked, and the search for a model that has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import onnx_ir as ir

from amct_onnx.data.data_source import DataSource
from amct_onnx.data.keep_samples import SampleKeeper
from amct_onnx.engine.engine import Engine
from amct_onnx.errors import ArgumentError, ArgumentTypeError
from amct_onnx.files.state_folder import State
from amct_onnx.progress import Progress
from amct_onnx.ptq.mixed.goals import EvaluatorGoal, Goal, SqnrGoal
from amct_onnx.ptq.mixed.search import search_mixed
from amct_onnx.ptq.mixed.slowdown import spend_time
from amct_onnx.ptq.options import Evaluator
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.words import either, given, named

_SEARCHED = 64  # samples that a search may run, and as many that check what it finds; see SampleKeeper
_JUDGES = 16  # samples that the accuracy of a result is measured on
_LOOKED = 40  # samples that judge every model, where there is no evaluator


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What the result has to reach, or may take: at most one of the numbers."""

    evaluator: Evaluator | None
    max_drop: float | None
    target_accuracy: float | None
    min_sqnr: float | None
    max_slowdown: float | None

    def wanted(self) -> bool:
        """Whether there is one. Raises ArgumentError or ArgumentTypeError where that is not clear."""
        goals = {name: value for name, value in vars(self).items() if name != "evaluator"}
        return _wants_search(self.evaluator, goals)

    def reached(
        self,
        calibrated: Callable[..., QuantizedModel],
        feeds: DataSource,
        model: ir.Model,
        notes: tuple[str, ...],
        progress: Progress,
        engine: Engine,
        state: State,
        *,
        by_number: bool,
    ) -> QuantizedModel:
        """Calibrate with these data, without the samples that are held out, and search.

        calibrated: gives the calibrated model, of feeds and of their `parts`. model: the float model. notes: what else
        is assumed. engine: its workers measure layers and models. state: knows and keeps what they show. by_number:
        others than this process read the feeds, where they can.
        """
        samples = SampleKeeper(feeds, most=_SEARCHED, hold_out=_SEARCHED if self.evaluator is None else 0)
        parts = samples.parts() if by_number else None
        run = calibrated(samples, parts=parts)
        if parts is not None:
            samples.gather()
        assumed = [*feeds.assumptions, *samples.notes, *notes]
        quantized = replace(run, assumptions=tuple(dict.fromkeys(assumed)))
        judges = samples.held_out[:_JUDGES]
        if self.max_slowdown is not None:
            return spend_time(
                quantized,
                self.max_slowdown,
                model=model,
                samples=samples.kept,
                held_out=samples.held_out,
                progress=progress,
                engine=engine,
                state=state,
            ).measured(judges)
        goal: Goal
        if self.evaluator is not None:
            drop, least = self.max_drop, self.target_accuracy
            goal = EvaluatorGoal.of(self.evaluator, quantized, max_drop=drop, target_accuracy=least, state=state)
        else:
            goal = SqnrGoal(quantized, samples.spread(_LOOKED), samples.held_out, required=self.min_sqnr or 0.0)
        return search_mixed(quantized, goal, samples.kept, progress, engine, state).measured(judges)


def _wants_search(evaluator: Evaluator | None, goals: Mapping[str, float | None]) -> bool:
    """Whether a search is asked for. Raises ArgumentError or ArgumentTypeError where that is not clear."""
    asked = [name for name, value in goals.items() if value is not None]
    for name in asked:
        if isinstance(goals[name], bool) or not isinstance(goals[name], Real):
            raise ArgumentTypeError(f"{named(name)} must be a number, got {type(goals[name]).__name__}")
        if goals[name] != goals[name]:
            raise ArgumentError(f"{named(name)} is NaN: give a number.")
    if len(asked) > 1:
        raise ArgumentError(f"{' and '.join(map(named, asked))} are different targets: give one of them.")
    if evaluator is not None and not callable(evaluator):
        raise ArgumentTypeError(f"evaluator must be a function of a session, got {type(evaluator).__name__}")
    judged = asked[:1] in (["max_drop"], ["target_accuracy"])
    if evaluator is None and judged:
        kind = either("a function of a session", "a script behind --evaluator")
        raise ArgumentError(f"{named(asked[0])} needs an evaluator, {kind}; {named('min_sqnr')} needs none.")
    if evaluator is not None and not judged:
        raise ArgumentError(
            f"An evaluator goes with {named('max_drop')} or {named('target_accuracy')}: give one of them."
        )
    if (goals["max_drop"] or 0) < 0:
        raise ArgumentError(f"{given('max_drop', goals['max_drop'])} would be a gain: give 0 or more.")
    slowdown = goals["max_slowdown"]
    if slowdown is not None and slowdown < 1:
        raise ArgumentError(f"{given('max_slowdown', slowdown)} would be faster than int8: give 1 or more, as 1.05.")
    return bool(asked)
