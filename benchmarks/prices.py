"""`make prices`: how long ONNX Runtime takes for convolutions in float and in int8, beside the table of prices.

Each row is a convolution of a given shape, as it stands in the middle of a network: the int8 one reads and writes
uint8. Both take turns in one process with one thread, and the shortest time counts. The table in `values/prices.py` was
written from it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from amct_onnx.values.prices import ONNXRUNTIME_PRICES, Price, Work

_LEAST_ROUNDS = 8
_REPEATED = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A square convolution of `inputs` to `channels` on pictures of `size` pixels a side."""

    name: str
    inputs: int
    channels: int
    kernel: int
    size: int
    stride: int = 1
    groups: int = 1

    @property
    def repeated(self) -> int:
        """How many stand one behind the other, so that what float reorders at the ends of a model counts little."""
        return _REPEATED if self.inputs == self.channels and self.stride == 1 else 1

    @property
    def work(self) -> Work:
        return Work(
            outputs=self.channels * (self.size // self.stride) ** 2,
            terms=self.inputs // self.groups * self.kernel**2,
            channels=self.channels,
            inputs=self.inputs // self.groups,
            groups=self.groups,
        )


SHAPES = (
    *(Shape(name="first", inputs=3, channels=c, kernel=3, size=224, stride=2) for c in (8, 16, 32, 64)),
    Shape(name="first", inputs=3, channels=64, kernel=7, size=224, stride=2),
    *(
        Shape(name="depthwise", inputs=c, channels=c, kernel=k, size=s, groups=c)
        for k, c, s in (
            *((3, 8, 112), (3, 16, 112), (3, 32, 112), (3, 64, 112), (3, 96, 56), (3, 144, 56), (3, 384, 14)),
            *((5, 16, 112), (5, 32, 56), (5, 144, 28), (5, 384, 14)),
        )
    ),
    *(
        Shape(name="pointwise", inputs=i, channels=o, kernel=1, size=s)
        for i, o, s in (
            *((16, 16, 56), (32, 32, 56), (64, 64, 28), (128, 128, 28), (256, 256, 14), (512, 512, 7)),
            *((16, 96, 112), (96, 24, 56), (144, 24, 56), (32, 192, 28), (384, 64, 14)),
        )
    ),
    *(
        Shape(name="dense", inputs=c, channels=c, kernel=3, size=s)
        for c, s in ((8, 64), (12, 112), (16, 32), (32, 56), (64, 56), (128, 28), (256, 14), (512, 7))
    ),
    *(
        Shape(name=f"{g} groups", inputs=i, channels=o, kernel=k, size=s, groups=g)
        for k, i, o, s, g in (
            *((3, 64, 64, 28, 2), (3, 64, 64, 28, 4), (3, 64, 64, 28, 8), (3, 64, 64, 28, 16), (3, 64, 64, 28, 32)),
            *((3, 128, 128, 56, 32), (3, 104, 104, 28, 13), (3, 512, 512, 14, 32), (3, 440, 440, 7, 55)),
            *((1, 128, 128, 28, 4), (1, 240, 240, 28, 3), (1, 256, 256, 28, 8), (3, 32, 128, 28, 32)),
        )
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each row")
    arguments = parser.parse_args()
    print(f"ONNX Runtime {ort.__version__}, one thread, microseconds; in brackets by the table of prices")
    print(f"{'convolution':34} {'float':>18} {'int8':>18} {'int8 / float':>18}")
    for shape in SHAPES:
        found = shortest([_run(shape, integer=kind) for kind in (False, True)], arguments.seconds)
        in_float, in_int8 = (time / shape.repeated for time in found)
        measured = Price(in_float=in_float, in_int8=in_int8)
        print(_row(shape, measured, ONNXRUNTIME_PRICES.of(shape.work)), flush=True)
    return 0


def _row(shape: Shape, measured: Price, table: Price) -> str:
    words = f"{shape.name} {shape.kernel}x{shape.kernel} {shape.inputs} -> {shape.channels} at {shape.size}"
    pairs = (
        (1e-3 * measured.in_float, 1e-3 * table.in_float),
        (1e-3 * measured.in_int8, 1e-3 * table.in_int8),
    )
    cells = [f"{one:9.0f} ({two:5.0f})" for one, two in pairs]
    ratio = f"{measured.in_int8 / measured.in_float:9.2f} ({table.in_int8 / table.in_float:.2f})"
    return f"{words:34} {cells[0]:>18} {cells[1]:>18} {ratio:>18}"


def shortest(runs: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """The shortest time of each in nanoseconds; they take turns."""
    best = [float("inf")] * len(runs)
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < _LEAST_ROUNDS:
        for number, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[number] = min(best[number], 1e9 * (time.perf_counter() - start))
        rounds += 1
    return best


def _run(shape: Shape, *, integer: bool) -> Callable[[], object]:
    """Runs the convolution on random numbers."""
    random = np.random.default_rng(0)
    size = (shape.channels, shape.inputs // shape.groups, shape.kernel, shape.kernel)
    scale = 0.01 / np.sqrt(np.prod(size[1:]))
    constants: dict[str, np.ndarray] = {"scale": np.float32(0.03), "zero": np.uint8(114)} if integer else {}
    nodes, name = [], "x"
    attributes = {"strides": [shape.stride] * 2, "pads": [shape.kernel // 2] * 4, "group": shape.groups}
    for number in range(shape.repeated):
        weight, source, result, last = (f"{word}{number}" for word in ("w", "x", "c", "y"))
        if integer:
            constants |= {
                f"{weight}_8": random.integers(-127, 128, size).astype(np.int8),
                f"{weight}_scale": np.full(shape.channels, scale, np.float32),
                f"{weight}_zero": np.zeros(shape.channels, np.int8),
            }
            own = [f"{weight}_8", f"{weight}_scale", f"{weight}_zero"]
            nodes += [
                helper.make_node("DequantizeLinear", [name, "scale", "zero"], [source]),
                helper.make_node("DequantizeLinear", own, [weight], axis=0),
                helper.make_node("Conv", [source, weight], [result], **attributes),
                helper.make_node("QuantizeLinear", [result, "scale", "zero"], [last]),
            ]
        else:
            constants[weight] = (100 * scale * random.standard_normal(size)).astype(np.float32)
            nodes += [
                helper.make_node("Conv", [name, weight], [result], **attributes),
                helper.make_node("Relu", [result], [last]),
            ]
        name = last
    kind = TensorProto.UINT8 if integer else TensorProto.FLOAT
    picture = [1, shape.inputs, shape.size, shape.size]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", kind, picture)],
        [helper.make_tensor_value_info(name, kind, None)],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    feed = random.integers(0, 256, picture).astype(np.uint8) if integer else random.standard_normal(picture)
    inputs = {"x": feed if integer else feed.astype(np.float32)}
    return lambda: session.run(None, inputs)


if __name__ == "__main__":
    sys.exit(main())
