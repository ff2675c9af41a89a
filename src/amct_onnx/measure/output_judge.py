"""Which of two quantized models is nearer to the float network, as those who use its outputs see it, and how surely.

Two views count alike. The first takes the parts of the outputs (`measure.output_parts`) one by one: the noise of all
samples over their signal, the mean over parts. So boxes in pixels do not drown scores. The second takes samples one by
one, in dB, in front of a last Sigmoid or Softmax. So saturated probabilities hide nothing, and a few wild samples do
not decide alone. A difference of two models has a standard error, by the jackknife over samples (Efron and Stein, "The
Jackknife Estimate of Variance", 1981).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import AmctError
from amct_onnx.graph.instrument.shown_inputs import show_inputs
from amct_onnx.graph.outputs import class_output
from amct_onnx.measure.output_parts import OutputPart, output_parts
from amct_onnx.measure.rounded_network import FLOAT_TYPES, distance, finite, power
from amct_onnx.numerics.arrays import Array, Doubles, Feed
from amct_onnx.run.session import open_session, quiet, run_feed
from amct_onnx.targets.target import Lowered

_NOTHING = 1e-12  # of the signal: less noise than this is that of float32
NONE: Mapping[str, str] = MappingProxyType({})
_FEW = 0.84  # close to the ratio of the quantiles of Student's and the normal distribution at one standard error
_FAINT = 1e-3  # of the mean signal of samples: one that has less, as a picture without objects, is judged by this


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Squared errors of one model, and squares of the float network's values, each float64[samples, parts].

    noise, signal: of the parts of outputs. inner_noise, inner_signal: the same in front of a last Sigmoid or Softmax.
    top: float64[samples, 2], in how many rows of a classifier's output the same class is the largest, and of how many;
    zeros for other models.
    """

    noise: Doubles
    signal: Doubles
    inner_noise: Doubles
    inner_signal: Doubles
    top: Doubles

    @property
    def decibels(self) -> float:
        """Signal over noise, the mean of both views."""
        return float(self._of(self.noise.sum(axis=0), self.signal.sum(axis=0), self._each().mean()))

    def of(self, parts: Sequence[int]) -> Scores:
        """Of some parts alone, by their numbers."""
        chosen = list(parts)
        return Scores(
            noise=self.noise[:, chosen],
            signal=self.signal[:, chosen],
            inner_noise=self.inner_noise[:, chosen],
            inner_signal=self.inner_signal[:, chosen],
            top=self.top,
        )

    def first(self, samples: int) -> Scores:
        """Of the first samples alone."""
        return Scores(**{name: array[:samples] for name, array in vars(self).items()})

    def without_each(self) -> Doubles:
        """`decibels` without one sample, float64[samples]."""
        each, count = self._each(), len(self.noise)
        others = (each.sum() - each) / (count - 1)
        return self._of(self.noise.sum(axis=0) - self.noise, self.signal.sum(axis=0) - self.signal, others)

    def _each(self) -> Doubles:
        """dB of each sample in the second view."""
        least = _FAINT * self.inner_signal.mean(axis=0, keepdims=True)
        found: Doubles = _decibels(self.inner_noise, np.maximum(self.inner_signal, least)).mean(axis=1)
        return found

    @staticmethod
    def _of(noise: Doubles, signal: Doubles, each: Doubles) -> Doubles:
        share = np.divide(noise, signal, out=np.ones_like(noise), where=signal > 0)
        both: Doubles = (each - 10 * np.log10(np.maximum(share.mean(axis=-1), _NOTHING))) / 2
        return both


def _decibels(noise: Doubles, signal: Doubles) -> Doubles:
    share = np.divide(noise, signal, out=np.ones_like(noise), where=signal > 0)
    share[(signal <= 0) & (noise <= 0)] = _NOTHING
    found: Doubles = -10 * np.log10(np.maximum(share, _NOTHING))
    return found


def gain(before: Scores, after: Scores) -> tuple[float, float]:
    """How many dB `after` is better, and the error of that: a step that gains less than it may have gained by chance.

    It is the standard error, and more of it where there are few samples, as in Student's distribution. It is infinite
    where there is one sample only.
    """
    count = len(before.noise)
    if count < 2:
        return after.decibels - before.decibels, np.inf
    parts = after.without_each() - before.without_each()
    spread = np.square(parts - parts.mean()).sum()
    return after.decibels - before.decibels, float(np.sqrt((count - 1) / count * spread)) * (1 + _FEW / (count - 1))


def judged_model(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """A copy of a float model that gives all that is judged, and which outputs hold what a Sigmoid or Softmax reads, by
    the node's name."""
    copy = model.clone()
    return copy, show_inputs(copy, [name for part in output_parts(copy) for name in part.squash])


class OutputJudge:
    """Compares models with the float `model` on `samples`. Raises DataError where it does not take them.

    exact: what `judged_model` of it gives for each of the samples, if that is known. parts: what is judged, nothing for
    a model without float outputs.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Feed], exact: Sequence[Feed] | None = None) -> None:
        copy, self._shown = judged_model(model)
        self._classes = class_output(model)
        found = output_parts(model)
        joined = dict.fromkeys(part.output for part in found if part.tensors != (part.output,))
        self._labels = {name: _Labels(model, [p for p in found if p.output == name]) for name in joined}
        self._samples = samples
        if exact is None:
            session = open_session(copy, quiet(), own_model=True)
            exact = [float_outputs(session, feed) for feed in samples]
        self._exact = exact
        self.parts = tuple(part for part in found if not exact or part.output in exact[0])

    def dense_scores(self) -> tuple[int, ...]:
        """The numbers of the parts that have a score, made by a Sigmoid, for each of many places."""
        return tuple(
            number
            for number, part in enumerate(self.parts)
            if part.kind == "Sigmoid" and self._exact[0][part.output].ndim > 2
        )

    def highest(self, parts: Sequence[int]) -> float:
        """The highest score of parts that a Sigmoid makes, over all samples, as the float network gives it."""
        names = {self._shown[node] for number in parts for node in self.parts[number].squash if node in self._shown}
        top = max((float(exact[name].max(initial=-np.inf)) for exact in self._exact for name in names), default=0.0)
        return float(1 / (1 + np.exp(-top)))

    def scores(self, lowered: Lowered) -> Scores:
        """Of a quantized model; its int8 products are exact on CPUs where they saturate, too. Raises DataError."""
        model = lowered.model().clone()
        shown = show_inputs(model, list(self._shown))
        return self.scores_of(lowered.exact_session(model), shown)

    def scores_of(
        self,
        session: ort.InferenceSession,
        shown: Mapping[str, str] = NONE,
        most: int | None = None,
    ) -> Scores:
        """The same of a session, for all samples or the first of them. shown: the outputs that hold what a node reads,
        by the node's name."""
        samples = self._samples[:most]
        rows, top = [], []
        for feed, exact in zip(samples, self._exact, strict=False):
            found = float_outputs(session, feed)
            rows.append([self._part(part, feed, exact, found, shown) for part in self.parts])
            top.append(self._same_class(exact, found))
        table = np.array(rows, np.float64).reshape(len(samples), len(self.parts), 4)
        return Scores(
            noise=table[..., 0],
            signal=table[..., 1],
            inner_noise=table[..., 2],
            inner_signal=table[..., 3],
            top=np.array(top, np.float64).reshape(len(samples), 2),
        )

    def _same_class(self, exact: Feed, found: Feed) -> tuple[int, int]:
        """In how many rows of the output of a classifier the largest class is the same, and of how many."""
        name = self._classes
        if name is None or exact[name].shape != found[name].shape or not exact[name].size:
            return 0, 0
        one, two = (outputs[name].reshape(len(outputs[name]), -1).argmax(axis=1) for outputs in (exact, found))
        return int((one == two).sum()), len(one)

    def _part(
        self, part: OutputPart, feed: Feed, exact: Feed, found: Feed, shown: Mapping[str, str]
    ) -> tuple[float, float, float, float]:
        """Noise and signal of a part, behind and in front of a Sigmoid or Softmax."""
        one, two = exact[part.output], found[part.output]
        labels = self._labels.get(part.output)
        chosen = labels.of(part, feed, one.shape) if labels is not None and one.shape == two.shape else None
        if chosen is not None:
            one, two = one[chosen], two[chosen]
        noise, signal = distance(two, one), power(one)
        if not part.squash or not (shown.keys() & self._shown.keys()).issuperset(part.squash):
            return noise, signal, noise, signal
        pairs = [(found[shown[name]], exact[self._shown[name]]) for name in part.squash]
        return noise, signal, sum(distance(*pair) for pair in pairs), sum(power(pair[1]) for pair in pairs)


class _Labels:
    """Which elements of an output belong to which of its parts: numbers go the way from the Concat to the output."""

    def __init__(self, model: ir.Model, parts: Sequence[OutputPart]) -> None:
        self._parts = parts
        self._places: dict[tuple[int, ...], Array | None] = {}
        shapes, numbers = model.clone(), model.clone()
        names = [name for part in parts for name in part.tensors]
        self._names = {name: number for number, part in enumerate(parts) for name in part.tensors}
        self._output = parts[0].output
        values = {value.name: value for node in shapes.graph for value in node.outputs}
        shapes.graph.outputs.clear()
        shapes.graph.outputs.extend(values[name] for name in names)
        self._shapes = shapes
        numbers.graph.outputs[:] = [value for value in numbers.graph.outputs if value.name == self._output]
        for node in numbers.graph:
            for value in node.outputs:
                if value.name in self._names:
                    given = ir.Value(name=f"{value.name}.label", type=ir.TensorType(ir.DataType.FLOAT))
                    ir.convenience.replace_all_uses_with(value, given)
                    numbers.graph.inputs.append(given)
        self._numbers = numbers

    def of(self, part: OutputPart, feed: Feed, shape: tuple[int, ...]) -> Array | None:
        """Where the elements of `part` are in the output for `feed`, bool; None where that cannot be known."""
        if shape not in self._places:
            try:
                self._places[shape] = self._label(feed)
            except AmctError:  # a path that numbers cannot go
                self._places[shape] = None
        places = self._places[shape]
        return None if places is None or places.shape != shape else places == self._parts.index(part)

    def _label(self, feed: Feed) -> Array:
        session = open_session(self._shapes, quiet())
        found = float_outputs(session, feed)
        inputs = {f"{name}.label": np.full(found[name].shape, n, np.float32) for name, n in self._names.items()}
        session = open_session(self._numbers, quiet())
        return float_outputs(session, {**feed, **inputs})[self._output]


def float_outputs(session: ort.InferenceSession, feed: Feed, wanted: Collection[str] | None = None) -> dict[str, Array]:
    """The outputs of a float type, those of `wanted` names if some are given, in finite numbers. Raises DataError."""
    outputs = [output for output in session.get_outputs() if output.type in FLOAT_TYPES]
    names = [output.name for output in outputs]
    found = dict(zip(names, run_feed(session, feed, names), strict=True)) if names else {}
    return {name: finite(array) for name, array in found.items() if wanted is None or name in wanted}
