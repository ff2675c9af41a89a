"""Fill values, such as -65504, -1e9 and -inf, through both doors: they stand for "never the largest" or "masked".

In front of a maximum they take no part in a range, and the maximum stays right. In front of a softmax a masked score
has to stay masked, so nothing there is on a grid. A layer that reads one stays in float, and says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import Flow, build, normal, sqnr

import amct_onnx
from amct_onnx.errors import RecordError
from amct_onnx.ptq.options import TARGET_NAMES
from amct_onnx.ptq.quantized_model import QuantizedModel

Feed = dict[str, np.ndarray]
FILLS = [-600.0, -1e4, -65504.0, -1e9, float(np.finfo(np.float32).min), -np.inf]
FINITE = FILLS[:-1]
W = {
    "a": normal(1, 8, 4, 3, 3, scale=0.17), "a0": normal(2, 8), "b": normal(3, 4, 8, 3, 3, scale=0.12),
    "v": normal(4, 16, 16, scale=0.25), "w": normal(5, 16, 8, scale=0.25), "w0": normal(6, 8),
    "border": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.array([1]), "two": np.array([2]),
    "half": np.float32(0.5), "full": np.float32(1),
}  # fmt: skip
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2]>"
IMAGES = "g (float[N,4,12,12] x) => (float[N,4,P,Q] y)"
SEQUENCES = "g (float[N,10,16] x, float[N,10] k) => (float[N,8] y)"
MASK = "g = Greater (k, half) d = Unsqueeze (g, two)"
PADDED = "[first] c = Conv (x, a, a0) r = Relu (c) p = Pad (r, border, fill)"

# In front of a maximum: what is chosen of a tensor decides about its range, and all nodes named may be in int8.
MAXIMA = {
    "pad": f"{IMAGES} {{ {PADDED} m = {POOL} (p) [last] y = Conv (m, b) }}",
    "input": f"{IMAGES} {{ p = Pad (x, border, fill) m = {POOL} (p) [first] c = Conv (m, a) [last] y = Conv (c, b) }}",
    "border of nothing but fills": f"""{IMAGES} {{ [first] c = Conv (x, a, a0) p = Pad (c, wide, fill)
        m = MaxPool<kernel_shape=[3,3], strides=[3,3]> (p) e = Relu (m) [last] y = Conv (e, b) }}""",
    "moved": f"""{IMAGES} {{ {PADDED} t = Transpose<perm=[0,1,3,2]> (p) i = Identity (t) m = {POOL} (i)
        n = MaxPool<kernel_shape=[2,2]> (m) [last] y = Conv (n, b) }}""",
    "cut off": f"{IMAGES} {{ {PADDED} m = Slice (p, starts, ends, axes) [last] y = Conv (m, b) }}",
    "two readers": f"""{IMAGES} {{ {PADDED} m = {POOL} (p)
        n = MaxPool<kernel_shape=[5,5], strides=[2,2], pads=[1,1,1,1]> (p)
        [last] u = Conv (m, b) [other] z = Conv (n, b) y = Add (u, z) }}""",
    "an exponential as well": f"""{IMAGES} {{ {PADDED} m = {POOL} (p) f = Exp (p) h = GlobalAveragePool (f)
        [last] u = Conv (m, b) [other] z = Conv (h, point) y = Add (u, z) }}""",
    "concatenation": f"""{IMAGES} {{ [first] c = Conv (x, a, a0) s = Shape (c) e = Slice (s, nought, three, nought)
        sh = Concat<axis=0> (e, one) q = Expand (fill, sh) p = Concat<axis=3> (c, q) m = {POOL} (p)
        [last] y = Conv (m, b) }}""",
    "concatenation with a constant": f"""g (float[1,4,12,12] x) => (float[1,4,P,Q] y) {{ [first] c = Conv (x, a, a0)
        p = Concat<axis=3> (c, column) m = {POOL} (p) [last] y = Conv (m, b) }}""",
    "where": f"""{SEQUENCES} {{ {MASK} [first] h = MatMul (x, v) p = Where (d, h, fill)
        m = ReduceMax<keepdims=0> (p, one) [last] y = Gemm (m, w, w0) }}""",
    "scattered": f"""{SEQUENCES} {{ [first] h = MatMul (x, v) p = ScatterElements<axis=1> (h, places, updates)
        m = ReduceMax<keepdims=0> (p, one) [last] y = Gemm (m, w, w0) }}""",
    "mask of an input": f"""{SEQUENCES} {{ [first] h = MatMul (x, v) s = Sub (full, k) f = Mul (s, finite)
        d = Unsqueeze (f, two) p = Add (h, d) m = ReduceMax<keepdims=0> (p, one) [last] y = Gemm (m, w, w0) }}""",
    "constant mask": f"""{IMAGES} {{ [first] c = Conv (x, a, a0) p = Add (c, causal)
        m = ReduceMax<keepdims=1> (p, three) [last] y = Conv (m, row) }}""",
    "before a minimum": f"""{IMAGES} {{ [first] c = Conv (x, a, a0) p = Pad (c, border, most) n = Neg (p) m = {POOL} (n)
        o = Neg (m) [last] y = Conv (o, b) }}""",
}  # fmt: skip

# Where masked values are read as they are: nothing there may be on a grid.
MASKED = {
    "softmax of sums": f"""{IMAGES} {{ [first] c = Conv<pads=[1,1,1,1]> (x, a, a0) p = Add (c, causal)
        e = Softmax (p) z = Mul (e, c) [last] y = Conv (z, b) }}""",
    "log of a softmax": f"""{IMAGES} {{ [first] c = Conv<pads=[1,1,1,1]> (x, a, a0) p = Add (c, causal) f = Relu (c)
        l = LogSoftmax (p) e = Exp (l) z = Mul (e, f) [last] y = Conv (z, b) }}""",
    "softmax of a choice": f"""{SEQUENCES} {{ {MASK} [first] h = MatMul (x, v) p = Where (d, h, fill)
        e = Softmax<axis=1> (p) z = Mul (e, h) s = ReduceSum<keepdims=0> (z, one) [last] y = Gemm (s, w, w0) }}""",
    "attention": """g (float[N,10,16] x) => (float[N,10,8] y) { [first] q = MatMul (x, v)
        t = Transpose<perm=[0,2,1]> (q) s = MatMul (q, t) j = Mul (s, quarter) p = Add (j, square) e = Softmax (p)
        z = MatMul (e, x) [last] y = MatMul (z, w) }""",
    "largest of all": f"""{SEQUENCES} {{ {MASK} [first] h = MatMul (x, v) p = Where (d, h, fill)
        i, t = TopK<axis=1> (p, one) m = Squeeze (i, one) [last] y = Gemm (m, w, w0) }}""",
}  # fmt: skip


def model_of(text: str, fill: float, opset: int = 18) -> onnx.ModelProto:
    """A model of `text` with those of the constants that it names."""
    f = np.float32(fill)
    masks = {
        "causal": np.where(np.tri(12, dtype=bool), np.float32(0), f)[None, None],
        "square": np.where(np.tri(10, dtype=bool), np.float32(0), f)[None],
        "fill": f, "finite": max(f, np.finfo(np.float32).min), "most": -f, "column": np.full((1, 8, 10, 1), f),
        "wide": np.array([0, 0, 6, 6, 0, 0, 6, 6]), "starts": np.array([1, 1]), "ends": np.array([11, 11]),
        "axes": np.array([2, 3]), "point": normal(7, 4, 8, 1, 1), "nought": np.array([0]), "three": np.array([3]),
        "places": np.full((2, 2, 16), 3), "updates": np.full((2, 2, 16), f), "row": normal(8, 4, 8, 3, 1, scale=0.2),
        "quarter": np.float32(0.25),
    }  # fmt: skip
    if "causal" in text and "ReduceMax" in text:
        masks["causal"] = masks["causal"][..., :10, :10]
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    return build(text, opset=opset, **{name: array for name, array in {**W, **masks}.items() if name in words})


def feeds_of(text: str, count: int = 12) -> list[Feed]:
    if "[N,10,16]" in text:
        lengths = np.random.default_rng(9).integers(3, 11, count)
        feeds = [{"x": normal(n, 2, 10, 16), "k": np.tile(np.arange(10) < lengths[n], (2, 1))} for n in range(count)]
        feeds = [{"x": feed["x"], "k": feed["k"].astype(np.float32)} for feed in feeds]
        return feeds if " k)" in text else [{"x": feed["x"]} for feed in feeds]
    return [{"x": normal(n, 1 if "[1,4" in text else 2, 4, 12, 12)} for n in range(count)]


def sqnr_of(model: onnx.ModelProto, result: QuantizedModel, feeds: list[Feed], folder: Path) -> float:
    """Of all outputs of the saved model, as ONNX Runtime runs it with its optimisations."""
    file = result.save(folder / "saved", inspect=False).files[0]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    if result.target == "ascend":
        session = amct_onnx.deployed_session(next(f for f in result.save(folder / "m").files if "deploy" in f))
    else:
        session = ort.InferenceSession(file, options)
    exact = ort.InferenceSession(model.SerializeToString())
    both = [np.concatenate([np.ravel(run.run(None, feed)[0]) for feed in feeds]) for run in (exact, session)]
    return sqnr(*both)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("case", MAXIMA)
def test_a_fill_in_front_of_a_maximum_takes_no_part_in_a_range(
    tmp_path: Path, case: str, target: str, fill: float
) -> None:
    text = MAXIMA[case]
    model, feeds = model_of(text, fill), feeds_of(text)
    result = amct_onnx.quantize(model, feeds, target=target, effort="fast")
    quantized = {decision.layer for decision in result.decisions if decision.quantized}
    assert {"first", "last"} <= quantized
    assert sqnr_of(model, result, feeds[:3], tmp_path) > 28


@pytest.mark.parametrize("fill", [-65504.0, -1e9, -np.inf])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_a_maximum_behind_a_border_leaves_layers_in_int8(tmp_path: Path, fill: float, target: str, effort: Any) -> None:
    """It is in int8 itself, but for ONNX Runtime, whose kernel is slow behind floats."""
    model, feeds = model_of(MAXIMA["pad"], fill), feeds_of(MAXIMA["pad"], 16)
    result = amct_onnx.quantize(model, feeds, target=target, effort=effort, full_int8=True)
    quantized = {decision.layer for decision in result.decisions if decision.quantized}
    assert {"first", "last"} <= quantized
    assert ("MaxPool_3" in quantized) == (target == "openvino")
    assert sqnr_of(model, result, feeds[:3], tmp_path) > 30


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("case", MASKED)
def test_what_is_masked_stays_masked(tmp_path: Path, case: str, target: str, fill: float) -> None:
    text = MASKED[case]
    model, feeds = model_of(text, fill), feeds_of(text)
    result = amct_onnx.quantize(model, feeds, target=target, effort="fast")
    assert "first" in {decision.layer for decision in result.decisions if decision.quantized}
    assert sqnr_of(model, result, feeds[:3], tmp_path) > 28


BESIDE = f"{IMAGES} {{ {PADDED} [reader] q = Conv (p, b, a4) y = Slice (q, starts, ends, axes) }}"


@pytest.mark.parametrize("fill", FINITE[1:])
@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_layer_that_reads_a_fill_stays_in_float_and_is_named(
    tmp_path: Path, target: str, effort: Any, fill: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Its result is wrong where it reads the fill, and used elsewhere."""
    model = build(
        BESIDE, opset=18, a4=normal(9, 4), starts=np.array([2, 2]), ends=np.array([8, 8]), axes=np.array([2, 3]),
        fill=np.float32(fill), **{name: W[name] for name in ("a", "a0", "b", "border")},
    )  # fmt: skip
    feeds = feeds_of(BESIDE)
    result = amct_onnx.quantize(model, feeds, target=target, effort=effort)
    reasons = {decision.layer: decision.reason for decision in result.decisions if not decision.quantized}
    assert reasons["reader"] == f'tensor "p" holds a fill value, {fill:.3g}, beside which int8 has nothing left'
    assert '"reader"' in caplog.text
    assert "holds a fill value" in caplog.text
    assert sqnr_of(model, result, feeds[:3], tmp_path) > 28


def test_amct_s_functions_warn_of_a_fill_that_a_layer_reads_and_refuse_infinity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    constants = {name: W[name] for name in ("a", "a0", "b", "border")}
    text = f"{IMAGES} {{ {PADDED} [reader] y = Conv (p, b) }}"
    for fill, folder in ((-1e9, tmp_path / "finite"), (-np.inf, tmp_path / "infinite")):
        flow = Flow.of(build(text, opset=16, fill=np.float32(fill), **constants), folder).configure().quantize()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="amct_onnx"):
            flow.calibrate([{"x": normal(1, 2, 4, 12, 12)}])
        if np.isfinite(fill):
            assert [record.getMessage() for record in caplog.records] == [
                'Layer "reader": its input holds a fill value, -1e+09, beside which int8 has nothing left: add it to '
                "skip_layers."
            ]
            flow.save()
        else:
            with pytest.raises(RecordError, match=r'layer "reader".*holds NaN or Inf'):
                flow.save()
        flow.configure(skip_layers=["reader"]).quantize().calibrate([{"x": normal(1, 2, 4, 12, 12)}]).save()
        assert set(flow.records()) == {"first"}


def test_large_values_without_a_gap_are_no_fill() -> None:
    model = model_of(MAXIMA["pad"], 0.0)
    data = [{"x": normal(n, 2, 4, 12, 12, scale=1e5)} for n in range(4)]
    assert all(decision.quantized for decision in amct_onnx.quantize(model, data, effort="fast").decisions)
