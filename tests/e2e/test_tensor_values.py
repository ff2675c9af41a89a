"""What activations and weights may hold: NaN, Inf, nothing, zeros, constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flow import Flow, build, feeds, images, normal, prepared, two_convs

from amct_onnx.errors import ModelError, RecordError


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_or_inf_in_an_activation_is_an_error_that_names_the_layer(tmp_path: Path, bad: float) -> None:
    x = images(0)
    x[0, 1, 2, 3] = bad
    flow = prepared(tmp_path).calibrate([{"x": x}])
    with pytest.raises(RecordError, match=r'Calibration of layer "conv1".* failed: the tensor holds NaN or Inf'):
        flow.save()
    flow.quantize().calibrate(feeds(0)).save()  # a clean run later is not spoilt


def test_nan_in_a_later_batch_is_an_error_too(tmp_path: Path) -> None:
    flow = prepared(tmp_path, 3).calibrate([*feeds(0), {"x": images(1) * np.float32(np.nan)}, *feeds(2)])
    with pytest.raises(RecordError, match="NaN or Inf"):
        flow.save()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "what"), [("w2", "the weight holds NaN or Inf"), ("b2", "the bias holds NaN or Inf")])
def test_nan_or_inf_in_a_weight_is_an_error_of_quantize_model(tmp_path: Path, name: str, what: str, bad: float) -> None:
    model = two_convs()
    index = [tensor.name for tensor in model.graph.initializer].index(name)
    array = {"w2": normal(3, 5, 4, 1, 1), "b2": normal(4, 5)}[name]
    array.reshape(-1)[2] = bad
    replacement = build("g (float[1] x) => (float[1] y) { y = Neg (x) }", **{name: array}).graph.initializer[0]
    model.graph.initializer[index].CopyFrom(replacement)
    flow = Flow.of(model, tmp_path).configure()
    with pytest.raises(ModelError, match=f'Layer "conv2": {what}.*add the layer to skip_layers'):
        flow.quantize()
    assert not Path(flow.modified).exists()
    assert not Path(flow.record).exists()
    flow.configure(skip_layers=["conv2"]).quantize().calibrate(feeds(0)).save()


@pytest.mark.parametrize(("asymmetric", "offset"), [(True, -128), (False, 0)])
def test_an_all_zero_tensor_gets_scale_one(tmp_path: Path, asymmetric: bool, offset: int) -> None:
    flow = prepared(tmp_path, activation_offset=asymmetric).calibrate([{"x": np.zeros((2, 3, 6, 6), np.float32)}])
    record = flow.records()["conv1"]
    assert (record.scale_d, record.offset_d) == (1.0, offset)
    flow.save()
    x = {"x": images(1)}
    np.testing.assert_array_equal(flow.run_deploy(x), flow.run_fake_quant(x))


@pytest.mark.parametrize("asymmetric", [True, False])
def test_a_tensor_that_would_round_to_zero_is_an_error(tmp_path: Path, asymmetric: bool) -> None:
    """AMCT gives it scale 1, and the layer sees zeros only."""
    flow = prepared(tmp_path, activation_offset=asymmetric).calibrate([{"x": images(0) * np.float32(1e-7)}])
    with pytest.raises(
        RecordError, match=r'layer "conv1".* failed: every value would round to zero.*scale the data up'
    ):
        flow.save()


def test_weights_that_become_zero_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    w = normal(1, 4, 3, 1, 1)
    w[2] *= np.float32(1e-7)
    w[3] = 0  # nothing is lost here
    model = build("g (float[N,3,H,W] x) => (float[N,4,H,W] y) { [conv] y = Conv (x, w) }", w=w)
    flow = Flow.of(model, tmp_path).configure()
    caplog.clear()
    flow.quantize()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "1 channels in 1 layers (first: conv) have weights so small that int8 makes them 0, as AMCT does."
    ]


def test_an_all_zero_channel_of_a_weight_gets_scale_one(tmp_path: Path) -> None:
    w = normal(1, 4, 3, 1, 1)
    w[2] = 0
    model = build("g (float[N,3,H,W] x) => (float[N,4,H,W] y) { [conv] y = Conv (x, w) }", w=w)
    flow = Flow.of(model, tmp_path).run({"x": images(0)})
    assert flow.records()["conv"].scale_w[2] == 1.0
    assert (flow.run_deploy({"x": images(1)})[:, 2] == 0).all()


def test_a_constant_channel_of_a_weight_keeps_its_value(tmp_path: Path) -> None:
    w = normal(1, 4, 3, 1, 1)
    w[1], w[2] = 0.25, -0.25
    model = build("g (float[N,3,H,W] x) => (float[N,4,H,W] y) { [conv] y = Conv (x, w) }", w=w)
    flow = Flow.of(model, tmp_path).run({"x": images(0)})
    scales = flow.records()["conv"].scale_w
    np.testing.assert_allclose(scales[1:3], [0.25 / 127, 0.25 / 128], rtol=1e-6)


def test_a_constant_tensor_is_represented_exactly(tmp_path: Path) -> None:
    flow = prepared(tmp_path).calibrate([{"x": np.full((1, 3, 6, 6), 2.0, np.float32)}])
    record = flow.records()["conv1"]
    assert record.scale_d is not None
    steps = 2.0 / record.scale_d
    assert abs(steps - round(steps)) < 1e-4
