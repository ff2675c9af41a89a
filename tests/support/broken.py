"""Quantized models that are spoilt on purpose, and models of onnxruntime's own quantizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from flow import build, normal
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Array = np.ndarray[Any, np.dtype[Any]]


def residual_net() -> onnx.ModelProto:
    """x [N,3,12,12] -> stem -> a block of two branches -> head: batch normalizations, a sum, a concatenation."""
    weights = {
        name: normal(seed, *shape, scale=1.4 / np.sqrt(np.prod(shape[1:])))
        for seed, (name, shape) in enumerate(
            {
                "w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (8, 8, 1, 1), "w5": (8, 16, 3, 3),
            }.items()
        )
    }  # fmt: skip
    weights |= {f"b{k}": normal(20 + k, 8, scale=0.5) for k in range(1, 6)}
    for k in (1, 2):
        weights |= {
            f"g{k}": np.abs(normal(30 + k, 8)) + 0.5, f"h{k}": normal(40 + k, 8, scale=0.3),
            f"m{k}": normal(50 + k, 8, scale=0.3), f"v{k}": np.abs(normal(60 + k, 8)) + 0.5,
        }  # fmt: skip
    return build(
        """g (float[N,3,12,12] x) => (float[N,5] y) {
            [stem] c1 = Conv <pads=[1,1,1,1]> (x, w1, b1)
            [bn1] n1 = BatchNormalization (c1, g1, h1, m1, v1)
            [relu1] r1 = Relu (n1)
            [left] c2 = Conv <pads=[1,1,1,1]> (r1, w2, b2)
            [bn2] n2 = BatchNormalization (c2, g2, h2, m2, v2)
            [relu2] r2 = Relu (n2)
            [left2] c3 = Conv <pads=[1,1,1,1]> (r2, w3, b3)
            [sum] s = Add (c3, r1)
            [relu3] r3 = Relu (s)
            [right] c4 = Conv (r1, w4, b4)
            [cat] k = Concat <axis=1> (r3, c4)
            [last] c5 = Conv (k, w5, b5)
            [relu5] r5 = Relu (c5)
            [pool] p = GlobalAveragePool (r5)
            [flat] f = Flatten (p)
            [head] y = Gemm (f, w6)
        }""",
        opset=13,
        w6=normal(9, 8, 5, scale=0.4),
        **weights,
    )


def samples(count: int = 24) -> Array:
    """Of the input of `residual_net`."""
    return normal(7, count, 3, 12, 12)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives onnxruntime's quantizer one sample after the other."""

    def __init__(self, data: Array, name: str = "x") -> None:
        self._feeds = ({name: data[k : k + 1]} for k in range(len(data)))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def quantized_by_onnxruntime(
    folder: Path, *, prepared: bool, per_channel: bool, qdq: bool, path: str = "", data: Array | None = None
) -> onnx.ModelProto:
    """`residual_net`, or the model at `path`, by quantize_static. prepared: after quant_pre_process, which folds."""
    source, result = folder / "float.onnx", folder / "quantized.onnx"
    model = onnx.load(path) if path else residual_net()
    onnx.save(model, source)
    if prepared:
        quant_pre_process(str(source), str(source))
    quantize_static(
        str(source),
        str(result),
        Reader(samples() if data is None else data, model.graph.input[0].name),
        quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(result)


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in which no node and no tensor but inputs and outputs has the name that it had."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"t{len(names)}")

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for number, node in enumerate(copy.graph.node):
        node.name = f"n{number}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for initializer in copy.graph.initializer:
        initializer.name = new(initializer.name)
    del copy.graph.value_info[:]
    return copy


class Spoiler:
    """A copy of a Q/DQ model, of which constants can be changed; layers are found by how many came before."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto.FromString(model.SerializeToString())
        self._made = {output: node for node in self.model.graph.node for output in node.output}
        self._stored = {tensor.name: tensor for tensor in self.model.graph.initializer}
        layers = [node for node in self.model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        self.layers = layers

    def change(self, name: str, function: Callable[[Array], Array]) -> None:
        """Change a stored tensor."""
        old = numpy_helper.to_array(self._stored[name])
        array = np.asarray(function(old.copy())).astype(old.dtype)
        self._stored[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def constant(self, layer: int, place: int, part: int, function: Callable[[Array], Array]) -> None:
        """Change what the DequantizeLinear of input `place` of a layer reads: 0 integers, 1 scale, 2 zero point."""
        name = self.layers[layer].input[place]
        self.change(self._made[name].input[part] if name in self._made else name, function)
