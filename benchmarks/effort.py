"""`make effort`: what `effort="default"` costs beside `effort="fast"`, the plain calibration, and beside inference.

All are whole processes: two calibrate, quantize and write the model, one runs the float model on the samples one at a
time. They take turns: a ratio is that of one round. The models are the shared ones, and two of real sizes with random
weights (`real_sizes.py`). Processor time is that of all threads together; on a machine that does other things as well
it says more than wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from beside_peers import Bench, Entry, Run, print_table
from peers import ASCEND, FLOOR, OURS, find_scheme
from prepared import Case
from processes import machine
from real_sizes import REAL_SIZES
from tasks import TASKS

EFFORTS = ("fast", "default")
TARGETS = {"onnxruntime": OURS, "ascend": ASCEND}
HEADER = ["", "float s", "fast s", "default s", "default / fast", "rounds", "processor", "default / float"]
MEMORY_HEADER = ["", "float MiB", "fast MiB", "default MiB", "weights MiB", "default - float - 2 x weights"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The runs of each round: float inference, fast, default. weights: MiB of the float model's file."""

    rounds: list[list[Run]]
    weights: float

    def times(self) -> list[str]:
        """Cells below HEADER: medians, and the least and most of a ratio."""
        ratios = [default.seconds / fast.seconds for _, fast, default in self.rounds]
        processor = median(default.processor / fast.processor for _, fast, default in self.rounds)
        seconds = [f"{median(run.seconds for run in runs):.1f}" for runs in zip(*self.rounds, strict=True)]
        beside = median(default.seconds / plain.seconds for plain, _, default in self.rounds)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        return [*seconds, f"{median(ratios):.2f}", spread, f"{processor:.2f}", f"{beside:.2f}"]

    def memory(self) -> list[str]:
        """Cells below MEMORY_HEADER: the largest peaks."""
        columns = list(zip(*self.rounds, strict=True))
        peaks = [max((run.peak for run in runs if run.peak is not None), default=0.0) for runs in columns]
        more = peaks[2] - peaks[0] - 2 * self.weights
        return [*(f"{peak:.0f}" for peak in peaks), f"{self.weights:.0f}", f"{more:+.0f}"]


def measure(bench: Bench, case: Case, data: Path, target: str) -> Measured | str:
    """The runs of one model in turns, or why there are none."""
    side, plain = TARGETS[target], FLOOR.schemes[0]
    entries = [Entry(side=FLOOR, scheme=plain, python=sys.executable)]
    entries += [Entry(side=side, scheme=find_scheme(side.name, effort), python=sys.executable) for effort in EFFORTS]
    rounds = []
    for _ in range(bench.args.rounds):
        runs = [bench.run(entry, case, data) for entry in entries]
        for run in runs:
            if run.problem is not None:
                return run.problem
            if run.model is not None:
                run.model.unlink()
        rounds.append(runs)
    return Measured(rounds=rounds, weights=case.model.stat().st_size / (1 << 20))


def prepare(name: str, folder: Path, args: argparse.Namespace) -> tuple[Case, Path]:
    """A model by its name, and a file of samples for it."""
    if name in TASKS:
        task = TASKS[name]
        data = folder / f"{name}{task.suffix}"
        task.write_calibration(data, args.calibration)
        return task.case, data
    size = REAL_SIZES[name]
    data = folder / f"{name}{size.suffix}"
    size.write_samples(data, args.real_samples)
    return size.case(folder), data


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = [*TASKS, *REAL_SIZES]
    add("--models", nargs="+", choices=names, default=names, help="which models (all)")
    add("--targets", nargs="+", choices=TARGETS, default=["onnxruntime"], help="for which targets (onnxruntime)")
    add("--calibration", type=int, default=160, help="most calibration samples (160)")
    add("--real-samples", type=int, default=64, help="samples of the models of real sizes (64)")
    add("--rounds", type=int, default=5, help="rounds (5)")
    add("--timeout", type=float, default=1800, help="seconds that one process may take")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Print a table for each target; exit code 1 where the data is missing."""
    args = parse_arguments(words)
    shared = [TASKS[name].case.model for name in args.models if name in TASKS]
    missing = [path for path in shared if not path.is_file()]
    if missing:
        print(f"[ERROR] no such model: {missing[0]}; set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    print(machine())
    for target in args.targets:
        found: dict[str, Measured | str] = {}
        for name in args.models:
            with tempfile.TemporaryDirectory(prefix="effort_") as folder:
                bench = Bench(args, Path(folder))
                found[name] = measure(bench, *prepare(name, Path(folder), args), target)
                bench.hush()
        samples = f"{args.calibration} samples, {args.real_samples} for {' and '.join(REAL_SIZES)}"
        print(f"\n{target}, {samples}: whole processes in turns, rounds: {args.rounds}")
        print_rows(HEADER, found, Measured.times)
        print("\npeak memory")
        print_rows(MEMORY_HEADER, found, Measured.memory)
    return 0


def print_rows(
    header: Sequence[str], found: dict[str, Measured | str], cells: Callable[[Measured], Sequence[str]]
) -> None:
    """A table with a line for each model."""
    rows = [(name, one if isinstance(one, str) else cells(one)) for name, one in found.items()]
    print_table(header, rows)


if __name__ == "__main__":
    sys.exit(main())
