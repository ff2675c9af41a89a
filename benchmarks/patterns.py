"""`make patterns`: whether two or three operators in a row are slower in int8 than in float in ONNX Runtime.

Each pattern is quantized as users do it, and timed beside its float model: one thread, runs that take turns. The ratio
is that of the fastest runs, which other work on the machine disturbs least; what seems slow is timed again, longer.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from pattern_models import KINDS, build, data, names

import amct_onnx

GOLDEN = Path(__file__).parent.parent / "tests" / "e2e" / "patterns.txt"
HEADER = f"# ONNX Runtime {ort.__version__}"
SLOW = 1.05


def open_session(model: str | bytes, optimised: Path | None = None) -> ort.InferenceSession:
    """A session of one thread; it writes its optimised graph where that is asked for."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def quantized(kind: str, steps: tuple[str, ...], folder: Path, *, full_int8: bool = False) -> str:
    """The file of a pattern in int8."""
    model, feeds = build(kind, steps), data(kind)
    result = amct_onnx.quantize(model, feeds, effort="fast", algorithm="min_max", full_int8=full_int8)
    return str(result.save(folder / "pattern", inspect=False).files[0])


def kernels(file: str, folder: Path) -> str:
    """The nodes of the graph that ONNX Runtime makes of a file: how many of each operator."""
    optimised = folder / "optimised.onnx"
    open_session(file, optimised)
    counted = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counted.items()))


def ratio(
    before: ort.InferenceSession, after: ort.InferenceSession, feed: dict[str, np.ndarray], seconds: float
) -> float:
    """The fastest run of `after` over that of `before`."""
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for which, session in enumerate((before, after)):
            session.run(None, feed)  # its weights are in the caches then
            start = time.perf_counter()
            session.run(None, feed)
            best[which] = min(best[which], time.perf_counter() - start)
        rounds += 1
    return best[1] / best[0]


def measure(kind: str, steps: tuple[str, ...], folder: Path) -> tuple[float, str]:
    """The ratio of a pattern and its kernels in int8."""
    file, feed = quantized(kind, steps, folder), data(kind)[0]
    before, after = open_session(build(kind, steps).SerializeToString()), open_session(file)
    found = ratio(before, after, feed, 0.04)
    for again in (0.2, 1.0):
        if found > SLOW:
            found = min(found, ratio(before, after, feed, again))
    return found, kernels(file, folder)


def main() -> int:
    """Print each pattern that is slower than float, and the slowest steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=sorted(KINDS), choices=sorted(KINDS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[2])
    parser.add_argument("--part", type=float, default=1.0, help="measure this part only, drawn at random")
    parser.add_argument("--write", action="store_true", help="renew the golden table of kernels of pairs")
    args = parser.parse_args()
    lines, slow = [], []
    with tempfile.TemporaryDirectory() as name:
        folder, chance, number = Path(name), random.Random(0), 0
        for kind, length in ((kind, length) for kind in args.kinds for length in args.lengths):
            for steps in names(kind, length):
                if chance.random() > args.part:
                    continue
                if args.write:
                    lines.append(f"{kind} {' '.join(steps)}: {kernels(quantized(kind, steps, folder), folder)}")
                    continue
                found, used = measure(kind, steps, folder)
                number += 1
                if found > SLOW:
                    slow.append(found)
                    print(f"{found:5.2f}  {kind} {' '.join(steps)}: {used}", flush=True)
    if args.write:
        GOLDEN.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
        return 0
    print(f"{len(slow)} of {number} patterns are slower than {SLOW} times float")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
