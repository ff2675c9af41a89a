"""Layers of constants are in float with that reason, whatever the constants are; layers of data are quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, normal, sqnr
from onnx import helper
from qdq_graph import exact_session

import amct_onnx

TARGETS = ("onnxruntime", "openvino", "tensorrt", "ascend")
_REASON = "its data is constant"
_CONSTANTS = {
    "table": normal(1, 16, 8), "turned": normal(2, 8, 16), "image": normal(3, 1, 3, 6, 6), "A": normal(4, 8, 32) / 3,
    "B": normal(5, 32, 8) / 6, "C": normal(6, 8, 8) / 3, "K": normal(7, 4, 3, 3, 3) / 5, "b": normal(8, 8),
    "shape": np.array([16, 8], np.int64), "one": np.array([1], np.int64), "middle": np.array([1, 2], np.int64),
    "W": normal(9, 1, 32, 8) / 3, "R": normal(10, 1, 32, 8) / 3,
}  # fmt: skip
# Nodes that make v [16, 8] or less of constants; layers of constants have names that begin with "fixed".
_BRANCHES = {
    "a table": "[fixed] v = MatMul(table, C)",
    "a Gemm": "[fixed] v = Gemm(table, C, b)",
    "a turned Gemm": "[fixed] v = Gemm<transA=1, alpha=0.5>(turned, C, b)",
    "a chain of layers": "[fixed] s = MatMul(table, A) t = Relu(s) [fixed2] v = MatMul(t, B)",
    "Transpose": "s = Transpose(turned) [fixed] v = MatMul(s, C)",
    "Reshape": "s = Reshape(turned, shape) [fixed] v = MatMul(s, C)",
    "Identity": "s = Identity(table) [fixed] v = MatMul(s, C)",
    "Add and activations": "r = Add(table, b) s = Relu(r) t = Sigmoid(s) [fixed] v = MatMul(t, C)",
    "ConstantOfShape": "s = ConstantOfShape<value=float[1]{0.5}>(shape) [fixed] v = MatMul(s, C)",
    "both operands": "[fixed] s = MatMul(turned, table) t = Neg(s) [fixed2] v = MatMul(table, t)",
    "a convolution": """[fixed] r = Conv<pads=[1,1,1,1]>(image, K)
        [fixed2] s = AveragePool<kernel_shape=[2,2]>(r) t = ReduceMean<keepdims=0>(s) v = Add(t, table)""",
    "an LSTM": """s = Unsqueeze(table, one) [fixed] t = LSTM<hidden_size=8>(s, W, R) v = Squeeze(t, middle)""",
}


def _model(branch: str, kind: str) -> onnx.ModelProto:
    model = build(
        f"""g (float[2,16,8] x) => (float[2,16,8] y) {{
            {_BRANCHES[branch]}
            [data] q = MatMul(x, C)
            y = Add(q, v) }}""",
        **_CONSTANTS,
    )
    read = {name for node in model.graph.node for name in node.input}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    if kind == "initializer":
        model.graph.initializer.extend(tensors)
    for tensor in tensors if kind == "Constant" else []:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return model


def _feeds() -> list[dict[str, np.ndarray]]:
    return [{"x": normal(20 + seed, 2, 16, 8)} for seed in range(4)]


def _expected(model: onnx.ModelProto) -> np.ndarray:
    output: np.ndarray = ort.InferenceSession(model.SerializeToString(), providers=CPU).run(None, _feeds()[0])[0]
    return output


@pytest.mark.parametrize("kind", ["initializer", "Constant"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("branch", _BRANCHES)
def test_every_target(branch: str, target: str, kind: str, tmp_path: Path) -> None:
    model = _model(branch, kind)
    result = amct_onnx.quantize(model, _feeds(), target=target, effort="fast" if kind == "initializer" else "default")
    said = {decision.layer: decision.quantized or decision.reason for decision in result.decisions}
    fixed = {node.name for node in model.graph.node if node.name.startswith("fixed")}
    assert {name: said[name] for name in fixed} == dict.fromkeys(fixed, _REASON)
    assert said["data"] is True
    file = next(f for f in result.save(tmp_path / "q", inspect=False).files if f.endswith("onnx") and "deploy" not in f)
    assert sqnr(_expected(model), exact_session(file).run(None, _feeds()[0])[0]) > 25


@pytest.mark.parametrize("kind", ["initializer", "Constant"])
@pytest.mark.parametrize("branch", _BRANCHES)
def test_amct_s_functions(branch: str, kind: str, tmp_path: Path) -> None:
    model = _model(branch, kind)
    flow = Flow.of(model, tmp_path).run(*_feeds())
    assert set(flow.records()) == {"data"}
    assert sqnr(_expected(model), flow.run_fake_quant(_feeds()[0])) > 25


def test_random_numbers_are_no_constant() -> None:
    model = build(
        """g (float[2,16,8] x) => (float[2,16,8] y) {
            n = RandomNormal<shape=[16, 8], seed=1.0>()
            [noisy] v = MatMul(n, C)
            [data] q = MatMul(x, C)
            y = Add(q, v) }""",
        C=_CONSTANTS["C"],
    )
    result = amct_onnx.quantize(model, _feeds(), effort="fast")
    assert next(decision for decision in result.decisions if decision.layer == "noisy").quantized
