"""One layer with a weight in every form that can be quantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from flow import build, normal


@dataclass(frozen=True)
class Kind:
    """A layer: its node, and the shapes of its input and weight."""

    node: str
    x: tuple[int, ...]
    w: tuple[int, ...]


CONVOLUTIONS = {
    "conv": Kind("Conv (x, w)", (2, 3, 7, 6), (4, 3, 3, 3)),
    "padded": Kind("Conv <pads=[1,0,2,3]> (x, w)", (2, 3, 7, 6), (4, 3, 3, 2)),
    "strides": Kind("Conv <strides=[2,3], pads=[1,1,1,1]> (x, w)", (2, 3, 8, 9), (4, 3, 3, 3)),
    "dilations": Kind("Conv <dilations=[2,3], pads=[2,2,2,2]> (x, w)", (2, 3, 8, 9), (4, 3, 3, 3)),
    "same_upper": Kind('Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', (1, 3, 8, 7), (4, 3, 3, 4)),
    "same_lower": Kind('Conv <auto_pad="SAME_LOWER", strides=[2,2]> (x, w)', (1, 3, 8, 7), (4, 3, 3, 4)),
    "valid": Kind('Conv <auto_pad="VALID"> (x, w)', (1, 3, 8, 7), (4, 3, 3, 3)),
    "grouped": Kind("Conv <group=2, pads=[1,1,1,1]> (x, w)", (2, 4, 5, 5), (6, 2, 3, 3)),
    "depthwise": Kind("Conv <group=4> (x, w)", (2, 4, 5, 5), (8, 1, 3, 3)),
    "conv_1d": Kind("Conv <group=2, pads=[1,2], strides=[2]> (x, w)", (3, 4, 9), (6, 2, 3)),
    "conv_3d": Kind("Conv <pads=[1,0,1,1,0,1]> (x, w)", (2, 2, 4, 5, 3), (3, 2, 3, 2, 3)),
    "transpose": Kind("ConvTranspose (x, w)", (2, 3, 4, 5), (3, 4, 3, 2)),
    "transpose_strides": Kind(
        "ConvTranspose <strides=[2,3], pads=[1,0,0,2], output_padding=[1,2]> (x, w)", (2, 3, 4, 5), (3, 4, 3, 3)
    ),
    "transpose_dilations": Kind("ConvTranspose <dilations=[2,2], strides=[3,1]> (x, w)", (1, 3, 4, 5), (3, 2, 3, 3)),
    "transpose_grouped": Kind("ConvTranspose <group=2, strides=[2,2]> (x, w)", (2, 4, 3, 3), (4, 3, 2, 3)),
    "transpose_upper": Kind('ConvTranspose <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', (1, 3, 4, 5), (3, 4, 3, 3)),
    "transpose_lower": Kind('ConvTranspose <auto_pad="SAME_LOWER", strides=[2,2]> (x, w)', (1, 3, 4, 5), (3, 4, 3, 3)),
    "transpose_valid": Kind('ConvTranspose <auto_pad="VALID", strides=[2,2]> (x, w)', (1, 3, 4, 5), (3, 4, 3, 3)),
    "transpose_shape": Kind("ConvTranspose <output_shape=[8,10], strides=[2,2]> (x, w)", (1, 3, 4, 5), (3, 4, 3, 3)),
}
PRODUCTS = {
    "gemm": Kind("Gemm (x, w)", (5, 6), (6, 4)),
    "matmul": Kind("MatMul (x, w)", (2, 3, 5, 6), (6, 4)),
    "matmul_1d": Kind("MatMul (x, w)", (6,), (6, 4)),
    "matmul_one_of_3d": Kind("MatMul (x, w)", (2, 5, 6), (1, 6, 4)),
    "matmul_3d": Kind("MatMul (x, w)", (3, 5, 6), (3, 6, 4)),
    "matmul_spread": Kind("MatMul (x, w)", (5, 6), (3, 6, 4)),
    "matmul_4d": Kind("MatMul (x, w)", (2, 3, 5, 6), (3, 6, 4)),
}
KINDS = CONVOLUTIONS | PRODUCTS


def model_of(kind: Kind, weight: np.ndarray | None = None) -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """The model, its input, its weight, of normal noise where none is given."""
    x, w = normal(1, *kind.x), normal(2, *kind.w) if weight is None else weight
    shape = ",".join(map(str, kind.x))
    rank = 1 if x.ndim == 1 else max(x.ndim, w.ndim)
    dimensions = ",".join(f"D{axis}" for axis in range(rank))
    return build(f"g (float[{shape}] x) => (float[{dimensions}] y) {{ [layer] y = {kind.node} }}", w=w), x, w


def outputs_by_group(kind: Kind, y: np.ndarray, groups: int) -> np.ndarray:
    """The output of the layer as [groups, outputs of a group, positions], in the order of columns."""
    if "Conv" in kind.node:
        flat = np.moveaxis(y.reshape(*y.shape[:2], -1), 1, 0)
        return flat.reshape(groups, y.shape[1] // groups, -1)
    if groups > 1:
        return np.moveaxis(y, -3, 0).reshape(groups, -1, y.shape[-1]).transpose(0, 2, 1)
    return y.reshape(1, -1, y.shape[-1]).transpose(0, 2, 1)
