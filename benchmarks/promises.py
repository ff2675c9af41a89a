"""Whether targets of accuracy hold on test data: many short searches, for `make mixed`.

The models are the shared ones and those of `networks/`. Each run draws its own calibration data, and asks for some
decibels more than int8 has (`min_sqnr`) or for at most a point of top-1 lost on labelled images (`max_drop`, where the
evaluator gives one number, or one for each image). The test data are others, and decide nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from hard_tasks import HARD
from shared_data import DATA, MODELS, load, read_labels
from tasks import TASKS, Feed, Keywords, Task

import amct_onnx as amct
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.sample_noise import decibel, medians, pooled
from amct_onnx.run.session import open_session

DRAWN, TESTED = 96, 200  # samples of a calibration, and of a test
MORE_DB, DROP = 4.0, 1.0
MISSES = 0.05  # of the runs
# Quick models more often than slow ones.
NOISY = (
    *("kws", "efficientnet", "resnet20", "vit", "squeezenet", "unet", "resnet56", "crnn", "mobilenetv1"),
    *("detector", "kws", "mobilenetv3", "resnet20", "convnext", "mobilenetv2", "graph", "minilm"),
)
RIGHT = ("kws", "resnet20", "mobilenetv1", "kws", "resnet56", "resnet20", "squeezenet")
ALL: dict[str, Task] = {**TASKS, **HARD}


@dataclass(frozen=True)
class Run:
    """One search: a task, what is asked for, and the number of the draw. each: the evaluator gives arrays."""

    name: str
    goal: str
    draw: int
    each: bool = False


def runs(count: int, first: int) -> Iterator[Run]:
    """`count` of them, from the draw `first` on: two of three ask for decibels."""
    for number in range(first, first + count):
        kind, turn = ("max_drop", number // 3) if number % 3 == 2 else ("min_sqnr", number - number // 3)
        names = RIGHT if kind == "max_drop" else NOISY
        yield Run(name=names[turn % len(names)], goal=kind, draw=number, each=turn % 2 == 1)


def promises(count: int, effort: str, first: int) -> bool:
    """Run and print them; whether hardly any target is missed on test data without being told."""
    print(f"\nTargets of accuracy on test data; {DRAWN} samples drawn for each run, from draw {first}, effort {effort}")
    print(f"min_sqnr asks for {MORE_DB:g} dB more than int8 has, max_drop for at most {DROP:g} points of top-1")
    columns = ("asked", "int8", "search", "test", "median", "float")
    print(f"{'model':<14}{'goal':<18}" + "".join(f"{name:>8}" for name in columns) + "  outcome")
    outcomes = []
    for run in runs(count, first):
        outcomes.append(_noisy(run, effort) if run.goal == "min_sqnr" else _right(run, effort))
    missed = outcomes.count("MISSED")
    told = outcomes.count("said that it cannot")
    print(f"{count} runs: {count - missed - told} met, {told} said that they cannot, {missed} missed")
    return missed <= MISSES * count


def drawn(name: str, draw: int, count: int = DRAWN) -> dict[str, np.ndarray]:
    """`count` samples of those that may calibrate, by the input that they are for; "" where there is only one."""
    if name in HARD:
        return replace(HARD[name], sampling=draw).calibration(count)
    task = TASKS[name]
    with tempfile.TemporaryDirectory(prefix="promises_") as folder:
        path = Path(folder) / f"pool{task.suffix}"
        task.write_calibration(path, 10**6)
        loaded = np.load(path)
        pool = dict(loaded) if task.suffix == ".npz" else {"": loaded}
    size = len(next(iter(pool.values())))
    chosen = np.sort(np.random.default_rng(draw).permutation(size)[:count])
    return {key: array[chosen] for key, array in pool.items()}


def _quantize(run: Run, data: dict[str, np.ndarray], **options: Any) -> amct.QuantizedModel:
    return amct.quantize(ALL[run.name].case.model, data.get("", data), **options)


def _noisy(run: Run, effort: str) -> str:
    task, data = ALL[run.name], drawn(run.name, run.draw)
    judge = OutputNoise(ir.load(task.case.model), [single(feed) for feed, _ in task.test(TESTED)])
    plain = decibel(judge.noise_of(_quantize(run, data, effort="fast").lowered.session()))
    asked = round(plain + MORE_DB, 1)
    result = _quantize(run, data, effort=effort, min_sqnr=asked)
    noise = judge.by_sample(result.lowered.session())
    found = [decibel(float(of(noise, judge.signal).mean())) for of in (pooled, medians)]
    assert result.precision is not None
    by_median = "median" in result.precision.measure
    return _told(run, result, found[by_median] >= asked, asked, [found[0], found[1]])


def single(feed: Feed) -> Feed:
    """The first row of a sample: the model that is judged may fix its batch."""
    return {name: array[:1] for name, array in feed.items()}


def _right(run: Run, effort: str) -> str:
    seen, test = (list(_labelled(run.name, test=part)) for part in (False, True))

    def evaluate(session: Any) -> Any:
        hits = 100 * _hits(session, seen)
        return hits if run.each else float(hits.mean())

    result = _quantize(run, drawn(run.name, run.draw), effort=effort, evaluator=evaluate, max_drop=DROP)
    exact = _hits(open_session(ir.load(TASKS[run.name].case.model)), test)
    lost = 100 * float((exact - _hits(result.lowered.session(), test)).mean())
    return _told(run, result, lost <= DROP, -DROP, [-lost], zero=result.precision.reference)


def _hits(session: Any, items: Sequence[tuple[Feed, int]]) -> np.ndarray:
    return np.array([float(session.run(None, feed)[0].argmax() == label) for feed, label in items])


def _labelled(name: str, *, test: bool) -> Iterator[tuple[Feed, int]]:
    task = TASKS[name]
    if test:
        yield from task.test(None)
    elif isinstance(task, Keywords):
        samples, labels = task.part(test=False)
        for sample, label in zip(samples, labels, strict=True):
            yield {"input": sample[None]}, int(label)
    else:
        model = MODELS[name]
        for image in read_labels(model.calibration, DATA):
            yield {model.input: load(image.path, model.prepare)[None]}, image.label


def _told(
    run: Run, result: amct.QuantizedModel, holds: bool, asked: float, found: Sequence[float], *, zero: float = 0.0
) -> str:
    """Print a run, and what came of it. Values of an evaluator are differences to `zero`."""
    precision = result.precision
    assert precision is not None
    outcome = "met" if precision.met and holds else "MISSED" if precision.met else "said that it cannot"
    values = [asked, precision.evaluations[0].value - zero, precision.result.value - zero, *found]
    shown = "".join(f"{value:>8.1f}" for value in values) + " " * 8 * (2 - len(found))
    words = run.goal + (", by image" if run.each and run.goal == "max_drop" else "")
    print(f"{run.name:<14}{words:<18}{shown}{precision.result.cost:>8.1%}  {outcome}", flush=True)
    return outcome
