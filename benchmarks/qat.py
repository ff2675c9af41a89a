"""`make qat`: does a converted Q/DQ model answer what the Q/DQ model answers?

The model of the shared data is converted by `convert_qat_model`. Then the Q/DQ model, the fake-quant model (both by
ONNX Runtime) and the deploy model (by `deployed_session`, in integers) classify the test part. ONNX Runtime runs the
Q/DQ model twice: as written, in float, and optimized, with its own integer kernels. Where those two differ, rounding
alone decides, and no conversion can agree with both.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.progress import track
from shared_data import DATA, FloatArray, batches, read_labels, spread, torch_style

import amct_onnx as amct

MODEL = "mobilenetv2_qdq_per_tensor.onnx"
TEST = "imagenet1000/test_label.txt"
KINDS = ("Q/DQ as written", "Q/DQ optimized", "fake-quant", "deploy")
MAXIMUM_LOSS = 0.5  # points of top-1
PREPARE = partial(torch_style, resize=256, crop=224)


@dataclass
class Tally:
    """Hits of each kind, and on how many images its best class is that of the Q/DQ model as written."""

    images: int = 0
    top1: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    top5: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    agree: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, scores: dict[str, FloatArray], label: int) -> None:
        """Count one image; scores are [1, classes]."""
        self.images += 1
        best = {kind: np.argsort(-scores[kind][0], kind="stable")[:5] for kind in KINDS}
        for kind in KINDS:
            self.top1[kind] += int(best[kind][0] == label)
            self.top5[kind] += int(label in best[kind])
            self.agree[kind] += int(best[kind][0] == best[KINDS[0]][0])

    def share(self, hits: dict[str, int], kind: str) -> float:
        """In percent."""
        return 100 * hits[kind] / self.images


def sessions(model: Path, folder: Path) -> dict[str, ort.InferenceSession]:
    """Convert the model and open all kinds."""
    amct.convert_qat_model(str(model), str(folder / "model"), str(folder / "record.txt"))
    as_written = ort.SessionOptions()
    as_written.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    cpu = ["CPUExecutionProvider"]
    return {
        "Q/DQ as written": ort.InferenceSession(str(model), as_written, providers=cpu),
        "Q/DQ optimized": ort.InferenceSession(str(model), providers=cpu),
        "fake-quant": ort.InferenceSession(str(folder / "model_fake_quant_model.onnx"), providers=cpu),
        "deploy": amct.deployed_session(folder / "model_deploy_model.onnx"),
    }


def main() -> int:
    """Print one line a kind; the exit code is 1 if a converted model loses more than `MAXIMUM_LOSS` points of top-1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--limit", type=int, help="number of test images, all by default")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/ and images/ ($AMCT_TEST_DATA)")
    args = parser.parse_args()
    model = args.data / "models" / MODEL
    if not model.is_file():
        print(f"[ERROR] no such model: {model}; pass --data or set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    os.environ.setdefault("AMCT_LOG_LEVEL", "ERROR")
    images = read_labels(TEST, args.data)
    images = images if args.limit is None else spread(images, args.limit)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        runs = sessions(model, Path(folder))
        console = Console(stderr=True)
        parts = batches(images, 1, PREPARE)  # the model has a fixed batch of one
        hidden = not sys.stderr.isatty()
        for data, labels in track(parts, "classify", len(images), console=console, transient=True, disable=hidden):
            tally.add({kind: run.run(None, {"input": data})[0] for kind, run in runs.items()}, labels[0])
    print(f"{MODEL}, {tally.images} images\n\n{'':<17}{'top-1':>7}{'top-5':>7}  same class as Q/DQ as written")
    for kind in KINDS:
        shares = (tally.share(hits, kind) for hits in (tally.top1, tally.top5, tally.agree))
        print("{:<17}{:>7.2f}{:>7.2f}  {:.2f}".format(kind, *shares))
    original = tally.share(tally.top1, KINDS[0])
    lost = max(original - tally.share(tally.top1, kind) for kind in ("fake-quant", "deploy"))
    print(f"\ntop-1 lost by conversion: {lost:.2f} points, allowed {MAXIMUM_LOSS}")
    return 0 if lost <= MAXIMUM_LOSS else 1


if __name__ == "__main__":
    sys.exit(main())
