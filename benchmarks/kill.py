"""`make kill`: workers and drivers are killed at random, and the files have to be those of a run that nobody disturbed.

A worker, or a node of two, is lost during a calibration and during a search, so many times each. As often the process
of the user is killed (SIGKILL) and started again with `state=`; each batch is counted, also those that run again: a
kill may cost one for each worker. The exit code is 1 where files differ or more ran again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

from engine_runs import KINDS, calibration, digest_of, running
from tasks import TASKS

import amct_onnx

SAMPLES, BATCH = 128, 2
GOALS: dict[str, dict[str, Any]] = {"calibration": {}, "search": {"min_sqnr": 35.0}}
# Python reads it when it starts, in workers as well: each feed that begins to run is written down.
COUNTING = """
import importlib.abc, importlib.util, os, sys

NAME = "amct_onnx.observe.histograms"

class Counting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def counted(module):
            execute(module)
            run = module.TensorCounter.run

            def noting(self, feeds):
                if isinstance(feeds, list):  # as work that is kept runs them, one by one
                    with open(os.environ["AMCT_KILL_LOG"], "a") as log:
                        log.write("".join(f"{number}\\n" for number, _ in feeds))
                return run(self, feeds)

            module.TensorCounter.run = noting

        spec.loader.exec_module = counted
        return spec

sys.meta_path.insert(0, Counting())
"""
DRIVER = """
import sys
sys.path[:] = {path!r}
import amct_onnx
from engine_runs import digest_of
result = amct_onnx.quantize({model!r}, {data!r}, engine={engine!r}, state={state!r}, batch_size={batch}, progress=False)
print(digest_of(result))
"""


def lose_workers(kind: str, name: str, folder: Path, times: int, seed: int) -> int:
    """Lose workers of an engine; how many runs gave something else."""
    model, data = str(TASKS[name].case.model), str(calibration(name, folder, SAMPLES))
    choice, wrong = random.Random(seed), 0
    with running(kind, seed) as run:
        for what, goal in GOALS.items():
            options: dict[str, Any] = {"batch_size": BATCH, "progress": False, "effort": "fast", **goal}
            expected = digest_of(amct_onnx.quantize(model, data, **options))

            def call(options: dict[str, Any] = options) -> Any:
                return amct_onnx.quantize(model, data, engine=run.engine, **options)

            call()
            start = time.perf_counter()
            same = digest_of(call()) == expected
            took = time.perf_counter() - start
            found = [digest_of(run.losing(call, choice.uniform(0, took))) == expected for _ in range(times)]
            wrong += found.count(False) + (not same)
            lost = "a node" if kind == "nodes" else "a worker"
            print(f"{kind:12} {what:12} {lost} lost {times} times: {found.count(True)} runs the same", flush=True)
    return wrong


def kill_driver(kind: str, name: str, folder: Path, times: int, seed: int) -> int:
    """Kill the process of the user, and start it again; how many runs gave something else, or ran too much again."""
    model, data = str(TASKS[name].case.model), str(calibration(name, folder, SAMPLES))
    expected = digest_of(amct_onnx.quantize(model, data, batch_size=BATCH, progress=False))
    choice, log, workers = random.Random(seed), folder / f"{kind}.log", 1 if kind == "local" else 2
    (folder / "sitecustomize.py").write_text(COUNTING)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "AMCT_KILL_LOG": str(log)}
    kills, wrong, whole, again, most, took = 0, 0, 0, 0, 0, 0.0
    while kills < times or not whole:
        state, log_now, killed = folder / f"state-{kind}-{whole}", Counter[str](), 0
        log.unlink(missing_ok=True)
        script = textwrap.dedent(DRIVER).format(
            path=sys.path, model=model, data=data, engine=kind, state=str(state), batch=BATCH
        )
        while True:
            with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as process:
                while process.poll() is None and not state.exists():
                    time.sleep(0.005)
                start = time.perf_counter()
                try:
                    # The first run is not disturbed: it shows how long one takes.
                    out, _ = process.communicate(timeout=choice.uniform(0, took) if took and kills < times else 600)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    kills, killed = kills + 1, killed + 1
                    continue
            took = max(took, time.perf_counter() - start)
            break
        log_now.update(log.read_text().split())
        ran = sum(log_now.values())
        whole, again = whole + 1, again + ran - len(log_now)
        most += killed * workers
        wrong += process.returncode != 0 or out.decode().strip() != expected or not 0 < len(log_now) <= SAMPLES // BATCH
    wrong += again > most
    print(
        f"{kind:12} the driver killed {kills} times in {whole} runs to the end: {whole - min(wrong, whole)} the same, "
        f"{again} batches ran again (at most {most})",
        flush=True,
    )
    return wrong


def main() -> int:
    """Lose and kill by all engines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--model", default="resnet20", choices=list(TASKS), metavar="NAME")
    parser.add_argument("--engines", nargs="+", default=["local", *KINDS], choices=["local", *KINDS], metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    wrong = 0
    for kind in [args.only] if args.only else args.engines:
        if args.only or kind == "local":
            with tempfile.TemporaryDirectory() as text:
                folder = Path(text)
                wrong += kill_driver(kind, args.model, folder, args.times, args.seed) if kind != "nodes" else 0
                wrong += lose_workers(kind, args.model, folder, args.times, args.seed) if kind != "local" else 0
        else:  # in a process of its own, which can join one cluster of Ray
            words = ["--times", str(args.times), "--model", args.model, "--seed", str(args.seed), "--only", kind]
            wrong += subprocess.run([sys.executable, __file__, *words], check=False).returncode
    if not args.only:
        print("nothing was lost" if not wrong else f"{wrong} WRONG")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
