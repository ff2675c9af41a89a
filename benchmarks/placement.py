"""`make placement`: what first layers in float cost and bring: default beside `full_int8=True`, on the shared models.

Both are of the same data. Times are of one sample and one thread; the ratio is that of the fastest runs, which take
turns. Accuracy is that of test data, in the judge of the task.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from patterns import open_session, ratio
from processes import machine
from tasks import TASKS, Task

import amct_onnx
from amct_onnx.measure.output_judge import OutputJudge

MOST = 1.02  # times the latency of full int8


def measure(task: Task, args: argparse.Namespace) -> float:
    """Print the line of a model; default's time over that of full int8."""
    with tempfile.TemporaryDirectory(prefix="placement_") as folder:
        data = Path(folder) / f"data{task.suffix}"
        task.write_calibration(data, args.calibration)
        results = [amct_onnx.quantize(task.case.model, data, full_int8=full) for full in (False, True)]
        files = [
            str(result.save(Path(folder) / str(number), inspect=False).files[0])
            for number, result in enumerate(results)
        ]
        sample = next(iter(task.test(1)))[0]
        feed = {name: array[:1] for name, array in sample.items()}
        slower = ratio(open_session(files[1]), open_session(files[0]), feed, args.seconds)
    tests = [{name: array[:1] for name, array in test.items()} for test, _ in task.test(args.test)]
    judge = OutputJudge(results[1].calibration.source.source.model, tests)
    decibels = [judge.scores(result.lowered).decibels for result in results]
    left = len(results[0].calibration.tuning.in_float)
    print(f"{task.name:<18}{left:>16}{decibels[0]:>10.2f}{decibels[1]:>12.2f}{slower:>20.3f}", flush=True)
    return slower


def main() -> int:
    """Print the table; exit code 1 where default takes longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=TASKS, default=list(TASKS), help="which models (all)")
    add("--calibration", type=int, default=160, help="calibration samples (160)")
    add("--test", type=int, default=64, help="test samples (64)")
    add("--seconds", type=float, default=8.0, help="of turns for each model (8)")
    args = parser.parse_args()
    print(machine())
    print(f"{'':<18}{'layers in float':>16}{'dB':>10}{'full_int8':>12}{'time / full_int8':>20}")
    return 1 if max(measure(TASKS[name], args) for name in args.models) > MOST else 0


if __name__ == "__main__":
    sys.exit(main())
