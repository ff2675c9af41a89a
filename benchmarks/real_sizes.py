"""Models of the size of a ResNet-50 and of a BERT-base, made here with seeded random weights, and samples for them.

What it costs to quantize a model does not depend on what it has learned, as long as its activations neither vanish nor
grow: the weights have the variance that keeps that of their inputs, channels of different size, and biases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from prepared import Case

_OPSET = 17
_TOKENS, _WIDTH, _HEADS, _INNER, _WORDS = 128, 768, 12, 3072, 30522


class Builder:
    """Collects nodes and seeded random weights of a model; each method gives the name of the tensor that it makes."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    def constant(self, array: Any) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, deviation: float = 1.0) -> np.ndarray:
        return self._random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    def convolution(self, x: str, channels: int, outputs: int, kernel: int, *, stride: int = 1, gain: float) -> str:
        """As an exporter leaves it that has folded a batch normalization: channels of different size, and a bias."""
        weight = self.normal(outputs, channels, kernel, kernel, deviation=(gain / (channels * kernel**2)) ** 0.5)
        weight *= np.exp(self.normal(outputs, 1, 1, 1, deviation=0.3) - np.float32(0.09))  # of mean square 1
        bias = self.normal(outputs, deviation=0.1)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", x, self.constant(weight), self.constant(bias), **attributes)

    def product(self, x: str, inputs: int, outputs: int, gain: float = 1.0) -> str:
        """MatMul and Add, as torch exports a linear layer of a tensor of three dimensions."""
        weight = self.constant(self.normal(inputs, outputs, deviation=(gain / inputs) ** 0.5))
        return self.node("Add", self.node("MatMul", x, weight), self.constant(self.normal(outputs, deviation=0.1)))

    def normalized(self, x: str) -> str:
        scale, bias = np.exp(self.normal(_WIDTH, deviation=0.3)), self.normal(_WIDTH, deviation=0.1)
        return self.node("LayerNormalization", x, self.constant(scale), self.constant(bias), axis=-1)

    def save_classifier(self, path: Path, x: str, channels: int) -> None:
        """Write the model that tells 1,000 classes by an image `x`; input x [N, 3, 224, 224], output y [N, 1000]."""
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        weight = self.constant(self.normal(1000, channels, deviation=channels**-0.5))
        self.node("Gemm", x, weight, self.constant(self.normal(1000, deviation=0.1)), transB=1)
        self.save(path, [_tensor("x", TensorProto.FLOAT, "N", 3, 224, 224)], _tensor("y", TensorProto.FLOAT, "N", 1000))

    def save(self, path: Path, inputs: list[onnx.ValueInfoProto], output: onnx.ValueInfoProto) -> None:
        """Write the model whose output is that of the last node."""
        self._nodes[-1].output[0] = output.name
        graph = helper.make_graph(self._nodes, path.stem, inputs, [output], self._weights)
        opset = helper.make_opsetid("", _OPSET)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def write_resnet50(path: Path) -> None:
    """Fifty layers, 25.5 million weights; input x [N, 3, 224, 224], output y [N, 1000]."""
    build = Builder()
    x = build.node("Relu", build.convolution("x", 3, 64, 7, stride=2, gain=2))
    x, channels = build.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for block in range(blocks):
            stride, shortcut = (2 if stage and not block else 1), x
            y = build.node("Relu", build.convolution(x, channels, width, 1, gain=2))
            y = build.node("Relu", build.convolution(y, width, width, 3, stride=stride, gain=2))
            y = build.convolution(y, width, 4 * width, 1, gain=0.5)
            if not block:
                shortcut = build.convolution(x, channels, 4 * width, 1, stride=stride, gain=1)
            x, channels = build.node("Relu", build.node("Add", y, shortcut)), 4 * width
    build.save_classifier(path, x, channels)


def write_bert(path: Path) -> None:
    """Twelve layers of 768, 109 million weights; inputs of token ids and a mask, int64 [N, T], output y [N, T, 768]."""
    build = Builder()
    words = build.node("Gather", build.constant(build.normal(_WORDS, _WIDTH)), "input_ids")
    places = build.constant(build.normal(1, _TOKENS, _WIDTH, deviation=0.5))
    x = build.normalized(build.node("Add", words, places))
    mask = build.node("Cast", build.node("Unsqueeze", "attention_mask", build.constant([1, 2])), to=TensorProto.FLOAT)
    mask = build.node("Sub", build.constant(np.float32(1)), mask)
    mask = build.node("Mul", mask, build.constant(np.float32(-10000)))
    split = build.constant(np.array([0, 0, _HEADS, _WIDTH // _HEADS]))
    joined = build.constant(np.array([0, 0, _WIDTH]))
    for _ in range(12):
        query, key, value = (build.node("Reshape", build.product(x, _WIDTH, _WIDTH), split) for _ in range(3))
        query, value = (build.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, value))
        scores = build.node("MatMul", query, build.node("Transpose", key, perm=[0, 2, 3, 1]))
        scores = build.node("Div", scores, build.constant(np.float32((_WIDTH // _HEADS) ** 0.5)))
        shares = build.node("Softmax", build.node("Add", scores, mask), axis=-1)
        found = build.node("Transpose", build.node("MatMul", shares, value), perm=[0, 2, 1, 3])
        found = build.product(build.node("Reshape", found, joined), _WIDTH, _WIDTH)
        x = build.normalized(build.node("Add", found, x))
        inner = build.product(x, _WIDTH, _INNER)
        erf = build.node("Erf", build.node("Div", inner, build.constant(np.float32(2**0.5))))
        gelu = build.node("Mul", inner, build.node("Add", erf, build.constant(np.float32(1))))
        gelu = build.node("Mul", gelu, build.constant(np.float32(0.5)))
        x = build.normalized(build.node("Add", build.product(gelu, _INNER, _WIDTH, 2), x))
    inputs = [_tensor(name, TensorProto.INT64, "N", _TOKENS) for name in ("input_ids", "attention_mask")]
    build.save(path, inputs, _tensor("y", TensorProto.FLOAT, "N", _TOKENS, _WIDTH))


def _tensor(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _write_pictures(path: Path, count: int) -> None:
    """Smooth random pictures: noise of 28 x 28 pixels, enlarged, with finer noise on it."""
    random = np.random.default_rng(1)
    coarse = random.standard_normal((count, 3, 28, 28), dtype=np.float32).repeat(8, axis=2).repeat(8, axis=3)
    np.save(path, coarse + random.standard_normal(coarse.shape, dtype=np.float32) * np.float32(0.3))


def _write_tokens(path: Path, count: int) -> None:
    """Random tokens; sentences of 16 to 128 of them, of which the mask tells."""
    random = np.random.default_rng(1)
    lengths = random.integers(16, _TOKENS, count, endpoint=True)
    mask = (np.arange(_TOKENS) < lengths[:, None]).astype(np.int64)
    np.savez(path, input_ids=random.integers(0, _WORDS, mask.shape) * mask, attention_mask=mask)


@dataclass(frozen=True, kw_only=True)
class RealSize:
    """A model that is made where it is wanted. `suffix`: that of the file of its samples."""

    name: str
    write: Callable[[Path], None]
    write_samples: Callable[[Path, int], None]
    suffix: str

    def case(self, folder: Path) -> Case:
        """The model, written into `folder`."""
        path = folder / f"{self.name}.onnx"
        self.write(path)
        return Case(name=self.name, model=path)


REAL_SIZES = {
    size.name: size
    for size in (
        RealSize(name="resnet50", write=write_resnet50, write_samples=_write_pictures, suffix=".npy"),
        RealSize(name="bert_base", write=write_bert, write_samples=_write_tokens, suffix=".npz"),
    )
}
