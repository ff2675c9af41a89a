"""Post-training quantization of ResNet-101: accuracy before, calibration, accuracy after.

Run it from the sample folder: ``python ./src/resnet-101_calibration.py``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from images import CROP, FloatArray, LabelledImage, SampleError, batches, count_hits, load_batch, read_labels
from rich.console import Console
from rich.progress import track

import amct_onnx as amct

OUTPUTS = {False: "./outputs/calibration", True: "./outputs/nuq"}
"""The folder of the results, by ``--nuq``."""
NUQ_CFG = "./src/nuq_conf/nuq_quant.cfg"

ADVICE = "see ./amct_log/amct_onnx.log"
AMCT_ERRORS = (ValueError, RuntimeError, TypeError, OSError, ImportError)
ORT_ERRORS = (Exception,)
"""The errors of ONNX Runtime have no other common base class."""


def positive(text: str) -> int:
    """Parse a command line number that must be at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Quantize ResNet-101 and compare its accuracy before and after.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="./model/resnet-101.onnx", help="float ONNX model")
    parser.add_argument("--images", default="./data/images", help="folder with images and image_label.txt")
    parser.add_argument("--batch_size", type=positive, default=32, help="images per batch")
    parser.add_argument("--batch_num", type=positive, default=1, help="number of calibration batches")
    text = f"non-uniform weights: at most 16 or 32 values a layer, as {NUQ_CFG} says"
    parser.add_argument("--nuq", action="store_true", help=text)
    return parser.parse_args()


@contextmanager
def explained(action: str, advice: str, errors: tuple[type[Exception], ...] = AMCT_ERRORS) -> Iterator[None]:
    """Turn an error of a library into one line that says what failed, why, and what to do."""
    try:
        yield
    except errors as error:
        raise SampleError(f"{action} failed: {' '.join(str(error).split())}; {advice}") from error


class Model:
    """An ONNX model, opened with the AMCT session options."""

    def __init__(self, path: str) -> None:
        """Open the model and check that it takes the images of this sample."""
        if not Path(path).is_file():
            raise SampleError(f"model not found: {path}; run from the sample folder or pass --model")
        with explained("preparing amct.AMCT_SO", "reinstall amct_onnx with its dependencies"):
            options = amct.AMCT_SO
        with explained(f"loading {path}", "check that it is a complete ONNX model", ORT_ERRORS):
            self.session = ort.InferenceSession(path, options)
        self.path = path
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _takes_images(inputs[0].shape):
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise SampleError(f"{path} has the inputs {found}; use a model with one float input [N, 3, {CROP}, {CROP}]")
        self.input_name: str = inputs[0].name
        batch = inputs[0].shape[0]
        self.fixed_batch: int | None = batch if isinstance(batch, int) and batch > 0 else None

    def run(self, images: Sequence[LabelledImage]) -> FloatArray:
        """Compute the scores [images, classes]; a fixed batch is filled up."""
        data = load_batch(images, self.fixed_batch or len(images))
        with explained(f"running {self.path}", "check that the model takes these images", ORT_ERRORS):
            scores: FloatArray = self.session.run(None, {self.input_name: data})[0]
        return scores.reshape(len(data), -1)[: len(images)]


def _takes_images(shape: Sequence[int | str | None]) -> bool:
    """Tell whether a model input shape fits [N, 3, 224, 224]; sizes that are not fixed fit."""
    wanted = (None, 3, CROP, CROP)
    return len(shape) == len(wanted) and all(
        not isinstance(size, int) or size < 0 or want in (None, size) for size, want in zip(shape, wanted, strict=True)
    )


def choose_batch_size(model: Model, requested: int) -> int:
    """Return the batch size to use: the one that is fixed in the model, or else the requested one."""
    if model.fixed_batch in (None, requested):
        return requested
    print(
        f"[WARNING] {model.path} has the fixed batch size {model.fixed_batch}; --batch_size {requested} is ignored",
        file=sys.stderr,
    )
    return model.fixed_batch


def visible(images: Sequence[LabelledImage], batch_size: int, title: str) -> Iterable[Sequence[LabelledImage]]:
    """Split images into batches and show the progress on a terminal."""
    parts = list(batches(images, batch_size))
    return track(parts, title, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def evaluate(model: Model, images: Sequence[LabelledImage], batch_size: int, title: str) -> tuple[float, float]:
    """Measure the top-1 and top-5 accuracy of a model."""
    hits = np.zeros(2, np.int64)
    for part in visible(images, batch_size, title):
        hits += count_hits(model.run(part), part)
    return round(hits[0].item() / len(images), 5), round(hits[1].item() / len(images), 5)


def create_config(args: argparse.Namespace, folder: str) -> str:
    """Write config.json; its batch_num is that of the command line, with ``--nuq`` too."""
    config_file = f"{folder}/tmp/config.json"
    with explained(f"creating {folder}", "run from a folder where you may write"):
        Path(config_file).parent.mkdir(parents=True, exist_ok=True)
    with explained("create_quant_config", ADVICE):
        if args.nuq:
            cfg = Path(folder, "tmp", Path(NUQ_CFG).name)
            text = Path(NUQ_CFG).read_text(encoding="utf-8")
            cfg.write_text(re.sub(r"batch_num\s*:\s*\d+", f"batch_num : {args.batch_num}", text), encoding="utf-8")
            amct.create_quant_config(config_file, args.model, config_defination=str(cfg))
        else:
            amct.create_quant_config(
                config_file=config_file,
                model_file=args.model,
                skip_layers=[],
                batch_num=args.batch_num,
                activation_offset=True,
            )
    return config_file


def quantize(args: argparse.Namespace, images: Sequence[LabelledImage], batch_size: int) -> Model:
    """Quantize a model, calibrated with the first ``batch_num`` batches; return the simulation of the result."""
    folder = OUTPUTS[args.nuq]
    modified, record, prefix = f"{folder}/tmp/modified_model.onnx", f"{folder}/tmp/record.txt", f"{folder}/resnet-101"
    config_file = create_config(args, folder)
    with explained("quantize_model", ADVICE):
        amct.quantize_model(config_file, args.model, modified, record)
    calibration_model = Model(modified)
    for part in visible(images[: args.batch_num * batch_size], batch_size, "calibrate"):
        calibration_model.run(part)
    with explained("save_model", ADVICE):
        amct.save_model(modified, record, prefix)
    return Model(f"{prefix}_fake_quant_model.onnx")


def run(args: argparse.Namespace) -> None:
    """Evaluate, quantize, evaluate again, and print both accuracies."""
    images = read_labels(Path(args.images))
    model = Model(args.model)
    batch_size = choose_batch_size(model, args.batch_size)
    if args.batch_num * batch_size > len(images):
        raise SampleError(
            f"calibration needs {args.batch_num} x {batch_size} images, but {args.images} has {len(images)}; "
            "lower --batch_num or --batch_size, or add images"
        )
    before = evaluate(model, images, batch_size, "evaluate the float model")
    after = evaluate(quantize(args, images, batch_size), images, batch_size, "evaluate the quantized model")
    print(f"[INFO] ResNet101 before quantize top1:{before[0]:>10} top5:{before[1]:>10}")
    print(f"[INFO] ResNet101 after quantize  top1:{after[0]:>10} top5:{after[1]:>10}")


def main() -> int:
    """Run the sample; return the exit code."""
    args = parse_arguments()
    try:
        run(args)
    except SampleError as error:
        print(f"[ERROR] {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[ERROR] interrupted; the files in ./outputs are incomplete, run the sample again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
