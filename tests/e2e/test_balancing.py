"""Balancing (DMQ) as a user's script drives it: quantize_preprocess, its model, then the other functions."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, check_outputs, node_named, normal, operators, sqnr
from onnx import numpy_helper
from refusal import refused
from searching import ErrorEvaluator

import amct_onnx as amct
from amct_onnx.errors import CalibrationError, ConfigError, ModelError, OutputError, RecordError, RecordValueError
from amct_onnx.files.record import read_calibration, write_record
from amct_onnx.numerics.channel_factors import dmq_factors

FLOAT32_ROUNDING = 1e-6


def set_strength(flow: Flow, strengths: dict[str, float | None]) -> None:
    """Give layers of config.json a dmq_balancer_param, or take it away."""
    settings = json.loads(Path(flow.config).read_text())
    for layer, strength in strengths.items():
        if strength is None:
            settings[layer].pop("dmq_balancer_param", None)
        else:
            settings[layer]["dmq_balancer_param"] = strength
    Path(flow.config).write_text(json.dumps(settings))


OUTLIER = 60.0
# What balancing gives on such channels; measured 24 dB and more, and 10 dB where weights do not make up for them.
GAIN_DB, SMALL_GAIN_DB = 15.0, 5.0


def outliers(seed: int, *shape: int, axis: int, factor: float = OUTLIER) -> np.ndarray:
    """Noise with one large channel in eight."""
    x = np.moveaxis(normal(seed, *shape), axis, 0).copy()
    x[::8] *= factor
    return np.ascontiguousarray(np.moveaxis(x, 0, axis))


@dataclass(frozen=True)
class Kind:
    """A model of one layer: its input and output, its nodes, shapes of weight and input, and where channels are.

    `w_axis` is the axis of the weight that the input channels run along, None for grouped ones.
    """

    types: str
    body: str
    weight: tuple[int, ...]
    x: tuple[int, ...]
    axis: int = 1
    w_axis: int | None = None

    def model(self) -> onnx.ModelProto:
        """The input channels that are large meet small weights, as in networks: they matter as much as the others."""
        weight = normal(1, *self.weight, scale=0.4)
        if self.w_axis is not None:
            weight = outliers(1, *self.weight, axis=self.w_axis, factor=1 / OUTLIER) * np.float32(0.4)
        return build(f"g {self.types} {{{self.body}}}", w=weight, b=normal(2, 8))

    def feeds(self, seed: int) -> dict[str, np.ndarray]:
        return {"x": outliers(seed, *self.x, axis=self.axis)}


IMAGE = "(float[N,16,H,W] x) => (float[N,8,P,Q] y)"
MODELS = {
    "1x1": Kind(IMAGE, "[layer] y = Conv (x, w, b)", (8, 16, 1, 1), (2, 16, 5, 5), w_axis=1),
    "3x3 grouped": Kind(IMAGE, "[layer] y = Conv <group=2> (x, w, b)", (8, 8, 3, 3), (2, 16, 6, 6), w_axis=1),
    "depthwise": Kind(
        "(float[N,8,H,W] x) => (float[N,8,P,Q] y)", "[layer] y = Conv <group=8> (x, w, b)", (8, 1, 3, 3), (2, 8, 6, 6)
    ),
    "3-D": Kind(
        "(float[N,16,D,H,W] x) => (float[N,8,O,P,Q] y)", "[layer] y = Conv (x, w, b)", (8, 16, 1, 2, 2),
        (2, 16, 3, 4, 4), w_axis=1,
    ),
    "transposed": Kind(IMAGE, "[layer] y = ConvTranspose (x, w, b)", (16, 8, 3, 3), (2, 16, 4, 4), w_axis=0),
    "transposed grouped": Kind(
        IMAGE, "[layer] y = ConvTranspose <group=2, strides=[2,2]> (x, w, b)", (16, 4, 3, 3), (2, 16, 4, 4), w_axis=0
    ),
    "Gemm transB alpha": Kind(
        "(float[N,16] x) => (float[N,8] y)", "[layer] y = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b)", (8, 16),
        (9, 16), w_axis=1,
    ),
    "Gemm transA": Kind(
        "(float[16,N] x) => (float[N,8] y)", "[layer] y = Gemm <transA=1> (x, w, b)", (16, 8), (16, 9), axis=0, w_axis=0
    ),
    "MatMul on 3-D": Kind(
        "(float[N,M,16] x) => (float[N,M,8] y)", "[layer] a = MatMul (x, w) [add] y = Add (a, b)", (16, 8), (2, 7, 16),
        axis=2, w_axis=0,
    ),
    "MatMul with a 3-D weight": Kind(
        "(float[2,M,16] x) => (float[2,M,8] y)", "[layer] a = MatMul (x, w) [add] y = Add (a, b)", (2, 16, 8),
        (2, 7, 16), axis=2, w_axis=1,
    ),
}  # fmt: skip


def maxima(x: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(np.moveaxis(x, axis, 0)).reshape(x.shape[axis], -1).max(axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_layer(name: str, tmp_path: Path) -> None:
    """The Mul is in all models, both results are the same bits, and layers with outlier channels lose less."""
    kind = MODELS[name]
    seen, fresh = kind.feeds(3), kind.feeds(4)
    flow = Flow.of(kind.model(), tmp_path / "balanced").configure(batch_num=1)
    set_strength(flow, {"layer": 0.5})
    flow.balance([seen])
    factors = flow.records()["layer"].tensor_balance_factor
    flow.quantize().calibrate([seen]).save()
    assert len(factors) == kind.x[kind.axis]
    assert flow.records()["layer"].tensor_balance_factor == factors
    for file in (flow.modified, flow.deploy, flow.fake_quant):
        assert "layer.tensor_balance_factor" in node_named(file, "layer.mul").input
        constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        inverse = constants["layer.tensor_balance_factor"].reshape(-1)
        np.testing.assert_array_equal(inverse, 1 / np.array(factors, np.float32))
    check_outputs(flow, seen, fresh)

    plain = Flow.of(kind.model(), tmp_path / "plain").run(seen)
    before, after = (sqnr(f.run_float(seen), f.run_fake_quant(seen)) for f in (plain, flow))
    assert after > before + (GAIN_DB if kind.w_axis is not None else SMALL_GAIN_DB)


def chain() -> onnx.ModelProto:
    """x -> conv1 -> conv2 -> y, conv1 also into conv3: all with a weight, conv1 followed by a Mul at once."""
    return build(
        """g (float[N,3,H,W] x) => (float[N,5,P,Q] y, float[N,5,P,Q] z) {
            [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
            [conv2] y = Conv (a, w2)
            [conv3] z = Conv (a, w3)
        }""",
        w1=normal(1, 8, 3, 3, 3, scale=0.3), b1=normal(2, 8),
        w2=normal(3, 5, 8, 1, 1, scale=0.5), w3=outliers(4, 5, 8, 1, 1, axis=1, factor=20.0),
    )  # fmt: skip


def image(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": normal(seed, 2, 3, 6, 6, scale=scale)}


def configured(folder: Path, batch_num: int = 1, **strengths: float | None) -> Flow:
    flow = Flow.of(chain(), folder).configure(batch_num=batch_num)
    set_strength(flow, strengths or {"conv1": 0.5, "conv2": 0.5, "conv3": 0.5})
    return flow


@pytest.mark.parametrize("skip", [[], ["conv1"]], ids=["conv1 quantized", "conv1 in float"])
def test_a_mul_behind_a_convolution_is_not_merged_into_it(tmp_path: Path, skip: list[str]) -> None:
    flow = Flow.of(chain(), tmp_path).configure(batch_num=1, skip_layers=skip)
    set_strength(flow, {"conv2": 0.4, "conv3": 0.6})
    flow.balance([image(0)]).quantize().calibrate([image(0)]).save()
    for seed in range(5):
        np.testing.assert_array_equal(flow.run_deploy(image(seed)), flow.run_fake_quant(image(seed)))
    check_outputs(flow, image(0), image(9))


def test_layers_that_read_one_tensor_have_their_own_factors_and_quantizers(tmp_path: Path) -> None:
    flow = configured(tmp_path, conv2=0.5, conv3=0.5)
    flow.balance([image(0)]).quantize().calibrate([image(0)]).save()
    records = flow.records()
    assert records["conv2"].tensor_balance_factor != records["conv3"].tensor_balance_factor
    assert records["conv2"].scale_d != records["conv3"].scale_d
    assert records["conv1"].tensor_balance_factor == ()
    assert operators(flow.deploy).count("AscendQuant") == 3
    assert operators(flow.deploy).count("Mul") == 2


def test_layers_that_share_a_weight_are_balanced_each_for_itself(tmp_path: Path) -> None:
    model = build(
        """g (float[N,8] x) => (float[N,8] y) {
            [one] a = MatMul (x, w) [scale] s = Mul (a, c) [two] y = MatMul (s, w)
        }""",
        w=normal(1, 8, 8, scale=0.4), c=np.geomspace(1, 50, 8, dtype=np.float32),
    )  # fmt: skip
    feeds = {"x": normal(0, 20, 8)}
    flow = Flow.of(model, tmp_path).configure(batch_num=1)
    set_strength(flow, {"one": 0.5, "two": 0.5})
    flow.balance([feeds]).quantize().calibrate([feeds]).save()
    first, second = (flow.records()[layer].tensor_balance_factor for layer in ("one", "two"))
    assert first != second
    check_outputs(flow, feeds, {"x": normal(5, 20, 8)})


def test_the_calibration_model_computes_the_float_function(tmp_path: Path) -> None:
    """Balancing changes nothing but the rounding of weights: with all of them on the grid already, nothing at all."""
    flow = configured(tmp_path).balance([image(0)])
    session = ort.InferenceSession(flow.balancing, amct.AMCT_SO, providers=CPU)
    np.testing.assert_allclose(session.run(["y"], image(1))[0], flow.run_float(image(1)), rtol=1e-4, atol=1e-5)
    flow.quantize()
    got = flow.session().run(["y"], image(1))[0]
    assert sqnr(flow.run_float(image(1)), got) > 30  # the error of int8 weights only


def test_the_strength_is_honoured(tmp_path: Path) -> None:
    x, weight = image(0)["x"], normal(1, 8, 3, 3, 3, scale=0.3)
    found = []
    for strength in (0.2, 0.5, 0.8):
        flow = configured(tmp_path / str(strength), conv1=strength).balance([image(0)])
        found.append(flow.records()["conv1"].tensor_balance_factor)
        wanted = dmq_factors(maxima(x, 1), maxima(weight, 1), strength)
        np.testing.assert_allclose(found[-1], wanted, rtol=FLOAT32_ROUNDING)
    assert len(set(found)) == 3


def test_fusion_comes_first(tmp_path: Path) -> None:
    """The factors belong to the weight with its batch normalization."""
    c = np.array([0.1, 1, 10, 100], np.float32)
    model = build(
        """g (float[N,3,H,W] x) => (float[N,4,P,Q] y) {
            [conv] a = Conv (x, w) [bn] y = BatchNormalization <epsilon=0.0> (a, s, o, m, v)
        }""",
        w=normal(1, 4, 3, 1, 1), s=c, o=normal(2, 4), m=normal(3, 4), v=np.ones(4, np.float32),
    )  # fmt: skip
    flow = Flow.of(model, tmp_path).configure(batch_num=1)
    set_strength(flow, {"conv": 0.5})
    flow.balance([image(0)])
    fused = normal(1, 4, 3, 1, 1) * c.reshape(4, 1, 1, 1)
    wanted = dmq_factors(maxima(image(0)["x"], 1), maxima(fused, 1), 0.5)
    np.testing.assert_allclose(flow.records()["conv"].tensor_balance_factor, wanted, rtol=FLOAT32_ROUNDING)
    flow.quantize().calibrate([image(0)]).save()
    check_outputs(flow, image(0), image(1))


# Batches


def factors_of(flow: Flow) -> dict[str, tuple[float, ...]]:
    return {layer: record.tensor_balance_factor for layer, record in flow.records().items()}


def test_the_factors_are_those_of_the_largest_magnitudes_over_all_batches(tmp_path: Path) -> None:
    batches = [image(0), image(1, 3.0), image(2)]
    flow = configured(tmp_path / "all").balance(batches[:1])
    after_one = factors_of(flow)
    for batch in batches[1:]:
        ort.InferenceSession(flow.balancing, amct.AMCT_SO, providers=CPU).run(None, batch)
    assert factors_of(flow) != after_one  # the record is renewed after each batch
    together = {"x": np.concatenate([batch["x"] for batch in batches])}
    once = configured(tmp_path / "once").balance([together])
    assert factors_of(flow).keys() == factors_of(once).keys()
    for layer, factors in factors_of(once).items():
        # a batch of another size may be summed up in another order
        np.testing.assert_allclose(factors_of(flow)[layer], factors, rtol=1e-5)
    backwards = configured(tmp_path / "backwards").balance(batches[::-1])
    assert factors_of(backwards) == factors_of(flow)


def test_sessions_in_threads_count_together(tmp_path: Path) -> None:
    batches = [image(seed, 1.0 + seed) for seed in range(6)]
    one = configured(tmp_path / "one").balance(batches)
    many = configured(tmp_path / "many").balance([])
    sessions = [ort.InferenceSession(many.balancing, amct.AMCT_SO, providers=CPU) for _ in batches]
    threads = [threading.Thread(target=s.run, args=(None, b)) for s, b in zip(sessions, batches, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    many.quantize()
    assert factors_of(many) == factors_of(one.quantize())


def test_preprocessing_may_have_a_process_of_its_own(tmp_path: Path) -> None:
    here = configured(tmp_path / "here").balance([image(0), image(1)])
    there = configured(tmp_path / "there")
    np.save(tmp_path / "batches.npy", np.stack([image(0)["x"], image(1)["x"]]))
    script = f"""
import numpy as np, onnxruntime as ort, amct_onnx as amct
amct.quantize_preprocess({there.config!r}, {there.record!r}, {there.model!r}, {there.balancing!r})
session = ort.InferenceSession({there.balancing!r}, amct.AMCT_SO)
for batch in np.load({str(tmp_path / "batches.npy")!r}):
    session.run(None, {{"x": batch}})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
    assert there.record_bytes() == here.record_bytes()
    there.quantize().calibrate([image(0)]).save()
    check_outputs(there, image(0), image(1))


# What goes wrong


def test_a_configuration_without_balancing_is_refused(tmp_path: Path) -> None:
    flow = Flow.of(chain(), tmp_path).configure()
    text = "^No dmq_balancer layer in quant config file, please check the quant config file: .*config.json"
    with refused(tmp_path, ModelError, text, "dmq_balancer"):
        flow.balance([])
    settings = json.loads(Path(flow.config).read_text())
    settings["conv1"] |= {"dmq_balancer_param": 0.5, "quant_enable": False}
    Path(flow.config).write_text(json.dumps(settings))
    with refused(tmp_path, ModelError, text):
        flow.balance([])


def test_layers_that_cannot_be_balanced_are_named(tmp_path: Path) -> None:
    model = build("g (float[N,3,L] x) => (float y) {[conv] y = Conv (x, w)}", w=normal(0, 2, 3, 3))
    flow = Flow.of(model, tmp_path).configure()
    set_strength(flow, {"conv": 0.5})
    with refused(tmp_path, ConfigError, r"conv\.dmq_balancer_param: Layer conv does not support dmq_balancer"):
        flow.balance([])


def test_a_record_without_factors(tmp_path: Path) -> None:
    flow = configured(tmp_path)
    indicates = "^config_file indicates dmq_balancer, but "
    with refused(tmp_path, RecordError, f"{indicates}record_file .*record.txt does not exist: run quantize_preprocess"):
        flow.quantize()
    Path(flow.record).write_text("")
    with refused(tmp_path, RecordError, f"{indicates}record_file is empty: .*record.txt", "run quantize_preprocess"):
        flow.quantize()
    flow.balance([])
    with refused(tmp_path, RecordError, f"{indicates}record_file is empty", "at least one batch"):
        flow.quantize()
    flow.balance([image(0)])
    Path(flow.record).write_text(re.sub(r'(?s)record {\n  key: "conv2".*?\n}\n', "", Path(flow.record).read_text()))
    with refused(tmp_path, RecordError, f"{indicates}.*no tensor_balance_factor of layer conv2: run quantize_pre"):
        flow.quantize()


def test_a_key_that_is_no_node_is_named(tmp_path: Path) -> None:
    flow = configured(tmp_path, conv1=0.5, conv2=0.5).balance([image(0)])
    records = flow.records()
    write_record(flow.record, {"konv1": records["conv1"], "conv2": records["conv2"]})
    named = r"record\.txt: konv1: find konv1 failure in the model.*mean 'conv1'"
    with refused(tmp_path, RecordError, named):
        flow.quantize()
    evaluator = ErrorEvaluator([image(0)["x"]], 1.0)
    with pytest.raises(RecordError, match=named):
        amct.accuracy_based_auto_calibration(
            flow.model, evaluator, flow.config, flow.record, str(tmp_path / "results" / "model")
        )


def test_factors_out_of_range_or_of_another_length(tmp_path: Path) -> None:
    flow = configured(tmp_path, conv1=0.5).balance([image(0)])
    record = flow.records()["conv1"]
    write_record(flow.record, {"conv1": replace(record, tensor_balance_factor=(1.0, 0.0, 1.0))})
    with refused(tmp_path, RecordValueError, r"conv1\.tensor_balance_factor\[1\]: must be in"):
        flow.quantize()
    write_record(flow.record, {"conv1": replace(record, tensor_balance_factor=(1.0, 2.0))})
    with refused(tmp_path, RecordError, r"conv1\.tensor_balance_factor: must have 3 elements"):
        flow.quantize()


def other_strength(flow: Flow) -> None:
    set_strength(flow, {"conv2": 0.7})


def fewer_layers(flow: Flow) -> None:
    set_strength(flow, {"conv2": None})


def other_weight(flow: Flow) -> None:
    model = onnx.load(flow.model)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, flow.model)


@pytest.mark.parametrize("change", [other_strength, fewer_layers, other_weight])
def test_factors_of_other_settings_or_weights(tmp_path: Path, change: Callable[[Flow], None]) -> None:
    flow = configured(tmp_path).balance([image(0)])
    change(flow)
    with refused(
        tmp_path, RecordError, "balance factors were made for other layers, other weights", "run quantize_pre"
    ):
        flow.quantize()


def test_other_settings_may_change_between_the_two(tmp_path: Path) -> None:
    flow = configured(tmp_path).balance([image(0)])
    settings = json.loads(Path(flow.config).read_text())
    settings["batch_num"] = 2
    settings["conv1"]["activation_quant_params"]["asymmetric"] = False
    settings["conv2"]["quant_enable"] = False
    Path(flow.config).write_text(json.dumps(settings))
    flow.quantize().calibrate([image(0), image(1)]).save()
    assert operators(flow.deploy).count("Mul") == 2
    check_outputs(flow, image(0), image(1))
    # the factors of a layer that stays in float now are kept for later
    settings["conv2"]["quant_enable"] = True
    Path(flow.config).write_text(json.dumps(settings))
    flow.quantize().calibrate([image(0), image(1)]).save()
    assert operators(flow.deploy).count("Mul") == 3


def test_quantize_model_may_run_again_on_its_record(tmp_path: Path) -> None:
    flow = configured(tmp_path).balance([image(0)]).quantize()
    first = flow.record_bytes()
    assert flow.quantize().record_bytes() == first
    flow.calibrate([image(0)]).save()
    assert flow.quantize().record_bytes() == first
    assert re.fullmatch("[0-9a-f]{16}[.][0-9a-f]{16}", read_calibration(flow.record))
    flow.calibrate([image(0)]).save()
    check_outputs(flow, image(0), image(1))


def test_a_batch_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    flow = configured(tmp_path).balance([image(0)])
    bad = image(1)
    bad["x"][0, 0, 0, 0] = np.nan
    ort.InferenceSession(flow.balancing, amct.AMCT_SO, providers=CPU).run(None, bad)
    for _ in range(2):
        with pytest.raises(
            RecordError, match=r'Balancing of layer "conv1" \(and 2 more layers\) failed: .*NaN or Inf.*run'
        ):
            flow.quantize()
    flow.balance([image(0)]).quantize()


def test_a_tensor_of_one_dimension_is_not_balanced(tmp_path: Path) -> None:
    model = build("g (float[8] x) => (float[4] y) {[layer] y = MatMul (x, w)}", w=normal(0, 8, 4))
    flow = Flow.of(model, tmp_path).configure()
    set_strength(flow, {"layer": 0.5})
    flow.balance([{"x": normal(1, 8)}])
    with pytest.raises(RecordError, match=r'layer "layer" failed: a tensor of shape \[8\] cannot be balanced'):
        flow.quantize()


def test_the_balancing_model_is_no_calibration_model(tmp_path: Path) -> None:
    flow = configured(tmp_path).balance([image(0)])
    with refused(tmp_path, ModelError, "balancing.onnx was written by quantize_preprocess: run quantize_model"):
        amct.save_model(flow.balancing, flow.record, str(tmp_path / "model"))
    with refused(tmp_path, ModelError, "The model cannot be quantized"):
        amct.quantize_model(flow.config, flow.balancing, flow.modified, flow.record)


def test_the_balancing_model_does_not_disturb_a_calibration(tmp_path: Path) -> None:
    flow = configured(tmp_path).balance([image(0)]).quantize()
    before = flow.record_bytes()
    ort.InferenceSession(flow.balancing, amct.AMCT_SO, providers=CPU).run(None, image(1))
    assert flow.record_bytes() == before
    with pytest.raises(CalibrationError, match="begun by another quantize_model call"):
        flow.save()
    flow.calibrate([image(0)]).save()
    check_outputs(flow, image(0), image(1))


def test_factors_that_are_not_used_are_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flow = configured(tmp_path).balance([image(0)])
    set_strength(flow, {"conv1": None, "conv2": None, "conv3": None})
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        flow.quantize()
    assert "holds balance factors, which are dropped" in caplog.text
    assert not any(factors_of(flow).values())


def test_edited_factors_do_not_fit_the_model(tmp_path: Path) -> None:
    flow = configured(tmp_path).balance([image(0)]).quantize().calibrate([image(0)])
    text = Path(flow.record).read_text()
    Path(flow.record).write_text(re.sub(r"tensor_balance_factor: \S+", "tensor_balance_factor: 1.5", text, count=1))
    with refused(tmp_path, RecordError, r"record\.txt: tensor_balance_factor of layer conv1 does not fit the model"):
        flow.save()
    Path(flow.record).write_text(re.sub(r" *tensor_balance_factor: \S+\n", "", text))
    with refused(tmp_path, RecordError, r"record\.txt: tensor_balance_factor of layer conv1 does not fit the model"):
        flow.save()


def test_nothing_is_written_when_the_model_cannot_be(tmp_path: Path) -> None:
    flow = configured(tmp_path)
    (tmp_path / "blocked").write_text("")
    with refused(tmp_path, OutputError, "blocked"):
        amct.quantize_preprocess(flow.config, flow.record, flow.model, str(tmp_path / "blocked" / "m.onnx"))
