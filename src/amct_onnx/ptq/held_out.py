"""Samples that are held out of a rounding, to judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amct_onnx.data.batches import BatchRule
from amct_onnx.numerics.arrays import Feed

_SHARE, _MOST = 4, 32  # one sample of so many is held out, and never more of them
_LEAST = 2  # fewer say nothing of their own spread
_COMPARED = 16  # of those, so many judge whole models


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
