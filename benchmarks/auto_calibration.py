"""`make auto`: accuracy-based automatic calibration of MobileNetV2, what it finds and what it costs.

MobileNetV2 of the shared test data may lose 0.5 points of top-1. The search sees the 250 calibration images only: 160
of them give the statistics; all of them, each in four views, judge a trial. 250 images cannot tell a loss of a few
tenths from none, so a trial is good enough when its loss and one standard error of it are within the target. The 750
test images are measured at the end and decide nothing; the exit code is 1 if the answer loses more than the target on
them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageOps
from shared_data import DATA, MODELS, FloatArray, Labelled, load, read_labels, spread, torch_style

import amct_onnx as amct
from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase

PROVIDERS = ["CPUExecutionProvider"]
NAMES = ("mobilenetv2", "squeezenet")
RESIZE, CROP, SHIFT, VIEWS = 256, 224, 16, 4
View = tuple[Image.Image, int]


@dataclass(frozen=True)
class Hits:
    """Which views were classified rightly, bool[images, views]: the metric of the search."""

    right: NDArray[np.bool_]

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * float(self.right.mean())

    def __str__(self) -> str:
        return f"{self.top1:.2f}"

    def loss_to(self, other: Hits) -> tuple[float, float]:
        """Points that `other` loses, and their standard error; views of one image are not independent."""
        losses = 100 * (self.right.astype(np.float64) - other.right).mean(axis=1)
        return float(losses.mean()), float(losses.std(ddof=1) / np.sqrt(len(losses)))


class Evaluator(AutoCalibrationEvaluatorBase):
    """Top-1 on labelled views; each call is timed."""

    def __init__(
        self, input_name: str, calibration: Sequence[FloatArray], views: Sequence[View], size: int, target: float
    ) -> None:
        self.input_name, self.calibration_batches, self.views = input_name, calibration, views
        self.size, self.target = size, target
        self.seconds: dict[str, list[float]] = {"calibration": [], "evaluate": []}

    def calibration(self, model_file: str) -> None:
        """Run all calibration batches."""
        start = time.perf_counter()
        session = ort.InferenceSession(model_file, amct.AMCT_SO, providers=PROVIDERS)
        for data in self.calibration_batches:
            session.run(None, {self.input_name: data})
        self.seconds["calibration"].append(time.perf_counter() - start)

    def evaluate(self, model_file: str) -> Hits:
        """Classify the views of the search."""
        start = time.perf_counter()
        result = Hits(hits(model_file, self.input_name, self.views, self.size).reshape(-1, VIEWS))
        self.seconds["evaluate"].append(time.perf_counter() - start)
        return result

    def metric_eval(self, original_metric: Hits, new_metric: Hits) -> tuple[bool, float]:
        """The loss and its standard error must be within the target."""
        loss, error = original_metric.loss_to(new_metric)
        return loss + error <= self.target, loss


def hits(model_file: str, input_name: str, views: Sequence[View], size: int) -> NDArray[np.bool_]:
    """Whether the label of each view has the best score."""
    return hits_of(ort.InferenceSession(model_file, providers=PROVIDERS), input_name, views, size)


def hits_of(session: ort.InferenceSession, input_name: str, views: Sequence[View], size: int) -> NDArray[np.bool_]:
    """The same of a session."""
    found = []
    for start in range(0, len(views), size):
        part = views[start : start + size]
        data = np.stack([torch_style(picture) for picture, _ in part])
        scores = session.run(None, {input_name: data})[0].reshape(len(part), -1)
        found.append(scores.argmax(axis=1) == [label for _, label in part])
    return np.concatenate(found)


def crops(image: Labelled, count: int) -> list[View]:
    """The first `count` of: the central crop, its mirror image, and crops towards two corners."""
    with Image.open(image.path) as file:
        picture = file.convert("RGB")
    scale = RESIZE / min(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - CROP) // 2, (size[1] - CROP) // 2
    centre, first, second = (
        picture.crop((left + shift, top + shift, left + shift + CROP, top + shift + CROP))
        for shift in (0, -SHIFT, SHIFT)
    )
    return [(view, image.label) for view in (centre, ImageOps.mirror(centre), first, second)[:count]]


def history(folder: Path) -> list[dict[str, object]]:
    """The trials of the record file, a row of JSON objects without commas."""
    text = (folder / "amct_log" / "accuracy_based_auto_calibration_record.json").read_text()
    return json.loads(f"[{text.replace('}{', '},{')}]")


def run(args: argparse.Namespace, folder: Path) -> int:
    """Search, measure and print; the exit code."""
    model = MODELS[args.model]
    path = str(model.path(args.data))
    images = read_labels(model.calibration, args.data)
    arrays = [load(image.path, model.prepare) for image in spread(images, args.calibration)]
    size = args.batch_size
    calibration = [np.stack(arrays[start : start + size]) for start in range(0, len(arrays), size)]
    views = [view for image in images for view in crops(image, VIEWS)]
    evaluator = Evaluator(model.input, calibration, views, size, args.target)
    amct.create_quant_config("config.json", path, batch_num=len(calibration))
    start = time.perf_counter()
    amct.accuracy_based_auto_calibration(path, evaluator, "config.json", "record.txt", "results/model")
    seconds = time.perf_counter() - start

    final_config = Path("results/accuracy_based_auto_calibration_final_config.json")
    if not final_config.is_file():
        print(f"no configuration loses at most {args.target} points: the target is MISSED")
        return 1
    trials = history(folder)
    layers = len(trials[0]["roll_back_config"])  # type: ignore[arg-type]
    final = json.loads(final_config.read_text())
    rolled_back = [
        name for name, quantized in trials[0]["roll_back_config"].items()  # type: ignore[attr-defined]
        if not final[name]["quant_enable"]
    ]  # fmt: skip
    print(f"{args.model}: target {args.target} points of top-1, {layers} layers")
    print(f"rolled back: {len(rolled_back)} of {layers} layers: {', '.join(rolled_back) or 'none'}")
    print(f"trials: {len(trials) - 1}, after the one with all layers quantized")
    for trial in trials:
        off = list(trial["roll_back_config"].values()).count(False)  # type: ignore[attr-defined]
        good, points = trial["metric_eval"]  # type: ignore[misc]
        print(f"  {off:>3} layers rolled back: {points:.2f} points lost, {'good enough' if good else 'too much'}")
    spent = evaluator.seconds
    evaluated = sum(spent["evaluate"])
    print(f"\n{'seconds':<56}{'':>4}{'one':>8}{'all':>8}")
    for what, times in (
        ("calibration (statistics)", spent["calibration"][:1]),
        ("calibration data through the ranking model", spent["calibration"][1:]),
        ("evaluate", spent["evaluate"]),
    ):
        print(f"{what:<56}{len(times):>3}x{sum(times) / max(len(times), 1):>8.2f}{sum(times):>8.2f}")
    rest = seconds - evaluated - sum(spent["calibration"])
    print(f"{'everything else: preparing, lowering, reading, writing':<56}{'':>4}{'':>8}{rest:>8.2f}")
    print(f"{'the whole search':<56}{'':>4}{'':>8}{seconds:>8.2f}", end="")
    print(f"  = {seconds / spent['calibration'][0]:.1f} calibrations")

    start = time.perf_counter()
    quantize_all(path, model.input, calibration)
    print(f"{'for comparison: quantize_model, calibration, save_model':<56}{'':>4}{'':>8}", end="")
    print(f"{time.perf_counter() - start:>8.2f}")

    test = [view for image in read_labels(model.test, args.data) for view in crops(image, 1)]
    models = {
        "float": path,
        "all layers quantized": "all/model_fake_quant_model.onnx",
        "answer of the search": "results/model_fake_quant_model.onnx",
    }
    print(f"\n{f'{len(test)} test images':<24}{'top-1':>8}{'lost':>18}")
    reference, loss = None, 0.0
    for name, file in models.items():
        found = Hits(hits(file, model.input, test, size).reshape(-1, 1))
        reference = reference or found
        loss, error = reference.loss_to(found)
        shown = "" if found is reference else f"{loss:.2f} +- {error:.2f}"
        print(f"{name:<24}{found.top1:>8.2f}{shown:>18}", flush=True)
    met = loss <= args.target
    print(
        f"\non the test images {loss:.2f} points are lost: the target of {args.target} is {'met' if met else 'MISSED'}"
    )
    return 0 if met else 1


def quantize_all(path: str, input_name: str, calibration: Sequence[FloatArray]) -> None:
    """The usual way, with all layers."""
    amct.quantize_model("config.json", path, "all.onnx", "all.txt")
    session = ort.InferenceSession("all.onnx", amct.AMCT_SO, providers=PROVIDERS)
    for data in calibration:
        session.run(None, {input_name: data})
    amct.save_model("all.onnx", "all.txt", "all/model")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="mobilenetv2", help="which model")
    parser.add_argument("--target", type=float, default=0.5, help="points of top-1 that may be lost (default 0.5)")
    parser.add_argument("--calibration", type=int, default=160, help="images for the statistics (default 160)")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch (default 32)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/ and images/ ($AMCT_TEST_DATA)")
    args = parser.parse_args()
    if not MODELS[args.model].path(args.data).is_file():
        print(f"[ERROR] no such model: {MODELS[args.model].path(args.data)}; pass --data", file=sys.stderr)
        return 1
    args.data = args.data.resolve()
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return run(args, Path(folder))
        finally:
            os.chdir("/")


if __name__ == "__main__":
    sys.exit(main())
