"""A weight that several layers read is in a quantized file once, for every target, however they read it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from flow import build, normal
from qdq_graph import exact_session, kernels

import amct_onnx

WIDTH = 96
WEIGHT = normal(1, WIDTH, WIDTH, scale=0.1)


def _products(*, copies: int = 0) -> onnx.ModelProto:
    """Gemm and MatMul with one matrix: as it is, turned, passed on, and in `copies` further initializers."""
    lines = [
        "a = Gemm <transB = 1> (x, w, b) ra = Relu (a)",
        "t = Transpose <perm = [1, 0]> (w) c = MatMul (ra, t) i = Identity (w)",
        "d = Gemm <transB = 1> (c, i) rd = Relu (d) e0 = Gemm <transB = 1> (rd, w, b)",
    ]
    lines += [f"e{k + 1} = Gemm <transB = 1> (e{k}, w{k})" for k in range(copies)]
    text = f"g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ {' '.join(lines)} y = Relu (e{copies}) }}"
    return build(text, w=WEIGHT, b=normal(2, WIDTH), **{f"w{k}": WEIGHT.copy() for k in range(copies)})


def _convolutions() -> onnx.ModelProto:
    body = " ".join(f"c{k} = Conv <pads = [1,1,1,1]> (x{k}, k, b) x{k + 1} = Relu (c{k})" for k in range(4))
    text = f"g (float[N,24,8,8] x) => (float[N,24,8,8] y) {{ x0 = Identity (x) {body} y = Relu (x4) }}"
    return build(text, k=normal(1, 24, 24, 3, 3, scale=0.07), b=normal(2, 24, scale=0.1))


def _branches() -> onnx.ModelProto:
    return build(
        f"""g (float[N,{WIDTH}] x, bool wide) => (float[N,{WIDTH}] y) {{
            [first] s = MatMul (x, w) r = Relu (s)
            y = If (wide) <
                then_branch = yes () => (float[N,{WIDTH}] o) {{ [one] p = MatMul (r, w) o = Relu (p) }},
                else_branch = no () => (float[N,{WIDTH}] q) {{
                    [two] p = MatMul (r, w) [three] q = MatMul (p, w) }}> }}""",
        w=WEIGHT,
    )


def _loop() -> onnx.ModelProto:
    return build(
        f"""g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{
            [first] s = MatMul (x, w)
            turns = Constant <value = int64 {{2}}> () go = Constant <value = bool {{1}}> ()
            y = Loop (turns, go, s) <body = b (int64 i, bool c, float[N,{WIDTH}] h) => (bool d, float[N,{WIDTH}] k) {{
                d = Identity (c) [step] m = MatMul (h, w) k = Tanh (m) }}> }}""",
        w=WEIGHT,
    )


MODELS = {
    "products": (_products(), {"x": (4, WIDTH)}),
    "copies": (_products(copies=2), {"x": (4, WIDTH)}),
    "convolutions": (_convolutions(), {"x": (2, 24, 8, 8)}),
    "branches": (_branches(), {"x": (4, WIDTH), "wide": ()}),
    "loop": (_loop(), {"x": (4, WIDTH)}),
}
IN_BODIES = ("branches", "loop")


def _feeds(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, np.ndarray]]:
    def value(name: str, seed: int) -> np.ndarray:
        return np.array(seed % 2 == 0) if name == "wide" else normal(seed + 5, *shapes[name])

    return [{name: value(name, seed) for name in shapes} for seed in range(12)]


def _large(model: onnx.ModelProto, least: int) -> list[int]:
    """The bytes of the large initializers of all graphs."""
    graphs, found = [model.graph], []
    while graphs:
        graph = graphs.pop()
        found += [len(tensor.raw_data) for tensor in graph.initializer if len(tensor.raw_data) >= least]
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.type == 5]
    return found


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend"])
@pytest.mark.parametrize("name", MODELS)
def test_a_weight_is_stored_once(name: str, target: str, effort: str, tmp_path: Path) -> None:
    proto, shapes = MODELS[name]
    result = amct_onnx.quantize(proto, _feeds(shapes), target=target, effort=effort)
    weight = WEIGHT.size if name != "convolutions" else 24 * 24 * 9
    # Equal bytes in several initializers may become different ones: channels are equalized, say.
    own = 3 if (name, effort) == ("copies", "default") else 1
    for file in result.save(tmp_path / "q", inspect=False).files:
        if file.endswith(".onnx"):
            wide = 4 if "fake_quant" in file else 1  # float32 holds integers there
            kept = 4 * weight if target == "ascend" and name in IN_BODIES else 0  # bodies stay in float
            assert sum(_large(onnx.load(file), 4096)) <= wide * weight * own + kept


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_the_file_opens_where_weights_become_uint8(name: str, target: str, tmp_path: Path) -> None:
    proto, shapes = MODELS[name]
    feeds = _feeds(shapes)
    (file,) = amct_onnx.quantize(proto, feeds, target=target, effort="fast").save(tmp_path / "q", inspect=False).files
    onnx.save(proto, tmp_path / "float.onnx")
    (got,), (wanted,) = (exact_session(path).run(None, feeds[0]) for path in (file, tmp_path / "float.onnx"))
    assert np.square(got - wanted).sum() <= 0.01 * np.square(wanted).sum()


def test_all_layers_are_integer_kernels(tmp_path: Path) -> None:
    proto, shapes = MODELS["copies"]
    (file,) = amct_onnx.quantize(proto, _feeds(shapes)).save(tmp_path / "q", inspect=False).files
    found = kernels(file, tmp_path)
    assert found == Counter({"QGemm": 5, "QLinearMatMul": 1, "QuantizeLinear": 1, "Relu": 1})


def test_a_reader_in_float_keeps_the_weight_and_the_others_share_theirs(tmp_path: Path) -> None:
    proto, shapes = MODELS["convolutions"]
    first, *_ = (
        d.layer for d in amct_onnx.quantize(proto, _feeds(shapes), effort="fast").decisions if "Conv" in d.layer
    )
    result = amct_onnx.quantize(proto, _feeds(shapes), skip_layers=[first], effort="fast")
    (file,) = result.save(tmp_path / "q", inspect=False).files
    assert sum(_large(onnx.load(file), 4096)) == 5 * 24 * 24 * 9
