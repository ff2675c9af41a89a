"""`make hard ARGS="--samplings N"`: whether each step that the recipe keeps holds on samples that no judge has seen.

Each model that the recipe takes for the best so far is tested on the way; so a step has a model before it and one
after it, and the difference between both an interval. `best` is compared with default in the same way.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accuracy import Test
from accuracy_report import difference
from beside_peers import print_table
from hard_tasks import HARD, Hard
from measures import Figure
from tasks import JUDGE

import amct_onnx
from amct_onnx.ptq.quantized_model import QuantizedModel
from amct_onnx.ptq.recipe.bench import Bench, Candidate
from amct_onnx.values.findings import Effort, Step

Figures = dict[str, Figure]
_SLOT = "_watched_best"


@contextmanager
def watched(seen: Callable[[Candidate], None]) -> Iterator[None]:
    """Tell `seen` of each candidate that a bench of trials takes for the best so far."""

    def take(bench: Bench, value: Candidate | None) -> None:
        bench.__dict__[_SLOT] = value
        if value is not None:
            seen(value)

    bench: Any = Bench
    bench.best = property(lambda self: self.__dict__.get(_SLOT), take)
    try:
        yield
    finally:
        del bench.best


def quantized(task: Hard, test: Test, effort: Effort, count: int) -> tuple[QuantizedModel, Figures, list[Figures]]:
    """The model for the task's sampling, its figures, and those of each best so far that the recipe had."""
    found: list[Figures] = []

    def seen(candidate: Candidate) -> None:
        found.append(test.of_session(candidate.lowered.exact_session()).figures())

    with watched(seen):
        result = amct_onnx.quantize(str(task.case.model), task.calibration(count), effort=effort)
    with tempfile.TemporaryDirectory() as folder:
        file = result.save(f"{folder}/model", inspect=False).files[0]
        return result, test.tally(Path(file)).figures(), found


def kept_steps(steps: tuple[Step, ...], found: list[Figures]) -> Iterator[tuple[Step, Figures, Figures]]:
    """Each step that was kept, with the figures before and after it.

    found: of the best models in their order: those of the first quantization, then those of the calibrated one.
    """
    chosen = [step for step in steps if step.kept and step.after is not None and "all data" not in step.name]
    first, late = ([step for step in chosen if step.first == is_first] for is_first in (True, False))
    for group, models in ((first, found[: len(first) + 1]), (late, found[len(found) - len(late) - 1 :])):
        yield from zip(group, models[:-1], models[1:], strict=True)


def report_samplings(args: argparse.Namespace) -> int:
    """Print the tables; how many steps lose, and how often `best` does against default, beyond the interval."""
    total = losses = 0
    for name in args.nets:
        task = HARD[name]
        test = Test.of(task, args.test)
        names = [JUDGE, next(iter(test.float_tally().own()))]
        lines = []
        for sampling in range(args.samplings):
            drawn = replace(task, sampling=sampling)
            results: dict[str, Figures] = {}
            for effort in args.efforts:
                result, results[effort], found = quantized(drawn, test, effort, args.calibration)
                for step, before, after in kept_steps(result.steps, found):
                    told = f"{step.before:.2f} -> {step.after:.2f}"
                    pairs = [difference(after[key], before[key], args.resamples) for key in names]
                    lines.append((f"{sampling}, {effort}: {step.name}", [told, *_cells(pairs)]))
                    losses += any(verdict == "behind" for _, verdict in pairs)
                    total += 1
            if {"default", "best"} <= results.keys():
                pairs = [difference(results["best"][key], results["default"][key], args.resamples) for key in names]
                lines.append((f"{sampling}, best minus default", ["", *_cells(pairs)]))
                losses += any(verdict == "behind" for _, verdict in pairs)
        print(f"\n{name}: {args.calibration} calibration samples, {len(test.items)} test samples")
        print_table(["sampling", "as told, dB", *(cell for key in names for cell in (f"test {key}", ""))], lines)
    print(f"\nsteps kept: {total}; behind what was before, beyond the interval: {losses}")
    return losses


def _cells(pairs: list[tuple[str, str]]) -> list[str]:
    return [cell for pair in pairs for cell in pair]
