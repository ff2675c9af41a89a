"""`make effort`: how long `effort="default"` takes beside `effort="fast"`, the plain calibration, on the shared models.

Both are whole processes that calibrate, quantize and write the model, and take turns: a ratio is that of one round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from beside_peers import Bench, Entry, print_table
from peers import ASCEND, OURS, find_scheme
from processes import machine
from tasks import TASKS, Task

EFFORTS = ("fast", "default")
TARGETS = {"onnxruntime": OURS, "ascend": ASCEND}


def measure(bench: Bench, task: Task, target: str) -> list[str] | str:
    """Seconds of both efforts, the median of their ratio, and its least and most; or why there are none."""
    args, side = bench.args, TARGETS[target]
    entries = [Entry(side=side, scheme=find_scheme(side.name, effort), python=sys.executable) for effort in EFFORTS]
    data = bench.folder / f"{task.name}{task.suffix}"
    task.write_calibration(data, args.calibration)
    rounds = []
    for _ in range(args.rounds):
        runs = [bench.run(entry, task.case, data) for entry in entries]
        for run in runs:
            if run.problem is not None or run.model is None:
                return str(run.problem)
            run.model.unlink()
        rounds.append([run.seconds for run in runs])
    data.unlink()
    ratios = [default / fast for fast, default in rounds]
    seconds = [f"{median(column):.1f}" for column in zip(*rounds, strict=True)]
    return [*seconds, f"{median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"]


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=TASKS, default=list(TASKS), help="which models (all)")
    add("--targets", nargs="+", choices=TARGETS, default=["onnxruntime"], help="for which targets (onnxruntime)")
    add("--calibration", type=int, default=160, help="most calibration samples (160)")
    add("--rounds", type=int, default=5, help="rounds (5)")
    add("--timeout", type=float, default=1800, help="seconds that one process may take")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Print a table for each target; exit code 1 where the data is missing."""
    args = parse_arguments(words)
    missing = [path for name in args.models if not (path := TASKS[name].case.model).is_file()]
    if missing:
        print(f"[ERROR] no such model: {missing[0]}; set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    print(machine())
    for target in args.targets:
        rows = []
        for name in args.models:
            with tempfile.TemporaryDirectory(prefix="effort_") as folder:
                bench = Bench(args, Path(folder))
                rows.append((name, measure(bench, TASKS[name], target)))
                bench.hush()
        print(f"\n{target}, {args.calibration} samples: whole processes, rounds: {args.rounds}")
        print_table(["", "fast s", "default s", "default / fast", "rounds"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
