"""`make encoder`: an encoder with a table of 30,000 words in int8: its size, kernels and time beside float.

Weights are random; sizes are those of a small sentence encoder. Layers are MatMul and Add, as exporters write
them, with open and with fixed sizes. The ratio of times is that of the fastest runs, which take turns, on one
thread: 1.8 is asked for, and 1 on a CPU whose int8 products saturate.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from pattern_models import Network
from patterns import open_session, ratio

import amct_onnx
from amct_onnx.run.saturation import saturates

WORDS, WIDTH, INNER, HEADS, LAYERS, LENGTH = 30_000, 384, 1536, 12, 6, 128
INTEGERS = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
PRODUCTS = 6 * LAYERS  # with a weight


def _linear(net: Network, x: str, inputs: int, outputs: int) -> str:
    return net.op("Add", net.op("MatMul", x, net.weight(inputs, outputs, inputs=inputs)), net.bias(outputs))


def _normal(net: Network, x: str) -> str:
    return net.op("LayerNormalization", x, np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32), axis=-1)


def _attention(net: Network, x: str) -> str:
    shape = np.array([0, -1, HEADS, WIDTH // HEADS], np.int64)
    turns = [[0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]]
    q, k, v = (
        net.op("Transpose", net.op("Reshape", _linear(net, x, WIDTH, WIDTH), shape), perm=turn) for turn in turns
    )
    scores = net.op("Div", net.op("MatMul", q, k), np.array((WIDTH / HEADS) ** 0.5, np.float32))
    mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return _linear(net, net.op("Reshape", mixed, np.array([0, -1, WIDTH], np.int64)), WIDTH, WIDTH)


def _gelu(net: Network, x: str) -> str:
    inner = net.op("Add", net.op("Erf", net.op("Div", x, np.array(2**0.5, np.float32))), np.array(1, np.float32))
    return net.op("Mul", net.op("Mul", x, inner), np.array(0.5, np.float32))


def build(*, fixed: bool) -> onnx.ModelProto:
    """The float model, which reads int64 [1, 128] words."""
    net = Network()
    x = _normal(net, net.op("Gather", net.constant(net.weight(WORDS, WIDTH, inputs=1)), "words"))
    for _ in range(LAYERS):
        x = _normal(net, net.op("Add", x, _attention(net, x)))
        x = _normal(net, net.op("Add", x, _linear(net, _gelu(net, _linear(net, x, WIDTH, INNER)), INNER, WIDTH)))
    words = helper.make_tensor_value_info("words", TensorProto.INT64, [1, LENGTH] if fixed else ["N", "L"])
    output = helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, LENGTH, WIDTH] if fixed else ["N", "L", WIDTH])
    arrays = [numpy_helper.from_array(array, name) for name, array in net.arrays.items()]
    graph = helper.make_graph(net.nodes, "encoder", [words], [output], arrays)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def main() -> int:
    """Print the figures of both forms; 1 if one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--effort", default="fast")
    args = parser.parse_args()
    chance = np.random.default_rng(1)
    data = [{"words": chance.integers(0, WORDS, (1, LENGTH))} for _ in range(8)]
    right = True
    with tempfile.TemporaryDirectory() as folder:
        for fixed in (False, True):
            model, path = build(fixed=fixed), str(Path(folder) / "float.onnx")
            onnx.save(model, path)
            result = amct_onnx.quantize(path, data, effort=args.effort)
            file = str(result.save(Path(folder) / "int8", inspect=False).files[0])
            size = Path(file).stat().st_size / Path(path).stat().st_size
            optimised = Path(folder) / "optimised.onnx"
            sessions = open_session(path), open_session(file, optimised)
            counted = Counter(node.op_type for node in onnx.load(optimised).graph.node)
            integers = sum(counted[kind] for kind in INTEGERS)
            speed = 1 / ratio(*sessions, data[0], 5.0)
            exact, got = (session.run(None, data[0])[0] for session in sessions)
            noise = 10 * np.log10((exact**2).sum() / ((exact - got) ** 2).sum())
            right = right and size <= 0.28 and integers >= PRODUCTS and speed >= (1.0 if saturates() else 1.8)
            form, text = "fixed" if fixed else "open", f"{integers} of {PRODUCTS} products in integers"
            print(
                f"{form} sizes: {size:.3f} of the file, {text}, {speed:.2f} times as fast, {noise:.1f} dB", flush=True
            )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
