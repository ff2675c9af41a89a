"""`make rounding`: weights rounded to nearest, by GPTQ and by AdaRound, on images that none of them saw.

Only weights are quantized, per output channel with scales of least squares; activations stay in float. Each method is
measured as it is, and with biases that make up for the mean of its errors. SQNR is that of the logits; differences are
to rounding to nearest on the same images, with the interval that holds 95 % of paired bootstrap samples.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from measures import Array, Figure, decibel, paired_difference, powers
from numpy.typing import NDArray
from shared_data import DATA, MODELS, SharedModel, batches, read_labels, spread

from amct_onnx import AdaRound
from amct_onnx.graph.constants import ValueNames, constant_value, own_constant
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.weights import from_kernel_rows, kernel_rows
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import dequantize
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.ptq.recipe.rounding import Method, round_weights
from amct_onnx.values.findings import WeightGrid


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to round: `learned` is what AdaRound does of its iterations, and with none it rounds to nearest."""

    name: str
    method: Method = "adaround"
    learned: bool = False
    corrected: bool = False


NEAREST = Scheme(name="nearest")
SCHEMES = (
    NEAREST,
    Scheme(name="GPTQ", method="gptq"),
    Scheme(name="AdaRound", learned=True),
    Scheme(name="nearest, biases corrected", corrected=True),
    Scheme(name="GPTQ, biases corrected", method="gptq", corrected=True),
    Scheme(name="AdaRound, biases corrected", learned=True, corrected=True),
)


class Network:
    """A float network with its layers, and what it computes for the test images."""

    def __init__(self, model: SharedModel, args: argparse.Namespace) -> None:
        self._model, self._args = model, args
        self.fused = FloatModel.open(model.path(args.data)).prepared().model.clone()
        nodes = [node for node in self.fused.graph if node.op_type in WEIGHT_OPS]
        self.layers = [node.name or "" for node in nodes if constant_value(node.inputs[1]) is not None]
        normalize_layers(self.fused, frozenset(self.layers))
        calibration = spread(read_labels(model.calibration, args.data), args.calibration)
        self.feeds = [{model.input: data} for data, _ in batches(calibration, 1, model.prepare)]
        test = spread(read_labels(model.test, args.data), args.limit)
        prepared = list(batches(test, args.batch_size, model.prepare))
        self._images, self._labels = [data for data, _ in prepared], np.concatenate([labels for _, labels in prepared])
        self.logits = self.run(self.fused)

    def run(self, model: ir.Model) -> Array:
        """Logits [images, classes]."""
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, {self._model.input: data})[0] for data in self._images])

    def grids(self, bits: int) -> dict[str, QParams]:
        """Scales of least squares."""
        spec = QSpec(bits=bits, channel_axis=0)
        return {name: solve_weight_mse(rows, spec) for name, rows in self._rows(self.fused).items()}

    def _rows(self, model: ir.Model) -> dict[str, NDArray[np.float32]]:
        found = {}
        for node in model.graph:
            weight = constant_value(node.inputs[1]) if node.name in self.layers else None
            if weight is not None:
                found[node.name or ""] = kernel_rows(weight, node)
        return found

    def rounded(self, found: Mapping[str, WeightGrid]) -> ir.Model:
        """The network with these weights."""
        model = self.fused.clone()
        names = ValueNames(model)
        for node in model.graph:
            name, weight = node.name or "", constant_value(node.inputs[1]) if node.name in self.layers else None
            if weight is None:
                continue
            rows = dequantize(found[name].integers, found[name].params)
            own_constant(node, 1, from_kernel_rows(rows, weight.shape, node), f"{name}.rounded", names=names)
            bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
            if found[name].correction is not None and bias is not None:
                shifted = (bias + found[name].correction).astype(np.float32)
                own_constant(node, 2, shifted, f"{name}.corrected", names=names)
        return model

    def figures(self, logits: Array) -> tuple[Figure, float]:
        """SQNR over the test images, and top-1 in percent."""
        pairs = np.array([powers(exact, got) for exact, got in zip(self.logits, logits, strict=True)])
        hits = logits.reshape(len(logits), -1).argmax(axis=1) == self._labels
        return Figure(of=decibel, items=(pairs[:, 0], pairs[:, 1])), 100 * float(hits.mean())


def measure(network: Network, bits: int, iterations: int) -> bool:
    """Print the rows of one width; whether GPTQ and AdaRound are better than nearest beyond the interval."""
    grids, figures, better = network.grids(bits), {}, True
    for scheme in SCHEMES:
        start = time.perf_counter()
        found = round_weights(
            network.fused,
            network.layers,
            network.feeds,
            grids,
            method=scheme.method,
            settings=AdaRound(num_iteration=iterations if scheme.learned else 0),
            corrected=network.layers if scheme.corrected else (),
        )
        seconds = time.perf_counter() - start
        figure, top1 = network.figures(network.run(network.rounded(found)))
        figures[scheme.name] = figure
        text = f"{bits:<6}{scheme.name:<42}{figure.value:>7.2f}"
        if scheme is NEAREST:
            text += f"{'':>24}"
        else:
            gain = paired_difference(figure, figures[NEAREST.name])
            text += f"{gain.value:>+8.2f} [{gain.low:+6.2f}, {gain.high:+6.2f}]"
            better &= gain.low > 0
        print(f"{text}{top1:>8.2f}{seconds:>9.1f}", flush=True)
    return better


def main() -> int:
    """Print the table; the exit code is 1 where a method is not better than rounding to nearest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20", help="which model")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], help="width of the weights")
    parser.add_argument("--calibration", type=int, default=32, help="number of calibration images")
    parser.add_argument("--limit", type=int, default=1000, help="number of test images")
    parser.add_argument("--iterations", type=int, default=10000, help="iterations of AdaRound, as AMCT counts them")
    parser.add_argument("--batch_size", type=int, default=50, help="test images per batch")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with models/ and images/ ($AMCT_TEST_DATA)")
    args = parser.parse_args()
    model = MODELS[args.model]
    if not model.path(args.data).is_file():
        print(f"[ERROR] no such model: {model.path(args.data)}; pass --data or set AMCT_TEST_DATA", file=sys.stderr)
        return 1
    network = Network(model, args)
    _, top1 = network.figures(network.logits)
    print(
        f"{args.model}, {len(network.layers)} layers, rounded on {len(network.feeds)} images; "
        f"{len(network.logits)} test images, float top-1 {top1:.2f} %\n"
        f"{'bits':<6}{'rounding':<42}{'SQNR dB':>7}{'against nearest, 95 %':>24}{'top-1 %':>8}{'seconds':>9}"
    )
    better = [measure(network, bits, args.iterations) for bits in args.bits]
    return 0 if all(better) else 1


if __name__ == "__main__":
    sys.exit(main())
