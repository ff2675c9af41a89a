"""Accuracy-based automatic calibration of MobileNetV2: quantize as many layers as the accuracy allows.

Run it from the sample folder: ``python ./src/mobilenet_v2_accuracy_based_auto_calibration.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort
from images import FloatArray, LabelledImage, SampleError, batches, count_hits, load_batch, read_labels
from rich.console import Console
from rich.progress import track

import amct_onnx as amct
from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase

RESULTS = "./results"
CONFIG_FILE = f"{RESULTS}/config.json"
RECORD_FILE = f"{RESULTS}/record.txt"
SAVE_DIR = f"{RESULTS}/mobilenet_v2"
FINAL_CONFIG = f"{RESULTS}/accuracy_based_auto_calibration_final_config.json"

AMCT_ERRORS = (ValueError, RuntimeError, TypeError, OSError, ImportError)
ORT_ERRORS = (Exception,)
"""The errors of ONNX Runtime have no other common base class."""


class Model:
    """An ONNX model, opened with the AMCT session options."""

    def __init__(self, path: str) -> None:
        """Open the model and check that it takes the images of this sample."""
        if not Path(path).is_file():
            raise SampleError(f"model not found: {path}; run from the sample folder or pass --model")
        with explained(f"loading {path}", "check that it is a complete ONNX model", ORT_ERRORS):
            self.session = ort.InferenceSession(path, amct.AMCT_SO)
        self.path = path
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
        square = len(shape) == 4 and shape[1] == 3 and isinstance(shape[2], int) and shape[2] == shape[3]
        if not square or isinstance(shape[0], int):
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise SampleError(f"{path} has the inputs {found}; use a model with one float input [N, 3, size, size]")
        self.input_name: str = inputs[0].name
        self.size: int = shape[2]

    def run(self, images: Sequence[LabelledImage]) -> FloatArray:
        """Compute the scores [images, classes]."""
        data = load_batch(images, self.size)
        with explained(f"running {self.path}", "check that the model takes these images", ORT_ERRORS):
            scores: FloatArray = self.session.run(None, {self.input_name: data})[0]
        return scores.reshape(len(data), -1)


class ModelEvaluator(AutoCalibrationEvaluatorBase):
    """Calibrates with the first images, measures top-1 on all of them, and allows a drop of some percent."""

    def __init__(self, images: Sequence[LabelledImage], batch_size: int, batch_num: int, max_drop: float) -> None:
        """Keep the data and the target."""
        super().__init__()
        self.images, self.batch_size, self.batch_num, self.max_drop = images, batch_size, batch_num, max_drop
        self.accuracies: list[float] = []

    def calibration(self, model_file: str) -> None:
        """Run ``batch_num`` batches through a calibration model."""
        model = Model(model_file)
        for part in visible(self.images[: self.batch_num * self.batch_size], self.batch_size, "calibrate"):
            model.run(part)

    def evaluate(self, model_file: str) -> float:
        """Measure the top-1 accuracy of a model, in percent."""
        model = Model(model_file)
        parts = visible(self.images, self.batch_size, "evaluate")
        hits = sum(count_hits(model.run(part), part) for part in parts)
        self.accuracies.append(round(100 * hits / len(self.images), 3))
        return self.accuracies[-1]

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        """Tell whether the accuracy is good enough, and how much was lost."""
        loss = round(original_metric - new_metric, 3)
        return loss <= self.max_drop, loss


@contextmanager
def explained(action: str, advice: str, errors: tuple[type[Exception], ...] = AMCT_ERRORS) -> Iterator[None]:
    """Turn an error of a library into one line that says what failed, why, and what to do."""
    try:
        yield
    except SampleError:
        raise
    except errors as error:
        raise SampleError(f"{action} failed: {' '.join(str(error).split())}; {advice}") from error


def visible(images: Sequence[LabelledImage], size: int, title: str) -> Iterable[Sequence[LabelledImage]]:
    """Split images into batches and show the progress on a terminal."""
    console = Console(stderr=True)
    return track(list(batches(images, size)), title, console=console, transient=True, disable=not sys.stderr.isatty())


def positive(text: str) -> int:
    """Parse a command line number that must be at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def percentage(text: str) -> float:
    """Parse a command line number from 0 to 100."""
    number = float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no percentage from 0 to 100")
    return number


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Quantize as many layers of MobileNetV2 as its accuracy allows.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="./model/mobilenet_v2.onnx", help="float ONNX model")
    parser.add_argument("--images", default="./data/images", help="folder with images and image_label.txt")
    parser.add_argument("--batch_size", type=positive, default=32, help="images per batch")
    parser.add_argument("--batch_num", type=positive, default=5, help="number of calibration batches")
    parser.add_argument("--max_drop", type=percentage, default=0.5, help="percent of top-1 that may be lost")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Configure, search, and say what came of it."""
    images = read_labels(Path(args.images))
    if args.batch_num * args.batch_size > len(images):
        raise SampleError(
            f"calibration needs {args.batch_num} x {args.batch_size} images, but {args.images} has {len(images)}; "
            "lower --batch_num or --batch_size, or add images"
        )
    Model(args.model)  # before anything is written
    evaluator = ModelEvaluator(images, args.batch_size, args.batch_num, args.max_drop)
    advice = "see ./amct_log/amct_onnx.log"
    with explained("create_quant_config", advice):
        amct.create_quant_config(CONFIG_FILE, args.model, skip_layers=[], batch_num=args.batch_num)
    Path(FINAL_CONFIG).unlink(missing_ok=True)  # of an earlier run: it tells below whether there is an answer
    with explained("accuracy_based_auto_calibration", advice):
        amct.accuracy_based_auto_calibration(
            model_file=args.model,
            model_evaluator=evaluator,
            config_file=CONFIG_FILE,
            record_file=RECORD_FILE,
            save_dir=SAVE_DIR,
            strategy="BinarySearch",
            sensitivity="CosineSimilarity",
        )
    report(evaluator)


def report(evaluator: ModelEvaluator) -> None:
    """Print the accuracies, and what was rolled back."""
    print(f"[INFO] MobileNetV2 before quantize           top1: {evaluator.accuracies[0]:>7} %")
    print(f"[INFO] MobileNetV2 with all layers quantized top1: {evaluator.accuracies[1]:>7} %")
    if not Path(FINAL_CONFIG).is_file():
        print(f"[INFO] no quantized model loses at most {evaluator.max_drop} %")
        return
    config = json.loads(Path(FINAL_CONFIG).read_text(encoding="utf-8"))
    layers = {name: entry["quant_enable"] for name, entry in config.items() if isinstance(entry, dict)}
    rolled_back = [name for name, quantized in layers.items() if not quantized]
    trials = len(evaluator.accuracies) - 2
    after = Model(f"{SAVE_DIR}_fake_quant_model.onnx")
    accuracy = evaluator.evaluate(after.path)
    print(f"[INFO] MobileNetV2 after auto-calibration    top1: {accuracy:>7} %")
    print(f"[INFO] {len(rolled_back)} of {len(layers)} layers rolled back after {trials} trials")


def main() -> int:
    """Run the sample; return the exit code."""
    args = parse_arguments()
    try:
        run(args)
    except SampleError as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[ERROR] interrupted; run the sample again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
