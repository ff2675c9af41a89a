"""`make scale`: what two workers win over one, what merging costs for real models, and a plan for a million images.

Each worker has one thread. The workers of both sizes are there all the time and take turns, in one run; shown is the
median over the rounds. Beside them, one and two processes run the float model alone: no work gains more than that here.
The exit code is 1 where two workers count less than 1.7 times as fast as one.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from engine_runs import calibration
from processes import machine
from tasks import TASKS

import amct_onnx
from amct_onnx.engine.cost import Measured, cost
from amct_onnx.engine.engine import LocalEngine
from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.engine.processors import THREADS
from amct_onnx.values.counts import merged_counts

SAMPLES, BATCH = 1000, 2
ASKED = 1.7
MERGED = ("resnet20", "resnet56", "mobilenetv2", "yolox_nano", "minilm")
NODES, WORKERS, MILLION = 64, 8, 1_000_000
BANDWIDTH, START = 1e9, 5.0  # bytes in a second between nodes, and seconds until a worker works: what the plan assumes


class Watched:
    """Lets another engine work, and keeps how long its merging took; it may keep the outcomes."""

    alone = False

    def __init__(self, engine: Any, keep: bool = False) -> None:
        self._engine, self._keep, self.workers = engine, keep, engine.workers
        self.seconds, self.outcomes = 0.0, list[Any]()

    def map(self, work: Any, items: Iterable[Any]) -> Any:
        return self._engine.map(work, items)

    def merge(self, work: Any, items: Iterable[Any], merge: Callable[[Any, Any], Any]) -> Any:
        start = time.perf_counter()
        if self._keep:
            self.outcomes = list(self._engine.map(work, items))
            return reduce(merge, self.outcomes)
        try:
            return self._engine.merge(work, items, merge)
        finally:
            self.seconds = time.perf_counter() - start

    def close(self) -> None:
        """It belongs to somebody else."""


def serve(kind: str, model: str, data: str) -> None:
    """Calibrate once for each line of stdin, and print how long the workers took."""
    with opened_engine(kind) as engine:
        print("ready", flush=True)
        for _ in sys.stdin:
            watched = Watched(engine)
            amct_onnx.quantize(model, data, engine=watched, effort="fast", batch_size=BATCH, progress=False)
            print(watched.seconds, flush=True)


class Workers:
    """So many workers of a kind, in a process of their own that calibrates when it is told to."""

    def __init__(self, kind: str, count: int, model: str, data: str) -> None:
        name = f"processes:{count}" if kind == "processes" else kind
        # Workers of processes share what this allows, and Ray makes as many as it allows, with a thread each.
        environment = {**os.environ, THREADS: "1" if kind == "processes" else str(count)}
        command = [sys.executable, __file__, "--serve", name, model, data]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def seconds(self) -> float:
        """Calibrate."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """Let them go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve_float(model: str) -> None:
    """For each line of stdin run the float model so many times, on one thread; say when that is done."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    (value,) = session.get_inputs()
    shape = [BATCH, *(size if isinstance(size, int) else 224 for size in value.shape[1:])]
    feed = {value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    for line in sys.stdin:
        for _ in range(int(line)):
            session.run(None, feed)
        print("done", flush=True)


class FloatRuns:
    """So many processes that run the float model and count nothing: what this machine has for two at most."""

    def __init__(self, count: int, model: str) -> None:
        command = [sys.executable, __file__, "--serve_float", model]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]

    def seconds(self) -> float:
        """Run all samples, shared out."""
        start = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{SAMPLES // BATCH // len(self._processes)}\n")
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()
        return time.perf_counter() - start

    def end(self) -> None:
        """Let them go."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def many(name: str, folder: Path) -> Path:
    """A file with SAMPLES samples: those for calibration, again and again."""
    path = folder / f"many{TASKS[name].suffix}"
    found = np.load(calibration(name, folder, SAMPLES))
    if isinstance(found, np.ndarray):
        np.save(path, found[np.arange(SAMPLES) % len(found)])
    else:
        np.savez(path, **{each: array[np.arange(SAMPLES) % len(array)] for each, array in found.items()})
    return path


def throughput(name: str, kinds: list[str], rounds: int, folder: Path) -> tuple[float, bool]:
    """Print how fast one and two workers count; seconds of a sample on one thread, and whether it is fast enough."""
    model, data = str(TASKS[name].case.model), str(many(name, folder))
    good, sample = True, 0.0
    print(f"\n{name}, {SAMPLES} samples, a thread for each worker, median of {rounds} rounds")
    print(f"{'':12}{'1 worker':>12}{'2 workers':>12}{'gain':>8}{'rounds':>14}")
    for kind in ("float runs", *kinds):
        is_float = kind == "float runs"
        both = [FloatRuns(count, model) if is_float else Workers(kind, count, model, data) for count in (1, 2)]
        for workers in both:
            workers.seconds()
        times = [[workers.seconds() for workers in both] for _ in range(rounds)]
        for workers in both:
            workers.end()
        one, two = (statistics.median(column) for column in zip(*times, strict=True))
        gains = sorted(first / second for first, second in times)
        gain = statistics.median(gains)
        if not is_float:
            good, sample = good and gain >= ASKED, one / SAMPLES
        print(
            f"{kind:12}{SAMPLES / one:10.1f}/s{SAMPLES / two:10.1f}/s{gain:8.2f}{gains[0]:9.2f}-{gains[-1]:.2f}",
            flush=True,
        )
    return sample, good


def merging(folder: Path) -> dict[str, tuple[int, float]]:
    """Print what it costs to merge what was counted of real models; bytes and seconds by model."""
    print(f"\n{'':14}{'model':>10}{'tensors':>9}{'outcome':>10}{'bytes a tensor':>16}{'merge':>10}{'pickle':>10}")
    found = {}
    for name in MERGED:
        watched = Watched(LocalEngine(), keep=True)
        model, data = TASKS[name].case.model, calibration(name, folder, 16)
        amct_onnx.quantize(str(model), str(data), engine=watched, effort="fast", batch_size=BATCH, progress=False)
        one, other = watched.outcomes[:2]
        data_of = pickle.dumps(one, protocol=5)
        merge = from_many(lambda one=one, other=other: merged_counts(one, other))
        both = from_many(lambda data_of=data_of: pickle.dumps(pickle.loads(data_of), protocol=5))
        found[name] = len(data_of), merge + both
        tensors = len(one.tensors)
        print(
            f"{name:14}{model.stat().st_size / 2**20:6.1f} MiB{tensors:9}{len(data_of) / 2**20:6.2f} MiB"
            f"{len(data_of) / tensors:16.0f}{1000 * merge:7.2f} ms{1000 * both:7.2f} ms",
            flush=True,
        )
    return found


def from_many(call: Callable[[], Any]) -> float:
    """The seconds of a call: the median of several."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plan(name: str, sample: float, size: int, merge: float) -> None:
    """Print the plan for a million images."""
    measured = Measured(sample=sample, start=START, merge=merge, size=size, bandwidth=BANDWIDTH)
    print(f"\n{MILLION:,} images, {name}, {NODES} nodes with {WORKERS} workers each, shards of 248 images")
    found = cost(measured, samples=MILLION, shard=248, nodes=NODES, workers=WORKERS)
    alone = cost(measured, samples=MILLION, shard=248, nodes=1, workers=1)
    print(f"one worker            {alone.seconds / 3600:8.1f} h")
    print(f"shards                {found.shards:8}, {found.turns} for each worker")
    print(f"counting              {found.counting:8.1f} s")
    print(f"merging while that    {found.merging:8.3f} s for each worker")
    print(f"merging in the end    {found.gathering:8.3f} s")
    print(f"fetched by the driver {found.fetched:8} outcomes, {found.driver:.2f} s, most of it meanwhile")
    print(f"in all                {found.seconds:8.1f} s, efficiency {found.efficiency:.2f}")
    print(f"a lost node costs     {found.loss:8.1f} s more, at most, and what Ray takes to notice")


def main() -> int:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="mobilenetv2", choices=list(TASKS), metavar="NAME")
    parser.add_argument("--engines", nargs="+", default=["processes", "ray"], choices=["processes", "ray"])
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve_float", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve)
        return 0
    if args.serve_float:
        serve_float(args.serve_float)
        return 0
    print(machine())
    with tempfile.TemporaryDirectory() as text:
        sample, good = throughput(args.model, args.engines, args.rounds, Path(text))
    with tempfile.TemporaryDirectory() as text:
        found = merging(Path(text))
    plan(args.model, sample, *found[args.model if args.model in found else "mobilenetv2"])
    print(f"\ntwo workers are {'' if good else 'NOT '}{ASKED} times as fast as one")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
