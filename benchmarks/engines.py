"""`make engines`: every shared model by every engine, which have to write what one process writes, to the last byte.

The engines are `processes:2`, `ray` on this machine, and a cluster of Ray with two nodes, of which one is lost at
random in each run and comes back. The exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine_runs import KINDS, calibration, digest_of, running
from tasks import TASKS

import amct_onnx

EFFORTS, TARGETS = ("fast", "default"), ("onnxruntime", "ascend")
SAMPLES, BATCH = 32, 4


def digests(kind: str, names: list[str], folder: Path) -> None:
    """Print a line with model, target, effort, digest and seconds for each run of one engine."""
    choice = random.Random(1)
    with running(kind) as run:
        for name, target, effort in itertools.product(names, TARGETS, EFFORTS):
            data, model = calibration(name, folder, SAMPLES), str(TASKS[name].case.model)
            options: dict[str, Any] = {"target": target, "effort": effort, "batch_size": BATCH}

            def call(model: str = model, data: Path = data, options: dict[str, Any] = options) -> Any:
                return amct_onnx.quantize(model, str(data), engine=run.engine, progress=False, **options)

            start = time.perf_counter()
            result = run.losing(call, choice.uniform(0, 3)) if kind == "nodes" else call()
            print(name, target, effort, digest_of(result), f"{time.perf_counter() - start:.1f}", flush=True)


def main() -> int:
    """Compare all engines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="NAME")
    parser.add_argument("--engines", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="NAME")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        digests(args.only, args.models, args.folder)
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[str, str] = {}
        for kind in ("local", *args.engines):
            command = [sys.executable, __file__, "--only", kind, "--folder", folder, "--models", *args.models]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                count = 0
                for line in process.stdout:
                    name, target, effort, digest, seconds = line.split()
                    key = f"{name} {target} {effort}"
                    same = expected.setdefault(key, digest) == digest
                    wrong, count = wrong + (not same), count + 1
                    print(f"{'same' if same else 'DIFFERS':8}{kind:13}{key:35}{seconds:>7} s", flush=True)
            wrong += process.returncode != 0 or count != len(args.models) * len(TARGETS) * len(EFFORTS)
    print("all engines write the same" if not wrong else f"{wrong} WRONG")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
