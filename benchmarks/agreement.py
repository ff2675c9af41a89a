"""`make agreement`: what quantization costs on real models, and whether deploy and fake-quant models agree.

Each model is calibrated on images of the calibration part. Then the float model, the fake-quant model (by ONNX Runtime)
and the deploy model (by `deployed_session`, in integers) classify the test part.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.progress import track
from shared_data import DATA, MODELS, FloatArray, SharedModel, batches, read_labels, spread

import amct_onnx as amct

KINDS = ("float", "fake-quant", "deploy")
HEADER = (
    f"{'model':<13}{'images':>7}  {'float top1/5':>14}  {'fake-quant':>14}  {'deploy':>14}  {'differ':>7}"
    f"  {'deploy/fq dB':>12}  {'fq/float dB':>11}  {'deploy/float dB':>15}"
)


@dataclass
class Power:
    """Signal and noise summed over all batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: FloatArray, got: FloatArray) -> None:
        self.signal += float(np.sum(np.square(reference, dtype=np.float64)))
        self.noise += float(np.sum(np.square(reference.astype(np.float64) - got)))

    @property
    def decibel(self) -> float:
        """Signal to quantization noise ratio."""
        return float("inf") if self.noise == 0 else 10 * float(np.log10(self.signal / self.noise))


@dataclass
class Tally:
    """What one model's test images add up to."""

    images: int = 0
    differing: int = 0
    top1: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    top5: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    deploy_to_fake_quant: Power = field(default_factory=Power)
    fake_quant_to_float: Power = field(default_factory=Power)
    deploy_to_float: Power = field(default_factory=Power)

    def add(self, scores: dict[str, FloatArray], labels: list[int]) -> None:
        self.images += len(labels)
        best = {kind: np.argsort(-scores[kind], axis=1, kind="stable")[:, :5] for kind in KINDS}
        for kind in KINDS:
            hits = best[kind] == np.asarray(labels)[:, None]
            self.top1[kind] += int(hits[:, 0].sum())
            self.top5[kind] += int(hits.sum())
        self.differing += int((best["deploy"][:, 0] != best["fake-quant"][:, 0]).sum())
        self.deploy_to_fake_quant.add(scores["fake-quant"], scores["deploy"])
        self.fake_quant_to_float.add(scores["float"], scores["fake-quant"])
        self.deploy_to_float.add(scores["float"], scores["deploy"])

    def line(self, name: str) -> str:
        share = {k: f"{100 * self.top1[k] / self.images:.2f}/{100 * self.top5[k] / self.images:.2f}" for k in KINDS}
        return (
            f"{name:<13}{self.images:>7}  {share['float']:>14}  {share['fake-quant']:>14}  {share['deploy']:>14}"
            f"  {self.differing:>7}  {self.deploy_to_fake_quant.decibel:>12.1f}"
            f"  {self.fake_quant_to_float.decibel:>11.1f}  {self.deploy_to_float.decibel:>15.1f}"
        )


def visible(
    parts: Iterable[tuple[FloatArray, list[int]]], title: str, total: int
) -> Iterable[tuple[FloatArray, list[int]]]:
    """Progress on stderr when that is a terminal."""
    console = Console(stderr=True)
    return track(parts, title, total=total, console=console, transient=True, disable=not sys.stderr.isatty())


def quantize(name: str, model: SharedModel, args: argparse.Namespace, folder: Path) -> None:
    """Calibrate on `--calibration` images and save both models in `folder`."""
    config, modified, record = (str(folder / file) for file in ("config.json", "modified.onnx", "record.txt"))
    images = spread(read_labels(model.calibration, args.data), args.calibration)
    count = -(-len(images) // args.batch_size)
    amct.create_quant_config(config, str(model.path(args.data)), batch_num=count)
    amct.quantize_model(config, str(model.path(args.data)), modified, record)
    session = ort.InferenceSession(modified, amct.AMCT_SO)
    for data, _ in visible(batches(images, args.batch_size, model.prepare), f"{name}: calibrate", count):
        session.run(None, {model.input: data})
    amct.save_model(modified, record, str(folder / "model"))


def measure(name: str, model: SharedModel, args: argparse.Namespace, folder: Path) -> Tally:
    """Classify the test images by all three models."""
    providers = ["CPUExecutionProvider"]
    sessions = {
        "float": ort.InferenceSession(str(model.path(args.data)), providers=providers),
        "fake-quant": ort.InferenceSession(str(folder / "model_fake_quant_model.onnx"), providers=providers),
        "deploy": amct.deployed_session(folder / "model_deploy_model.onnx"),
    }
    images = read_labels(model.test, args.data)
    images = images if args.limit is None else spread(images, args.limit)
    count = -(-len(images) // args.batch_size)
    tally = Tally()
    for data, labels in visible(batches(images, args.batch_size, model.prepare), f"{name}: classify", count):
        scores = {kind: session.run(None, {model.input: data})[0] for kind, session in sessions.items()}
        tally.add({kind: array.reshape(len(labels), -1) for kind, array in scores.items()}, labels)
    return tally


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which models")
    parser.add_argument("--limit", type=int, help="number of test images, all by default")
    parser.add_argument("--calibration", type=int, default=160, help="number of calibration images")
    parser.add_argument("--batch_size", type=int, default=32, help="images per batch")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/ and images/ ($AMCT_TEST_DATA)")
    return parser.parse_args()


def main() -> int:
    """Print one line a model; the exit code is 1 where deploy and fake-quant models do not agree."""
    args = parse_arguments()
    missing = [str(MODELS[name].path(args.data)) for name in args.models if not MODELS[name].path(args.data).is_file()]
    if missing:
        print(f"[ERROR] no such model: {missing[0]}; pass --data or set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    print(HEADER)
    agree = True
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            quantize(name, MODELS[name], args, Path(folder))
            tally = measure(name, MODELS[name], args, Path(folder))
        print(tally.line(name), flush=True)
        agree = agree and tally.differing == 0
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
