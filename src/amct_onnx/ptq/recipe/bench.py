"""Where the steps of a recipe are tried: the samples, the judge, the best so far, and what was tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.engine.engine import HERE, Engine
from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.graph.passes.equalize import channel_groups
from amct_onnx.measure.output_judge import OutputJudge, Scores, gain
from amct_onnx.numerics.arrays import Array, Feed, Floats
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe.channel_maxima import channel_maxima
from amct_onnx.observe.histograms import collect_statistics
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.progress import Progress
from amct_onnx.ptq.recipe.first_look import FirstLook, look_at
from amct_onnx.ptq.recipe.first_samples import FirstSamples
from amct_onnx.ptq.recipe.shown import Channels
from amct_onnx.run.memory import give_back
from amct_onnx.run.saturation import open_exact_session
from amct_onnx.targets.calibration import Calibration, SolvedGrids, SolvedWeights
from amct_onnx.targets.table import observed_tensors
from amct_onnx.targets.target import Lowered, Target
from amct_onnx.values.findings import Step, Tuning
from amct_onnx.values.request import Request

_LEAST_SAMPLES = 4  # two to fit, two to judge
_SHARE_SAMPLES = 6
_REASONS = (CalibrationError, DataError, ModelError)  # why a step cannot be tried; quantization itself may go on


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A calibration, solved for the target of the recipe."""

    calibration: Calibration
    lowered: Lowered


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What `make` makes of the best calibration so far; or, without it, why it is not tried.

    measured: the reason came from a measurement of the best so far. outputs: those parts of the outputs, by their
    number, that have to gain; all have to where it is empty. also: other samples, on which it has to gain as well.
    """

    name: str
    make: Callable[[Candidate], Calibration] | None = None
    reason: str = ""
    measured: bool = False
    outputs: tuple[int, ...] = ()
    also: Sequence[Feed] = ()


Trials = Iterator[Trial]


class Bench:
    """Solves and judges trials for one model, target and request. `best` is what has been found, `steps` what was
    tried.

    Where there are too few samples, or settings of the user, nothing is tried.
    """

    def __init__(
        self,
        source: FusedModel,
        target: Target,
        request: Request,
        samples: FirstSamples,
        progress: Progress,
        state: State = NO_STATE,
        engine: Engine = HERE,
    ) -> None:
        self.best: Candidate | None = None
        self.steps: list[Step] = []
        self.source, self.target, self.request = source, target, request
        self.samples, self.plan, self.progress, self.engine = samples, samples.plan, progress, engine
        self.solved_weights = SolvedWeights()  # which all trials share
        self.is_first = True  # trials are of a first quantization
        self._scores: Scores | None = None  # of the best
        self.look: FirstLook | None = None
        self._problem = ""
        self._state, self._asked = state, 0  # so many times so far
        if len(samples.samples) < _LEAST_SAMPLES or not request.allows_recipe or not self.plan.samples:
            return
        try:
            self.look = look_at(source, samples, self._channels(), state)
        except _REASONS as reason:  # samples that do not run are the calibration's to tell of
            self._problem = str(reason)

    @property
    def judge(self) -> OutputJudge | None:
        """Judges by some of the first samples; None where nothing is tried."""
        return None if self.look is None else self.look.judge

    def _channels(self) -> set[Channels]:
        """The tensors whose channels the steps want to know."""
        groups = channel_groups(self.source.model) if self.plan.strengths else ()
        smoothed = self.target.smoothable(self.source, self.request) if self.plan.smooth else ()
        return {(name, 1) for group in groups for name in group.measured} | {(name, -1) for name in smoothed}

    def run(self, step: str, trials: Trials) -> None:
        """Solve and judge the trials of a step; the best so far is replaced where one is better."""
        if self._problem:
            self._leave_out(step, self._problem)
        if self.judge is None:
            return
        self.progress(step, 0.0)
        try:
            for trial in trials:
                self._try(trial)
        except _REASONS as reason:
            self._leave_out(step, str(reason))
        self.progress(step, 1.0)

    def _try(self, trial: Trial) -> None:
        if trial.make is None:
            self._leave_out(trial.name, trial.reason, measured=trial.measured)
            return
        best = self.first()
        try:
            before, made = self.judged(best), trial.make(best)
            candidate = Candidate(calibration=made, lowered=self.target.solve(made))
            after = self._scored(candidate)
        except _REASONS as reason:
            self._leave_out(trial.name, str(reason))
            return
        better, error = gain(before, after)
        kept = better > error if not trial.outputs else better > -error and _gains(before, after, trial.outputs)
        shown = before, after, error
        if kept and trial.also:
            others = OutputJudge(self.source.model, trial.also)
            first, second = others.scores(best.lowered), others.scores(candidate.lowered)
            better, error = gain(first, second)
            kept = better > error
            shown = shown if kept else (first, second, error)
        self.note(trial.name, *shown[:2], kept=kept, error=shown[2])
        if kept:
            self.best, self._scores = candidate, after

    def first(self) -> Candidate:
        """The best so far; in the beginning a first quantization."""
        if self.best is None:
            first = self.quick(self.source)
            self.best = Candidate(calibration=first, lowered=self.target.solve(first))
        return self.best

    def scores(self) -> Scores | None:
        """What the best so far is worth on the samples that judge; None where there are none."""
        return None if self.best is None or self.judge is None else self.judged(self.best)

    def known_scores(self) -> Scores | None:
        """The same; None where they cannot be measured as well."""
        try:
            return self.scores()
        except _REASONS:
            return None

    def judged(self, best: Candidate) -> Scores:
        """The same of the best so far, measured once."""
        if self._scores is None and self.judge is not None:
            self._scores = self._scored(best)
        if self._scores is None:
            raise RuntimeError("nothing judges: no trial is made then")
        return self._scores

    def _scored(self, candidate: Candidate) -> Scores:
        """The scores of a model, which state may know."""
        if self.judge is None:
            raise RuntimeError("nothing judges: no trial is made then")
        judge = self.judge
        return Scores(**self.recalled("scores", lambda: vars(judge.scores(candidate.lowered))))

    def recalled(self, what: str, make: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        """What `make` gives, which state may know: a recipe asks for the same things in the same order each time."""
        self._asked += 1
        return self._state.recalled_arrays(f"{what}, number {self._asked} of the recipe", make)

    def judges(self) -> list[Feed]:
        """The samples that judge; none where nothing does."""
        return [] if self.judge is None else [self.samples.samples[index] for index in self.samples.judges()]

    def note(self, name: str, before: Scores, after: Scores, *, kept: bool, error: float = 0.0) -> None:
        one, two = before.decibels, after.decibels
        self.steps.append(Step(name=name, before=one, after=two, kept=kept, first=self.is_first, error=error))

    def _leave_out(self, name: str, reason: str, *, measured: bool = False) -> None:
        """Tell why a step is not tried."""
        scores = self.scores() if measured else None
        before = math.inf if scores is None else scores.decibels
        first = self.is_first and self.best is not None
        self.steps.append(Step(name=name, before=before, after=None, kept=False, reason=reason, first=first))

    def feeds(self, most: int | None = None) -> list[Feed]:
        """The samples to fit, or the first of them, in batches."""
        return [] if self.look is None else self.samples.batches(self.look.fit[:most], self.look.rows)

    def maxima(self, source: FusedModel, tensors: Collection[str], axis: int) -> Mapping[str, Floats]:
        """The largest magnitude of each channel of some tensors of `source`, for the samples to fit: float32[C]."""
        if self.look is None or source is not self.source:
            return channel_maxima(source.model, sorted(tensors), self.feeds(), axis=axis) if tensors else {}
        known = self.look.maxima
        return {name: known[name, axis] for name in tensors if (name, axis) in known}

    def quick(self, source: FusedModel, other: FirstLook | None = None) -> Calibration:
        """A calibration of `source` with the samples to fit, or with those of another look."""
        look = self.look if other is None else other
        tensors: Mapping[str, DyadicHistogram]
        if look is not None and source is self.source:
            tensors = look.quick
        else:
            few = 0 if look is None else look.few
            tensors = collect_statistics(source.model, observed_tensors(source), self.feeds(few))
        statistics = Statistics(
            tensors=tensors,
            samples=0 if look is None else look.few,
            digest="",  # nobody gets to see them
            factors=source.factors,
        )
        solved = SolvedGrids(self.solved_weights)
        tuning = Tuning() if self.best is None else Tuning(in_float=self.best.calibration.tuning.in_float)
        return Calibration(source=source, statistics=statistics, request=self.request, tuning=tuning, solved=solved)

    def found(self) -> FusedModel:
        """The float model of the best so far."""
        return self.source if self.best is None else self.best.calibration.source

    def let_go(self) -> Tuning:
        """What was found for the best so far, which is forgotten: the memory is for the calibration."""
        tuning = Tuning() if self.best is None else self.best.calibration.tuning
        self.best = self._scores = None
        give_back()
        return tuning

    def share_of(self, model: ir.Model, best: Candidate) -> float:
        """The noise of a model of standard operators, which is used up, as a share of that of `best`; a few samples are
        enough for it."""
        if self.judge is None:
            return 0.0
        alone = self.judge.scores_of(open_exact_session(model, own_model=True), most=_SHARE_SAMPLES)
        together = self.judged(best).first(_SHARE_SAMPLES)
        return min(1.0, float(10 ** ((together.decibels - alone.decibels) / 10)))


def _gains(before: Scores, after: Scores, outputs: Sequence[int]) -> bool:
    """Whether some parts of the outputs gain."""
    better, error = gain(before.of(outputs), after.of(outputs))
    return better > error
