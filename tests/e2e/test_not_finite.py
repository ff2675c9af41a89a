"""NaN and infinity in tensors, weights and biases: what reads them stays in float, and the rest is quantized.

Where nothing else is left there is an error. In AMCT's functions a layer that reads them is an error; `skip_layers` is
a way out everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import Flow, build, normal, sqnr

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import CalibrationError, RecordError
from amct_onnx.ptq.options import EFFORT_NAMES, TARGET_NAMES

# The logarithm is NaN or infinite in places, and a product reads it; `where` makes it harmless behind that.
BODIES = {
    "product": """g (float[N,16] x, float[N,16] t) => (float[N,8] y, float[N,8] z) {
        [good] y = MatMul (x, v)
        l = Log (t) [bad] h = MatMul (l, v) w = IsNaN (h) i = IsInf (h) o = Or (w, i) z = Where (o, zero, h) }""",
    "moved": """g (float[N,16] x, float[N,16] t) => (float[N,8] y, float[N,8] z) {
        [good] y = MatMul (x, v)
        l = Log (t) r = Reshape (l, shape) s = Squeeze (r, axes) [bad] h = MatMul (s, v)
        w = IsNaN (h) i = IsInf (h) o = Or (w, i) z = Where (o, zero, h) }""",
}
CONSTANTS = {
    "v": normal(1, 16, 8, scale=0.25), "zero": np.float32(0), "shape": np.array([-1, 16, 1]), "axes": np.array([2]),
}  # fmt: skip
SPOILS = {"NaN": -1.0, "infinity": 0.0}


def model_of(body: str) -> onnx.ModelProto:
    words = set(BODIES[body].replace(",", " ").replace(")", " ").split())
    return build(BODIES[body], **{name: array for name, array in CONSTANTS.items() if name in words})


def feeds_of(spoil: str, at: tuple[int, ...] = (3,), count: int = 12) -> list[dict[str, np.ndarray]]:
    """The feeds numbered in `at` have a value whose logarithm is not finite."""
    feeds = [{"x": normal(n, 2, 16), "t": np.exp(normal(n + 50, 2, 16))} for n in range(count)]
    for number in at:
        feeds[number]["t"][1, 5] = SPOILS[spoil]
    return feeds


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("effort", EFFORT_NAMES)
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_layer_that_reads_nan_or_inf_stays_in_float(
    tmp_path: Path, target: str, effort: Any, spoil: str, body: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, feeds = model_of(body), feeds_of(spoil)
    result = amct_onnx.quantize(model, feeds, target=target, effort=effort)
    decisions = {decision.layer: decision for decision in result.decisions}
    assert decisions["good"].quantized
    assert decisions["bad"].reason == 'tensor "l" holds NaN or Inf'
    assert '"bad"' in caplog.text
    assert 'in float: tensor "l" holds NaN or Inf' in caplog.text
    file = next(f for f in result.save(tmp_path / "m", inspect=False).files if f.endswith("onnx") and "deploy" not in f)
    runs = [ort.InferenceSession(m).run(None, feeds[0]) for m in (model.SerializeToString(), file)]
    assert min(sqnr(wanted, got) for wanted, got in zip(*runs, strict=True)) > 25
    for other in TARGET_NAMES:
        assert not {d.layer: d.quantized for d in result.to(other).decisions}["bad"]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_skip_layers_is_a_way_out(target: str, spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the call, for AMCT's functions and for the command."""
    monkeypatch.chdir(tmp_path)
    model, feeds = model_of("product"), feeds_of(spoil)
    result = amct_onnx.quantize(model, feeds, target=target, skip_layers=["bad"], effort="fast")
    assert [d.layer for d in result.decisions if d.quantized] == ["good"]
    onnx.save(model, "m.onnx")
    np.savez("data.npz", **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
    words = ["--target", target, "--effort", "fast", "--save_path", "out/m", "--no_report", "--skip_layers", "bad"]
    assert main(["quantize", "m.onnx", "--data", "data.npz", *words]) == 0
    flow = Flow.of(model, tmp_path / "flow").configure(batch_num=4).quantize().calibrate(feeds[:4])
    with pytest.raises(RecordError, match=r'layer "bad".*NaN or Inf'):
        flow.save()
    flow.configure(batch_num=4, skip_layers=["bad"]).quantize().calibrate(feeds[:4]).save()


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_where_nothing_is_left_it_is_an_error(target: str) -> None:
    model = build("g (float[N,16] t) => (float[N,8] y) { l = Log (t) [bad] y = MatMul (l, v) }", v=CONSTANTS["v"])
    feeds = [{"t": feed["t"]} for feed in feeds_of("NaN")]
    with pytest.raises(
        CalibrationError, match=r'no layer left.* Layer "bad": tensor "l" holds NaN or Inf: check'
    ) as error:
        amct_onnx.quantize(model, feeds, target=target, effort="fast")
    assert "\n" not in str(error.value)


def test_a_tensor_that_another_target_reads_stops_nothing() -> None:
    """ONNX Runtime has the sum in int8, TensorRT none of its operands; it is infinite."""
    model = build(
        "g (float[N,4,6,6] x) => (float[N,4,6,6] s, float[N,3,6,6] y) { [good] y = Conv (x, w) "
        "a = Conv (x, u) b = Div (x, zero) c = Add (a, b) s = Relu (c) }",
        w=normal(1, 3, 4, 1, 1), u=normal(2, 4, 4, 1, 1), zero=np.float32(0),
    )  # fmt: skip
    for target in TARGET_NAMES:
        result = amct_onnx.quantize(model, normal(3, 8, 4, 6, 6), target=target, effort="fast")
        assert {d.layer: d.quantized for d in result.decisions}["good"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("of", ["weight", "bias"])
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_a_layer_whose_constants_are_not_finite_stays_in_float(target: str, of: str, value: float) -> None:
    constants = {"w": normal(1, 16, 8), "b": normal(2, 8), "u": normal(3, 16, 8)}
    constants["w" if of == "weight" else "b"].reshape(-1)[3] = value
    text = "g (float[N,16] x) => (float[N,8] y, float[N,8] z) { [bad] y = Gemm (x, w, b) [good] z = Gemm (x, u) }"
    result = amct_onnx.quantize(build(text, **constants), normal(4, 12, 16), target=target, effort="fast")
    decisions = {decision.layer: decision for decision in result.decisions}
    assert decisions["good"].quantized
    assert decisions["bad"].reason == f"the {of} holds NaN or Inf"


def test_statistics_of_spoilt_parts_merge_and_are_saved(tmp_path: Path) -> None:
    model, feeds = model_of("product"), feeds_of("NaN", (1, 8))
    parts = [amct_onnx.quantize(model, some, effort="fast").statistics for some in (feeds[:6], feeds[6:])]
    whole = amct_onnx.quantize(model, feeds, effort="fast").statistics
    assert parts[0].merge(parts[1]) == parts[1].merge(parts[0]) == whole
    amct_onnx.save_statistics(whole, tmp_path / "s.npz")
    again = amct_onnx.quantize(model, amct_onnx.load_statistics(tmp_path / "s.npz"))
    assert {d.layer: d.quantized for d in again.decisions}["bad"] is False
