"""Looking at Q/DQ models: what is quantized where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantizers(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "QuantizeLinear"]


def dequantizers(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "DequantizeLinear"]


def array(value: ir.Value | None) -> np.ndarray:
    """The constant behind an initializer, or behind a copy that layers with one weight have of it."""
    assert value is not None
    if producer_type(value) == "Split":
        value = value.producer().inputs[0].producer().inputs[0]
    assert value.const_value is not None, f"{value.name} is no initializer"
    return np.asarray(value.const_value.numpy())


def producer_type(value: ir.Value | None) -> str:
    node = value.producer() if value is not None else None
    return "" if node is None else node.op_type


def optimised(path: str | Path, folder: Path) -> ir.Model:
    """The model as ONNX Runtime optimises it, for the CPU."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return ir.load(folder / "optimised.onnx")


def kernels(path: str | Path, folder: Path) -> Counter[str]:
    """How many kernels of each operator ONNX Runtime runs."""
    return Counter(node.op_type for node in optimised(path, folder).graph)


def exact_session(path: str | Path) -> ort.InferenceSession:
    """A session whose int8 products do not saturate on CPUs without VNNI."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
