"""Samples that a rounding has not seen, and whether it is better for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.data.batches import BatchRule
from amct_onnx.measure.rounded_network import FLOAT_TYPES, distance, power
from amct_onnx.numerics.arrays import Array, Doubles, Feed
from amct_onnx.run.session import open_exact_session, open_session, quiet, run_feed

_SHARE, _MOST = 4, 32  # one sample of so many is held out, and never more of them
_LEAST = 2  # fewer say nothing of their own spread
_COMPARED = 16  # of those, so many judge whole models
_LEAST_NOISE = 1e-15  # over signal: no float32 model is nearer


@dataclass(frozen=True, kw_only=True)
class Division:
    """Feeds cut in two: those to `fit`, and those that `judge`. Of fewer than four samples none judges."""

    fit: list[Feed]
    judge: list[Feed]


def hold_out(feeds: Sequence[Feed], rule: BatchRule) -> Division:
    """Every fourth sample judges, of fewer than eight every second one. `rule` says what a sample is."""
    total = sum(rule.count(feed) for feed in feeds)
    if total < 2 * _LEAST:
        return Division(fit=list(feeds), judge=[])
    share = _SHARE if total >= _SHARE * _LEAST else 2
    fit: list[Feed] = []
    judge: list[Feed] = []
    seen = held = 0
    for feed in feeds:
        count = rule.count(feed)
        seen += count
        due = min(seen // share - held, count, _MOST - held)
        held += due
        if due < count:
            fit.append(rule.cut(feed, 0, count - due) if due else feed)
        if due:
            judge.append(rule.cut(feed, count - due, count) if due < count else feed)
    return Division(fit=fit, judge=judge)


def spread_samples(feeds: Sequence[Feed], rule: BatchRule) -> list[Feed]:
    """Up to 16 single samples of `feeds`, at equal distances."""
    places = [(feed, index) for feed in feeds for index in range(rule.count(feed))]
    chosen = np.linspace(0, len(places), min(_COMPARED, len(places)), endpoint=False).astype(int)
    return [rule.sample(*places[place]) for place in chosen]


class PairedJudge:
    """Compares two models on `samples`, by their noise to the float `model`. Raises DataError where it refuses one."""

    def __init__(self, model: ir.Model, samples: Sequence[Feed]) -> None:
        session = open_session(model, quiet())
        self._places = [place for place, out in enumerate(session.get_outputs()) if out.type in FLOAT_TYPES]
        self._samples = samples
        self._exact = [self._outputs(run_feed(session, sample)) for sample in samples]

    def noise(self, quantized: ir.Model) -> Doubles:
        """Noise over signal of each sample, the mean over outputs: float64[N]. Raises DataError."""
        session = open_exact_session(quantized)
        found = np.zeros(len(self._samples))
        for place, (sample, exact) in enumerate(zip(self._samples, self._exact, strict=True)):
            pairs = zip(self._outputs(run_feed(session, sample)), exact, strict=True)
            found[place] = np.mean([distance(got, one) / (power(one) or 1.0) for got, one in pairs] or [0.0])
        return np.maximum(found, _LEAST_NOISE)

    def _outputs(self, arrays: Sequence[Array]) -> list[Array]:
        """The float outputs, 0 where they are not finite, as a masked score is: two such places are no noise."""
        return [np.where(np.isfinite(arrays[place]), arrays[place], 0) for place in self._places]


def is_proved(before: Doubles, after: Doubles) -> bool:
    """Whether noise [N] `after` a step is less than `before`: together, and for one sample after the other, where the
    mean gain in dB has to exceed its standard error."""
    gains = 10 * np.log10(before / after)
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains.mean() > error and after.mean() < before.mean())
