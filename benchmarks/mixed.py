"""`make mixed`: searches for mixed precision with targets of accuracy, what they find and whether that holds.

The search sees the calibration images of the shared data only: 160 of them calibrate, and all of them, each in some
views, judge. The test images are others, and decide nothing. On a CPU whose int8 kernels saturate, target onnxruntime
is quantized with reduce_range. Then many short searches follow over the shared models (`promises.py`). The exit code is
1 where a search took 12 evaluations or more, that of the float model included, or where more than one of twenty targets
that are said to be met is missed on test data.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from auto_calibration import PROVIDERS, VIEWS, Hits, View, crops, hits_of
from processes import machine
from promises import promises
from shared_data import DATA, MODELS, load, read_labels, spread

import amct_onnx as amct
from amct_onnx.measure.latency import measure_latency
from amct_onnx.run.saturation import saturates

NAMES = ("mobilenetv2", "squeezenet")
TARGETS = ("onnxruntime", "ascend")
MOST = 12
FLOAT, INT8, MIXED = "float", "all in int8", "answer of the search"


@dataclass
class Judge:
    """Top-1 in percent of images, of `each` views; each call is timed."""

    input_name: str
    views: Sequence[View]
    size: int
    each: int
    seconds: list[float] = field(default_factory=list)

    def __call__(self, session: Any) -> Any:
        """Classify the views; one number for each image, since its views are not independent."""
        start = time.perf_counter()
        right = hits_of(session, self.input_name, self.views, self.size)
        self.seconds.append(time.perf_counter() - start)
        return 100 * right.reshape(len(self.views) // self.each, -1).mean(axis=1)


def sessions(path: str, quantized: Sequence[amct.QuantizedModel], folder: Path) -> list[ort.InferenceSession]:
    """The float model and quantized ones, as their users open them."""
    opened = [ort.InferenceSession(path, providers=PROVIDERS)]
    for number, model in enumerate(quantized):
        file = model.save(folder / str(number), inspect=False).files[0]
        deployed = model.target == "ascend"
        opened.append(amct.deployed_session(file) if deployed else ort.InferenceSession(file, providers=PROVIDERS))
    return opened


def run(args: argparse.Namespace, target: str, folder: Path) -> bool:
    """Search, measure and print; whether the search did what it should."""
    shared = MODELS[args.model]
    path = str(shared.path(args.data))
    images = read_labels(shared.calibration, args.data)
    calibration = np.stack([load(image.path, shared.prepare) for image in spread(images, args.calibration)])
    views = [view for image in images[: args.images] for view in crops(image, args.views)]
    judge = Judge(shared.input, views, args.batch_size, args.views)
    options = {"target": target, "reduce_range": target == "onnxruntime" and saturates()}
    start = time.perf_counter()
    plain = amct.quantize(path, calibration, **options)
    calibrated = time.perf_counter() - start
    start = time.perf_counter()
    effects = amct.sensitivity(plain, calibration)
    measured = time.perf_counter() - start
    start = time.perf_counter()
    answer = amct.quantize(path, calibration, evaluator=judge, max_drop=args.max_drop, **options)
    seconds = time.perf_counter() - start
    precision = answer.precision
    assert precision is not None

    extra = ", reduce_range" if options["reduce_range"] else ""
    print(f"\n{args.model} for {target}{extra}: at most {args.max_drop} points of top-1 may be lost")
    print(effects)
    print(f"{'calibration and lowering':<40}{calibrated:>8.1f} s")
    print(f"{f'sensitivity, {effects.samples} samples':<40}{measured:>8.1f} s")
    print(f"{'the search, calibration included':<40}{seconds:>8.1f} s, {sum(judge.seconds):.1f} s of it evaluations")
    print(f"\nevaluations: {len(judge.seconds)}, that of the float model included ({precision.reference:.2f} %)")
    print(f"{'':>4}{'in float':>10}{'int16':>8}{'cost':>9}{'top-1':>9}")
    for number, trial in enumerate(precision.evaluations):
        mark = "<- chosen" if number == precision.chosen else "" if trial.met else "not sure" if trial.enough else "low"
        counts = f"{len(trial.float_layers):>10}{len(trial.wide_layers):>8}"
        print(f"{number:>4}{counts}{trial.cost:>9.1%}{trial.value:>9.2f}  {mark}")
    for what, names in (("float", precision.result.float_layers), ("int16", precision.result.wide_layers)):
        print(f"{what}: {', '.join(names) or 'none'}")

    test = [view for image in read_labels(shared.test, args.data)[: args.test] for view in crops(image, 1)]
    opened = sessions(path, (plain, answer), folder)
    found = [Hits(hits_of(session, shared.input, test, args.batch_size).reshape(-1, 1)) for session in opened]
    values = (precision.reference, precision.evaluations[0].value, precision.result.value)
    header = f"{len(views)} views of the search"
    print(f"\n{'top-1':<24}{header:>26}{f'{len(test)} test images':>20}{'lost there':>18}{'latency':>12}")
    feed = {shared.input: calibration[:1]}
    for name, value, hit, session in zip((FLOAT, INT8, MIXED), values, found, opened, strict=True):
        loss, error = found[0].loss_to(hit)
        lost = "" if name == FLOAT else f"{loss:.2f} +- {error:.2f}"
        # deployed_session only shows what a chip computes: its time says nothing.
        timed = target != "ascend" and name != FLOAT
        latency = f"{1 / measure_latency(opened[0], session, feed, budget=4).speedup:.2f}" if timed else ""
        print(f"{name:<24}{value:>26.2f}{hit.top1:>20.2f}{lost:>18}{latency:>12}", flush=True)
    print("latency: against that of the float model" if target != "ascend" else "latency: only the chip has one")
    return len(judge.seconds) < MOST


def main(words: Sequence[str] | None = None) -> int:
    """Print what was found for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=NAMES, default="mobilenetv2", help="which model")
    add("--targets", nargs="*", choices=TARGETS, default=list(TARGETS), help="which targets (both)")
    add("--max_drop", type=float, default=1.0, help="points of top-1 that may be lost (1.0)")
    add("--runs", type=int, default=20, help="short searches over the shared models and the networks (20)")
    add("--first_draw", type=int, default=0, help="number of the first of their draws of calibration samples (0)")
    add("--effort", choices=("fast", "default", "best"), default="default", help="that of the short searches (default)")
    add("--calibration", type=int, default=160, help="images for the statistics (160)")
    add("--views", type=int, default=VIEWS, help=f"views of each image that judge ({VIEWS})")
    add("--images", type=int, help="most images that judge (all 250)")
    add("--test", type=int, help="most test images (all 750)")
    add("--batch_size", type=int, default=16, help="views at once (16)")
    add("--data", type=Path, default=DATA, help="folder with models/ and images/ ($AMCT_TEST_DATA)")
    args = parser.parse_args(words)
    if not MODELS[args.model].path(args.data).is_file():
        print(f"[ERROR] no such model: {MODELS[args.model].path(args.data)}; pass --data", file=sys.stderr)
        return 1
    print("make mixed")
    print(machine())
    with tempfile.TemporaryDirectory(prefix="mixed_") as folder:
        good = [run(args, target, Path(folder)) for target in args.targets]
    good += [promises(args.runs, args.effort, args.first_draw)] if args.runs else []
    return 0 if all(good) else 1


if __name__ == "__main__":
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    sys.exit(main())
