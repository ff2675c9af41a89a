"""One run of the first samples through the float network, which shows all that a recipe wants to know of it.

That is what its tensors hold, how large their channels become, and the outputs that quantized models are judged by. The
calibration goes on from there where the network stays as it is, so that no sample runs twice.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from amct_onnx.engine.processors import processors
from amct_onnx.errors import DataError
from amct_onnx.files.state_folder import NO_STATE, State
from amct_onnx.measure.output_judge import OutputJudge, float_outputs, judged_model
from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.numerics.statistics.accumulator import Accumulator, new_accumulator
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.observe.channel_maxima import ChannelReader, finite_maxima
from amct_onnx.observe.histograms import take_histograms
from amct_onnx.observe.operators import MOST_WORKERS, showing_session
from amct_onnx.observe.shown_tensors import Reader
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.ptq.recipe.calm_samples import CALM, SampleGroups
from amct_onnx.ptq.recipe.first_samples import FirstSamples
from amct_onnx.ptq.recipe.shown import Channels, Shown
from amct_onnx.run.memory import give_back
from amct_onnx.run.threads import run_side_by_side
from amct_onnx.targets.table import observed_tensors

_ALIKE = 1e-3  # of the largest output: samples that run together may differ by as much from those that run alone


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstLook:
    """What the first samples have shown.

    judge: judges by a part of them. fit: the others, which run in batches of `rows`. quick: the histograms of the first
    `few` of these, counted: those of all samples, None where the network has to see them again with the other data.
    maxima: the largest magnitude of each channel, float32[C], over the samples to fit. calmest: the same look with the
    calmest of the samples to fit in front, where those that came first reach much further.
    """

    judge: OutputJudge
    fit: Sequence[Feed]
    rows: int
    few: int
    quick: Mapping[str, DyadicHistogram]
    counted: Mapping[str, DyadicHistogram] | None
    maxima: Mapping[Channels, Floats]
    calmest: FirstLook | None = None


def look_at(
    source: FusedModel, samples: FirstSamples, channels: Collection[Channels], state: State = NO_STATE
) -> FirstLook:
    """Run all of `samples` through `source`. channels: of which tensors the maxima are wanted. state: may know already
    what they show.

    Raises DataError for a sample that the network refuses, CalibrationError if ONNX Runtime cannot run it.
    """
    shown = Shown.of_arrays(
        state.recalled_arrays("the first samples", lambda: _shown(source, samples, channels).arrays())
    )
    kept, judges = samples.samples, samples.judges()
    found = FirstLook(
        judge=OutputJudge(source.model, [kept[index] for index in judges], shown.exact),
        fit=[sample for index, sample in enumerate(kept) if index not in judges],
        rows=shown.rows,
        few=min(samples.plan.quick, len(kept) - len(judges)),
        quick=shown.quick,
        counted=shown.counted,
        maxima=shown.maxima,
    )
    if not shown.order:
        return found
    fit, few = [found.fit[number] for number in shown.order], CALM * samples.plan.group
    return replace(found, calmest=replace(found, fit=fit, few=few, quick=shown.calmest))


def _shown(source: FusedModel, samples: FirstSamples, channels: Collection[Channels]) -> Shown:
    if samples.rows == 1:
        return _look(source, samples, channels, 1)
    try:
        return _look(source, samples, channels, samples.rows)
    except DataError:  # samples that run alone may not run together
        return _look(source, samples, channels, 1)


def _look(source: FusedModel, samples: FirstSamples, channels: Collection[Channels], rows: int) -> Shown:
    kept, judges = samples.samples, samples.judges()
    fit = [sample for index, sample in enumerate(kept) if index not in judges]
    judging = [kept[index] for index in judges]
    workers = min(processors(), MOST_WORKERS)
    counters = {name: new_accumulator(workers) for name in observed_tensors(source)}
    largest = {channel: ChannelReader(channel[1]) for channel in channels}
    paused = threading.Event()
    readers: dict[str, Reader] = dict(counters)
    for name in dict.fromkeys(name for name, _ in channels):
        own = [reader for channel, reader in largest.items() if channel[0] == name]
        readers[name] = _Both([counters[name]] if name in counters else [], own, paused)
    model, _ = judged_model(source.model)
    wanted = frozenset(value.name or "" for value in model.graph.outputs)
    with showing_session(model, readers, workers, keep_outputs=True) as session:
        size, quick = samples.plan.group, samples.plan.quick
        parts = [range(start, min(start + size, len(fit))) for start in range(0, len(fit), size)]
        groups, clean = SampleGroups(first=quick // size), True
        for part in parts:
            _run(session, samples.batches([fit[number] for number in part], rows), workers)
            clean = clean and _is_clean(counters)
            groups.add(take_histograms(counters), whole=len(part) == size)
        maxima = finite_maxima(largest)
        paused.set()
        exact = _run(session, judging, workers, wanted)
        clean = clean and _is_clean(counters)
        groups.add_others(take_histograms(counters))
        together = _are_alike(session, samples, judging, exact, wanted)
    give_back()
    order, calmest = groups.calmest()
    others = range(len(order), len(parts)) if order else ()
    return Shown(
        exact=exact,
        rows=rows if together else 1,
        quick=groups.first,
        order=tuple(number for part in (*order, *others) for number in parts[part]),
        calmest=calmest,
        counted=groups.all if clean and together else None,
        maxima=maxima,
    )


class _Both:
    """Counts what a tensor holds, and reads its channels unless that is paused."""

    def __init__(self, counters: Sequence[Reader], channels: Sequence[Reader], paused: threading.Event) -> None:
        self._counters, self._channels, self._paused = counters, channels, paused

    def add(self, x: Floats) -> None:
        for reader in (*self._counters, *(() if self._paused.is_set() else self._channels)):
            reader.add(x)


def _run(session: Any, feeds: Iterable[Feed], workers: int, wanted: Collection[str] = ()) -> list[Feed]:
    """Run all of `feeds`; the wanted outputs of each."""
    run = partial(float_outputs, session, wanted=wanted)
    with closing(run_side_by_side(run, feeds, workers)) as runs:
        return [running.result() for _, running in runs]


def _is_clean(counters: Mapping[str, Accumulator]) -> bool:
    """Whether nothing was wrong with what was counted."""
    return not any(counter.wrong for counter in counters.values())


def _are_alike(
    session: Any,
    samples: FirstSamples,
    judging: Sequence[Feed],
    exact: Sequence[Feed],
    wanted: Collection[str],
) -> bool:
    """Whether the network does with two samples together what it does with each: batches of the data are like samples
    then."""
    (pair, *others) = samples.batches(judging[:2], 2)
    if others:
        return True  # they cannot be together
    try:
        found = float_outputs(session, pair, wanted)
    except DataError:
        return True
    for name, array in found.items():
        alone = [one[name] for one in exact[:2]]
        expected = np.concatenate(alone) if alone[0].ndim else alone[0]
        if expected.shape != array.shape or not np.allclose(
            array, expected, rtol=0, atol=_ALIKE * float(np.abs(expected).max(initial=0.0))
        ):
            return False
    return True
