"""How much of a model is quantized: in its file, and in the graph that ONNX Runtime makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from amct_onnx.graph.constants import constant_tensor
from amct_onnx.measure.kernel_report import inspect_model

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER_LAYERS = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
)
# What they write is on the grid of what they read.
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "MaxPool"})


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """In percent: layers that the file quantizes, and integer kernels among those that compute; None if not known."""

    layers: float | None = None
    kernels: float | None = None


def read_coverage(float_model: Path, quantized: Path) -> Coverage:
    """Both shares; the graph of ONNX Runtime is that of a session with its usual settings."""
    kernels = inspect_model(str(float_model), str(quantized)).kernels
    integer, floating = sum(kernels.integer.values()), sum(kernels.floating.values())
    return Coverage(layers=quantized_layers(ir.load(quantized)), kernels=_share(integer, integer + floating))


def quantized_layers(model: ir.Model) -> float | None:
    """Layers in percent that are integer operators, or whose input and weight both come from a DequantizeLinear.

    An input with a scale for each channel does not count: no sum over channels can be done in integers then.
    """
    done = total = 0
    for node in model.graph.all_nodes():
        if node.op_type in _INTEGER_LAYERS:
            done, total = done + 1, total + 1
        elif node.op_type in _LAYERS:
            source, weight = map(_dequantize, node.inputs[:2])
            done, total = done + (source is not None and weight is not None and _one_scale(source)), total + 1
    return _share(done, total)


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that the value comes from."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _MOVES:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _one_scale(node: ir.Node) -> bool:
    scale = constant_tensor(node.inputs[1])
    return scale is not None and scale.size == 1


def _share(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
