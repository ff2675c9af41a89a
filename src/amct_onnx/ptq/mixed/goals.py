"""What a search for mixed precision is judged by: the noise of the outputs, or a function of the user's.

A model is looked at on what the search may use, and checked by what it reaches on other data in 19 of 20 cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from amct_onnx.errors import ArgumentTypeError
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.arrays import Doubles, Feed
from amct_onnx.numerics.sample_noise import decibel, is_wild, least_decibels, one_sided, typical
from amct_onnx.ptq.options import Evaluator
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.run.session import open_session
from amct_onnx.values.answers import to_scores

_ROOM = 6.0  # dB below the noise that is allowed, a change of the float function is in nobody's way
_TURNS = 2.0  # samples whose answer changes, for each that is lost on balance, at least
_FEWEST = 2  # samples that can tell how far they may be off
_ROUNDING, _FINE = 1e-6, 1e-5  # of the largest value: what float32 leaves of a zero; steps that are none


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a model reaches on the samples of the search; `checked` on others, None where they were not run.

    met: other data will have what was asked for, in 19 of 20 cases. enough: the search need not look for more, be it
    that nothing it could find would be surer. likely: other data will have it unless they hold worse samples.
    """

    value: float
    checked: float | None = None
    met: bool = False
    enough: bool = False
    likely: bool = False


# Runs the model of a session, and gives numbers in lists. It can be pickled, unless a function of the user's cannot.
Measuring = Callable[[Any], Any]


class Goal(Protocol):
    """`measure` says what values are, higher is better; `reference` is that of the float model, `required` the least
    that is asked for."""

    measure: str
    reference: float
    required: float

    def measuring(self) -> Measuring:
        """What runs a model, so that it can be judged."""
        ...

    def judge(self, measured: Any) -> Judgement:
        """What a model is worth, by what `measuring()` gives for it. It may depend on the models judged before."""
        ...

    def leaves_room(self, session: Any) -> bool:
        """Whether a float model with another function than the user's is near enough to it."""
        ...


def is_enough(value: float, required: float) -> bool:
    """Whether a value is enough; 82.8 - 0.1 is not 82.7 in floating point, and counts as it."""
    return value >= required or math.isclose(value, required, rel_tol=1e-9)


@dataclass(frozen=True, kw_only=True)
class NoiseOnSamples:
    """Gives the noise of a model by sample and output, on the samples of the search and, where that is little enough or
    it is not known whether some samples are wild, on those held out."""

    look: OutputNoise
    check: OutputNoise
    required: float
    wild: bool | None

    def __call__(self, session: Any) -> list[Any]:
        seen = self.look.by_sample(session)
        if self.wild is not None and not is_enough(_decibels(seen, self.look, wild=self.wild), self.required):
            return [seen.tolist(), None]
        return [seen.tolist(), self.check.by_sample(session).tolist()]


def _decibels(noise: Doubles, judge: OutputNoise, *, wild: bool) -> float:
    return decibel(typical(noise, judge.signal, wild=wild)) if judge.outputs else math.inf


@dataclass
class SqnrGoal:
    """The signal-to-noise ratio of the outputs in dB: of all samples together, or of the median sample where a few
    wild ones own the sum; the first model that is judged tells which."""

    quantized: QuantizedModel
    samples: Sequence[Feed]
    held_out: Sequence[Feed]
    required: float
    reference: float = math.inf
    measure: str = "SQNR in dB"
    _wild: bool | None = None

    def __post_init__(self) -> None:
        model = self.quantized.calibration.source.source.model
        self._look = OutputNoise(model.clone(), self.samples)
        self._check = OutputNoise(model.clone(), self.held_out)

    def measuring(self) -> Measuring:
        return NoiseOnSamples(look=self._look, check=self._check, required=self.required, wild=self._wild)

    def judge(self, measured: Sequence[Any]) -> Judgement:
        seen, others = (None if part is None else self._array(part) for part in measured)
        assert seen is not None
        if self._wild is None:
            assert others is not None  # `NoiseOnSamples` has looked
            signal = np.concatenate([self._look.signal, self._check.signal])
            self._wild = is_wild(np.concatenate([seen, others]), signal)
            if self._wild:
                self.measure = "SQNR of the median sample in dB (a few samples own most of the noise or signal)"
        value = self._decibel(seen, self._look)
        if not is_enough(value, self.required):
            return Judgement(value=value)
        assert others is not None
        checked = self._decibel(others, self._check)
        plain, some = is_enough(checked, self.required), len(self.held_out) >= _FEWEST
        # Ranges fit the samples that calibrate better than others: only those held out tell what others reach.
        least, without_tails = (
            least_decibels(others, self._check.signal, wild=self._wild, tails=tails) for tails in (True, False)
        )
        met = plain and some and is_enough(least, self.required)
        likely = plain and is_enough(without_tails, self.required)
        return Judgement(value=value, checked=checked, met=met, enough=met or (plain and not some), likely=likely)

    def leaves_room(self, session: Any) -> bool:
        return self._decibel(self._look.by_sample(session), self._look) >= self.required + _ROOM

    def _array(self, noise: Sequence[Sequence[float]]) -> Doubles:
        return np.array(noise, np.float64).reshape(len(noise), len(self._look.outputs))

    def _decibel(self, noise: Doubles, judge: OutputNoise) -> float:
        return _decibels(noise, judge, wild=bool(self._wild))


@dataclass(frozen=True)
class ScoresOf:
    """Gives what an evaluator says of a model: a number, or one for each sample. Raises ArgumentTypeError."""

    evaluator: Evaluator

    def __call__(self, session: Any) -> list[float]:
        return list(_scores(self.evaluator(session)))


@dataclass
class EvaluatorGoal:
    """A value of the user's own measure. Its samples are the user's, so that there are no others to check with.

    Where the evaluator gives one number for each sample, their differences to the float model tell how far the mean may
    be off. Else the steps of its values do, as far as they have some: the share of right answers of 250 images has
    steps of 0.4 points.
    """

    evaluator: Evaluator
    reference: float
    required: float
    measure: str = "evaluator"
    _exact: tuple[float, ...] = ()
    _values: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        evaluator: Evaluator,
        quantized: QuantizedModel,
        *,
        max_drop: float | None,
        target_accuracy: float | None,
        state: State = NO_STATE,
    ) -> EvaluatorGoal:
        """The float model is evaluated for it, each time: what the evaluator reads may have changed since `state` has
        kept trials. Raises ArgumentTypeError, and StateError where it has."""
        floats = quantized.calibration.source.source.model
        exact = ScoresOf(evaluator)(open_session(floats.clone(), own_model=True))
        state.confirm("the scores that the evaluator gives the float model", repr(exact))
        reference = _mean(exact)
        required = target_accuracy if target_accuracy is not None else reference - (max_drop or 0.0)
        return cls(
            evaluator=evaluator, reference=reference, required=required, _exact=tuple(exact), _values=[reference]
        )

    def measuring(self) -> Measuring:
        return ScoresOf(self.evaluator)

    def judge(self, measured: Sequence[float]) -> Judgement:
        value = _mean(measured)
        self._values.append(value)
        plain = is_enough(value, self.required)
        met = plain and is_enough(value - self._margin(measured, value), self.required)
        hopeless = self.reference - self.required < self._margin(self._exact, self.reference)
        return Judgement(value=value, met=met, enough=met or (plain and hopeless), likely=plain)

    def leaves_room(self, session: Any) -> bool:
        return is_enough(_mean(_scores(self.evaluator(session))), (self.reference + self.required) / 2)

    def _margin(self, scores: Sequence[float], value: float) -> float:
        """By how much the value may be off on other data, as a difference to that of the float model."""
        count = len(scores)
        if count > 1 and count == len(self._exact):
            losses = np.array(self._exact) - np.array(scores)
            one = float(np.abs(losses).max())  # one more that is lost, for where hardly any is
            error = math.sqrt((float(np.square(losses - losses.mean()).sum()) + one**2) / (count * (count - 1)))
            return one_sided(count - 1) * error
        step = _step(self._values)
        return one_sided(10**6) * math.sqrt(_TURNS * step * max(abs(self.reference - value), step))


def _step(values: Sequence[float]) -> float:
    """The largest number of which all values are multiples; 0 where it is so small that they have no steps, and where
    there are not two of them."""
    magnitudes = sorted({abs(value) for value in values if value and math.isfinite(value)})
    if len(magnitudes) < 2:
        return 0.0
    step, rounding = 0.0, _ROUNDING * magnitudes[-1]
    for value in magnitudes:
        rest = value
        while rest > rounding:
            step, rest = rest, abs(math.remainder(step, rest))
    return step if step > _FINE * magnitudes[-1] else 0.0


def _mean(scores: Sequence[float]) -> float:
    return scores[0] if len(scores) == 1 else float(np.mean(scores))


def _scores(value: Any) -> tuple[float, ...]:
    try:
        return to_scores(value)
    except (TypeError, ValueError) as error:
        text = f"evaluator must return a number, higher is better; it returned {value!r:.200}"
        raise ArgumentTypeError(text) from error
