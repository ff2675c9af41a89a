"""float16 models through the three functions: float16 in, float16 out, and integers between."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, images, normal, operators, sqnr, two_convs
from half import mixed, to_half
from onnx import TensorProto, numpy_helper
from recurrent import GATES, INPUT, recurrent, sequences

import amct_onnx as amct
from amct_onnx.errors import ModelError, RecordError
from amct_onnx.files.record import write_record
from amct_onnx.values.layers import LayerRecord

HALF = np.dtype(np.float16)
# 8 bits and a few layers give 30 to 40 dB on noise, float16 itself 60 dB and more.
MINIMUM_SQNR_DB = 25.0
# The last rounding, to float16, is the only one in which deploy and fake-quant may take another side.
STEP = 2.0**-10

Feeds = dict[str, np.ndarray]


def _half(feeds: Feeds) -> Feeds:
    return {name: array.astype(HALF) for name, array in feeds.items()}


def _every_weight() -> onnx.ModelProto:
    """x [N,3,8,8] -> Conv, BatchNormalization, Relu, ConvTranspose, GlobalAveragePool -> Gemm -> MatMul -> y [N,2]."""
    return build(
        """g (float[N,3,8,8] x) => (float[N,2] y) {
            [conv] a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
            [bn] n = BatchNormalization (a, s, o, m, v)
            [relu] r = Relu (n)
            [deconv] d = ConvTranspose <kernel_shape=[2,2], strides=[2,2]> (r, w2, b2)
            [pool] p = GlobalAveragePool (d)
            [flat] f = Flatten (p)
            [gemm] g = Gemm <transB=1, alpha=0.5, beta=2.0> (f, w3, b3)
            [matmul] y = MatMul (g, w4)
        }""",
        w1=normal(1, 4, 3, 3, 3, scale=0.3),
        b1=normal(2, 4),
        s=np.array([0.5, 1.5, 1.0, 0.8], np.float32),
        o=normal(3, 4, scale=0.2),
        m=normal(4, 4, scale=0.1),
        v=np.array([0.6, 0.9, 1.2, 1.0], np.float32),
        w2=normal(5, 4, 5, 2, 2, scale=0.5),
        b2=normal(6, 5),
        w3=normal(7, 6, 5, scale=0.6),
        b3=normal(8, 6),
        w4=normal(9, 6, 2),
    )


def _types(path: str) -> list[int]:
    graph = onnx.load(path).graph
    return [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]


def _check(flow: Flow, seen: Feeds, fresh: Feeds) -> None:
    for path in (flow.fake_quant, flow.deploy, flow.modified):
        assert _types(path) == _types(flow.model)
    exact = flow.run_float(seen)
    for run in (flow.run_fake_quant, flow.run_deploy):
        assert run(seen).dtype == exact.dtype
        assert sqnr(exact, run(seen)) > MINIMUM_SQNR_DB
    for feeds in (seen, fresh):
        simulated, deployed = flow.run_fake_quant(feeds), flow.run_deploy(feeds)
        np.testing.assert_allclose(deployed.astype(np.float32), simulated.astype(np.float32), rtol=STEP, atol=0)


def test_every_kind_of_layer_takes_and_gives_float16(tmp_path: Path) -> None:
    flow = Flow.of(to_half(_every_weight()), tmp_path).run(_half({"x": normal(0, 4, 3, 8, 8)}))
    records = flow.records()
    assert list(records) == ["conv", "deconv", "gemm", "matmul"]
    assert {record.op_data_type for record in records.values()} == {"FLOAT16"}
    _check(flow, _half({"x": normal(0, 4, 3, 8, 8)}), _half({"x": normal(1, 2, 3, 8, 8)}))


def test_the_deploy_model_has_int8_weights_int32_biases_and_float16_results(tmp_path: Path) -> None:
    flow = Flow.of(to_half(two_convs()), tmp_path).run(_half({"x": images(0)}))
    graph = onnx.load(flow.deploy).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert [types[name] for name in ("w1", "b1", "w2", "b2")] == 2 * [TensorProto.INT8, TensorProto.INT32]
    dtypes = [a.i for n in graph.node if n.op_type == "AscendDequant" for a in n.attribute if a.name == "dtype"]
    assert dtypes == [1, 1]
    assert "Cast" not in operators(flow.deploy)  # AscendQuant reads float16, AscendDequant writes it
    text = (tmp_path / "model_quant.json").read_text()
    assert "DT_FLOAT16" in text
    assert '"DT_FLOAT"' not in text


def test_the_calibration_model_keeps_float16_weights_on_their_grid(tmp_path: Path) -> None:
    model = to_half(two_convs())
    flow = Flow.of(model, tmp_path).configure().quantize()
    graph = onnx.load(flow.modified).graph
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "w1")
    assert tensor.data_type == TensorProto.FLOAT16
    scale = np.array(flow.records()["conv1"].scale_w, np.float32).reshape(-1, 1, 1, 1)
    weight = numpy_helper.to_array(tensor)
    np.testing.assert_array_equal(weight, (np.rint(weight / scale) * scale).astype(HALF))
    original = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w1")
    assert (np.abs(weight.astype(np.float32) - original) <= 0.51 * scale + 2.0**-10 * np.abs(original)).all()


def test_factors_are_those_of_the_same_values_in_float32(tmp_path: Path) -> None:
    """Observers read float16 as float32: the first layer's factors do not depend on the type."""
    half = to_half(two_convs())
    single = onnx.ModelProto()
    single.CopyFrom(two_convs())
    for tensor, other in zip(single.graph.initializer, half.graph.initializer, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(other).astype(np.float32), tensor.name))
    x = images(0).astype(HALF)
    a = Flow.of(half, tmp_path / "half").run({"x": x}).records()["conv1"]
    b = Flow.of(single, tmp_path / "single").run({"x": x.astype(np.float32)}).records()["conv1"]
    assert (a.scale_d, a.offset_d, a.scale_w) == (b.scale_d, b.offset_d, b.scale_w)
    assert (a.op_data_type, b.op_data_type) == ("FLOAT16", "FLOAT32")


def test_sums_that_float16_cannot_hold(tmp_path: Path) -> None:
    """Integer sums of a long row pass 65504 by far; the result is small all the same."""
    model = to_half(
        build(
            "g (float[N,4096] x) => (float[N,3] y) { [gemm] y = Gemm (x, w) }", w=normal(1, 4096, 3, scale=0.02) + 0.03
        )
    )
    seen, fresh = ({"x": (1 + normal(seed, 4, 4096, scale=0.1)).astype(HALF)} for seed in (0, 9))
    flow = Flow.of(model, tmp_path).run(seen)
    assert np.isfinite(flow.run_fake_quant(fresh)).all()
    _check(flow, seen, fresh)


def test_a_model_of_both_types(tmp_path: Path) -> None:
    """Converters leave float32 outside and float16 inside, with Casts between."""
    flow = Flow.of(mixed(two_convs()), tmp_path).run({"x": images(0)})
    assert _types(flow.deploy) == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert {record.op_data_type for record in flow.records().values()} == {"FLOAT16"}
    _check(flow, {"x": images(0)}, {"x": images(9)})


def test_a_float32_layer_beside_a_float16_one(tmp_path: Path) -> None:
    model = build(
        """g (float[N,4] x) => (float[N,3] y) {
            [cast] h = Cast <to=10> (x)
            [half] a = MatMul (h, w)
            [back] b = Cast <to=1> (a)
            [single] y = Gemm (b, v)
        }""",
        w=normal(1, 4, 6).astype(HALF),
        v=normal(2, 6, 3),
    )
    flow = Flow.of(model, tmp_path).run({"x": normal(0, 8, 4)})
    assert {name: record.op_data_type for name, record in flow.records().items()} == {
        "half": "FLOAT16",
        "single": "FLOAT32",
    }
    _check(flow, {"x": normal(0, 8, 4)}, {"x": normal(1, 8, 4)})


def test_weights_near_the_smallest_number_of_float16(tmp_path: Path) -> None:
    """Their scale is about the spacing of float16 there: rounding them twice gives the same integers."""
    weight = np.array([[1, -2, 3], [5, 400, -70]], np.float32) * 2.0**-24
    model = to_half(build("g (float[N,2] x) => (float[N,3] y) { [gemm] y = Gemm (x, w) }", w=weight))
    feeds = _half({"x": normal(0, 4, 2, scale=1000.0)})
    flow = Flow.of(model, tmp_path).run(feeds)
    integers = next(numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer if t.name == "w")
    assert integers.max() == 127
    np.testing.assert_array_equal(integers, np.rint(weight / np.float32(flow.records()["gemm"].scale_w[0])))


def test_balanced_in_float16(tmp_path: Path) -> None:
    gain = np.geomspace(1, 60, 3, dtype=np.float32)
    cfg = tmp_path / "quant.cfg"
    cfg.write_text("common_config : { dmq_balancer : { migration_strength : 0.5 } }")
    seen = _half({"x": images(0) * gain[:, None, None]})
    flow = Flow.of(to_half(two_convs()), tmp_path).configure(config_defination=str(cfg)).balance([seen])
    factors = flow.records()["conv1"].tensor_balance_factor
    flow.quantize().calibrate([seen]).save()
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(flow.deploy).graph.initializer}
    inverse = constants["conv1.tensor_balance_factor"]
    assert inverse.dtype == HALF
    np.testing.assert_allclose(inverse.reshape(-1), 1 / np.array(factors), rtol=2.0**-10)
    _check(flow, seen, _half({"x": images(9) * gain[:, None, None]}))
    records = flow.records()
    edited = tuple(1.01 * factor for factor in factors)
    write_record(flow.record, records | {"conv1": replace(records["conv1"], tensor_balance_factor=edited)})
    with pytest.raises(RecordError, match="tensor_balance_factor of layer conv1 does not fit"):
        flow.save()


@pytest.mark.parametrize("factor", [8e6, 2e-7], ids=["weight", "inverse"])
def test_factors_that_float16_cannot_hold_are_refused(tmp_path: Path, factor: float) -> None:
    cfg = tmp_path / "quant.cfg"
    cfg.write_text("common_config : { dmq_balancer : { migration_strength : 0.5 } }")
    flow = Flow.of(to_half(two_convs()), tmp_path).configure(config_defination=str(cfg))
    factors = {"conv1": (factor, 1.0, 1.0), "conv2": (1.0,) * 4}
    write_record(flow.record, {layer: LayerRecord(tensor_balance_factor=f) for layer, f in factors.items()})
    with pytest.raises(ModelError, match=r'Layer "conv1": .*leave the range of float16'):
        flow.quantize()
    assert not Path(flow.modified).exists()


@pytest.mark.parametrize("change", [{"num_bits": 16}, {"mode": "FORCE_FP16_QUANT"}], ids=str)
def test_options_that_change_what_is_calculated(tmp_path: Path, change: dict[str, Any]) -> None:
    plain = Flow.of(to_half(two_convs()), tmp_path / "plain").run(_half({"x": images(0)})).records()["conv1"]
    flow = Flow.of(to_half(two_convs()), tmp_path / "changed").configure()
    document = json.loads(Path(flow.config).read_text())
    if "mode" in change:
        document["fakequant_precision_mode"] = change["mode"]
    else:
        document["conv1"]["activation_quant_params"] |= change
    Path(flow.config).write_text(json.dumps(document))
    flow.quantize().calibrate([_half({"x": images(0)})]).save()
    scale, before = flow.records()["conv1"].scale_d, plain.scale_d
    assert scale is not None
    assert before is not None
    assert scale == float(np.float16(before)) if "mode" in change else scale < before / 128
    _check(flow, _half({"x": images(0)}), _half({"x": images(9)}))


def test_products_and_tensors_of_float16_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As AMCT for float16 (amct_formats.md: Layer conditions)."""
    model = to_half(
        build(
            """g (float[N,4] x, float[4,N] z) => (float[N,3] y, float[N,N] p) {
                [fc] y = Gemm (x, w)
                [product] p = MatMul (x, z)
            }""",
            w=normal(1, 4, 3),
        )
    )
    flow = Flow.of(model, tmp_path).configure()
    assert "product: its input is FLOAT16, and only float32 is supported" in caplog.text
    assert "product" not in json.loads(Path(flow.config).read_text())


@pytest.mark.parametrize("op_type", GATES)
@pytest.mark.parametrize("length", ["T", 1])
@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
def test_recurrent_layers(tmp_path: Path, op_type: str, length: int | str, states: bool) -> None:
    model = to_half(recurrent(op_type, shape=(length, "N", INPUT), states=states))
    size = length if isinstance(length, int) else 5
    seen, fresh = (_half(sequences(model, length=size, seed=seed)) for seed in (0, 9))
    flow = Flow.of(model, tmp_path).run(seen)
    assert flow.records()["cell"].op_data_type == "FLOAT16"
    _check(flow, seen, fresh)
    sessions = [ort.InferenceSession(path, providers=CPU) for path in (flow.model, flow.fake_quant)]
    sessions.append(amct.deployed_session(flow.deploy))
    exact, *others = (session.run(None, dict(seen)) for session in sessions)
    assert len(exact) == 1 + len(model.graph.node[0].output) - 1
    text = (tmp_path / "model_quant.json").read_text()
    assert "DT_FLOAT16" in text
    assert '"DT_FLOAT"' not in text
    for outputs in others:
        for a, b in zip(exact, outputs, strict=True):
            assert a.dtype == b.dtype == HALF
            assert sqnr(a, b) > MINIMUM_SQNR_DB


def test_the_same_values_give_the_same_files(tmp_path: Path) -> None:
    flows = [Flow.of(to_half(_every_weight()), tmp_path / n).run(_half({"x": normal(0, 4, 3, 8, 8)})) for n in "ab"]
    for path in ("deploy", "fake_quant"):
        first, second = (Path(getattr(flow, path)).read_bytes() for flow in flows)
        assert first == second


def test_a_pool_of_float16_stays_and_the_log_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = to_half(
        build(
            """g (float[N,3,8,8] x) => (float[N,4,4,4] y) {
                [conv] a = Conv (x, w)
                [pool] y = AveragePool <kernel_shape=[2,2], strides=[2,2]> (a)
            }""",
            w=normal(1, 4, 3, 1, 1),
        )
    )
    flow = Flow.of(model, tmp_path).run(_half({"x": normal(0, 2, 3, 8, 8)}))
    assert list(flow.records()) == ["conv"]
    reason = "1 of 2 layers cannot be quantized, and stay in float: pool: its input is FLOAT16"
    assert reason in caplog.text
    _check(flow, _half({"x": normal(0, 2, 3, 8, 8)}), _half({"x": normal(9, 2, 3, 8, 8)}))
