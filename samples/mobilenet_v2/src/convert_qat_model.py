"""Convert a MobileNetV2 that was trained with quantization nodes, and compare its accuracy before and after.

Run it from the sample folder: ``python ./src/convert_qat_model.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from images import FloatArray, LabelledImage, SampleError, batches, count_hits, load_batch, read_labels
from rich.console import Console
from rich.progress import track

import amct_onnx as amct

SAVE_PATH = "./outputs/qat/mobilenet_v2"
RECORD_FILE = "./outputs/qat/record.txt"
ADVICE = "see ./amct_log/amct_onnx.log"
AMCT_ERRORS = (ValueError, RuntimeError, TypeError, OSError, ImportError)
ORT_ERRORS = (Exception,)
"""The errors of ONNX Runtime have no other common base class."""


class Model:
    """An open ONNX model that takes the images of this sample."""

    def __init__(self, path: str, *, deployed: bool = False) -> None:
        """Open a model; a deploy model needs ``deployed``, since ONNX Runtime has no Ascend operators."""
        if not Path(path).is_file():
            raise SampleError(f"model not found: {path}; run from the sample folder or pass --model")
        options = ort.SessionOptions()
        # int8 products that overflow on x86 CPUs without VNNI are computed exactly there too.
        options.add_session_config_entry("session.x64quantprecision", "1")
        with explained(f"loading {path}", "check that it is a complete ONNX model", ORT_ERRORS):
            self.session = amct.deployed_session(path) if deployed else ort.InferenceSession(path, options)
        self.path = path
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
        if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or shape[2] != shape[3]:
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise SampleError(f"{path} has the inputs {found}; use a model with one float input [N, 3, size, size]")
        self.input_name: str = inputs[0].name
        self.size: int = shape[2]
        self.fixed_batch: int | None = shape[0] if isinstance(shape[0], int) else None

    def run(self, images: Sequence[LabelledImage]) -> FloatArray:
        """Compute the scores [images, classes]; a fixed batch is filled up with zeros."""
        data = load_batch(images, self.size)
        if self.fixed_batch is not None:
            data = np.concatenate([data, np.zeros((self.fixed_batch - len(data), *data.shape[1:]), np.float32)])
        with explained(f"running {self.path}", "check that the model takes these images", ORT_ERRORS):
            scores: FloatArray = self.session.run(None, {self.input_name: data})[0]
        return scores.reshape(len(data), -1)[: len(images)]


@contextmanager
def explained(action: str, advice: str, errors: tuple[type[Exception], ...] = AMCT_ERRORS) -> Iterator[None]:
    """Turn an error of a library into one line that says what failed, why, and what to do."""
    try:
        yield
    except errors as error:
        raise SampleError(f"{action} failed: {' '.join(str(error).split())}; {advice}") from error


def visible(images: Sequence[LabelledImage], size: int, title: str) -> Iterable[Sequence[LabelledImage]]:
    """Split images into batches and show the progress on a terminal."""
    console = Console(stderr=True)
    return track(list(batches(images, size)), title, console=console, transient=True, disable=not sys.stderr.isatty())


def evaluate(model: Model, images: Sequence[LabelledImage], batch_size: int, title: str) -> float:
    """Measure the top-1 accuracy of a model, in percent."""
    parts = visible(images, model.fixed_batch or batch_size, title)
    return round(100 * sum(count_hits(model.run(part), part) for part in parts) / len(images), 3)


def prediction(model: Model, image: LabelledImage) -> tuple[int, float]:
    """The class of an image and its probability (softmax)."""
    scores = model.run([image])[0].astype(np.float64)
    odds = np.exp(scores - scores.max())
    return int(scores.argmax()), float(odds.max() / odds.sum())


def positive(text: str) -> int:
    """Parse a command line number that must be at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Convert a MobileNetV2 with quantization nodes and compare its accuracy before and after.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="./model/mobilenet_v2_qat.onnx", help="ONNX model with Q/DQ nodes")
    parser.add_argument("--images", default="./data/qat", help="folder with images and image_label.txt")
    parser.add_argument("--batch_size", type=positive, default=32, help="images per batch")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Convert, evaluate the three models, and print what they say."""
    images = read_labels(Path(args.images))
    original = Model(args.model)  # before anything is written
    with explained("convert_qat_model", ADVICE):
        amct.convert_qat_model(model_file=args.model, save_path=SAVE_PATH, record_file=RECORD_FILE)
    models = {
        "before convert": original,
        "fake-quant model": Model(f"{SAVE_PATH}_fake_quant_model.onnx"),
        "deploy model": Model(f"{SAVE_PATH}_deploy_model.onnx", deployed=True),
    }
    lines = []
    for name, model in models.items():
        top1 = evaluate(model, images, args.batch_size, f"evaluate: {name}")
        category, probability = prediction(model, images[0])
        lines.append(f"{name:<17}top1: {top1:>6} %  {images[0].path.name}: category {category} prob {probability:.3f}")
    for line in lines:
        print(f"[INFO] MobileNetV2 QAT {line}")


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
