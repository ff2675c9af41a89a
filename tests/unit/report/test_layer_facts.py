"""What a report tells of tensors and weights, beside numpy on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from flow import images, normal, two_convs

import amct_onnx
from amct_onnx.numerics.activations.minmax import params_of_range
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.report.gather import gather
from amct_onnx.report.layer_facts import share_outside, told_histogram, told_weight
from amct_onnx.report.run_data import RunData


def values(kind: str) -> np.ndarray:
    drawn = normal(7, 5000)
    return {
        "both sides": drawn,
        "positive": np.abs(drawn),
        "negative": -np.abs(drawn) - 0.5,
        "far from zero": drawn * 0.01 + 5,
        "small beside large": np.concatenate([drawn * 1e-3, [100.0]]).astype(np.float32),
        "zeros": np.zeros(100, np.float32),
        "one value": np.full(10, 2.5, np.float32),
    }[kind]


KINDS = ["both sides", "positive", "negative", "far from zero", "small beside large", "zeros", "one value"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_histogram_counts_what_lies_in_its_bins(kind: str) -> None:
    x = values(kind)
    told = told_histogram(DyadicHistogram.of(x), None)
    edges = told.start + told.width * np.arange(len(told.counts) + 1)
    assert len(told.counts) <= 65
    assert sum(told.counts) == x.size
    assert edges[0] <= x.min()
    assert x.max() <= edges[-1]
    assert (told.minimum, told.maximum) == (x.min(), x.max())
    exact, _ = np.histogram(x.astype(np.float64), edges)
    beside_zero = [
        place for place, edge in enumerate(edges[:-1]) if abs(edge) < told.width * 0.5 or edge == -told.width
    ]
    for place, (ours, theirs) in enumerate(zip(told.counts, exact, strict=True)):
        if place not in beside_zero and place != len(exact) - 1:
            assert abs(ours - theirs) <= 1  # numpy puts what lies on an edge elsewhere


@pytest.mark.parametrize("cut", [0.5, 1.0, 2.0, 10.0])
def test_the_share_outside_is_that_of_the_values(cut: float) -> None:
    x = values("both sides")
    found = share_outside(DyadicHistogram.of(x), -cut, cut / 2)
    assert found == pytest.approx(((x < -cut) | (x > cut / 2)).mean(), abs=2e-3)


def test_values_that_round_to_the_last_integer_are_not_beyond_it() -> None:
    x = values("positive")
    whole = told_histogram(DyadicHistogram.of(x), params_of_range(0.0, float(x.max()), QSpec(symmetric=False)))
    half = told_histogram(DyadicHistogram.of(x), params_of_range(0.0, float(x.max()) / 2, QSpec(symmetric=False)))
    assert whole.saturated == 0
    assert half.saturated == pytest.approx((x > x.max() / 2).mean(), abs=3e-3)
    assert half.clip is not None
    assert half.clip[1] == pytest.approx(x.max() / 2, rel=0.01)


@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 3, 3), 0), ((8, 5), 1), ((300, 2, 1, 1), 0)])
def test_the_ranges_of_a_weight(shape: tuple[int, ...], axis: int) -> None:
    weight = normal(3, *shape)
    scale = np.abs(weight).max(axis=tuple(i for i in range(len(shape)) if i != axis)) / 127
    grid = QParams(scale=scale, zero_point=np.zeros(len(scale), np.int32), spec=QSpec(channel_axis=axis))
    rounded = fake_quantize(weight, grid)
    told = told_weight(weight, axis, rounded, grid, shape[axis])
    assert (told.channels, told.scales, told.bits) == (shape[axis], shape[axis], 8)
    assert min(told.low) == pytest.approx(weight.min(), rel=1e-2)
    assert max(told.high) == pytest.approx(weight.max(), rel=1e-2)
    noise, signal = np.square(rounded.astype(np.float64) - weight).sum(), np.square(weight, dtype=np.float64).sum()
    assert told.sqnr == pytest.approx(10 * np.log10(signal / noise))
    rows = np.moveaxis(weight, axis, 0).reshape(shape[axis], -1)
    if len(told.low) == shape[axis]:
        assert told.low == pytest.approx(rows.min(axis=1).tolist(), rel=1e-2)
    else:
        assert len(told.low) == 64


@pytest.fixture(scope="module")
def run() -> RunData:
    result = amct_onnx.quantize(two_convs(), images(0, 40), effort="fast", skip_layers=["conv2"])
    return gather(result)


def test_the_facts_of_a_layer(run: RunData) -> None:
    first, second = run.layers
    assert (first.name, first.op_type, first.quantized, first.reads, first.makes) == (
        "conv1",
        "Conv",
        True,
        ("x",),
        ("r",),
    )
    assert first.weight is not None
    assert first.weight.shape == (4, 3, 3, 3)
    assert first.share == pytest.approx(1.0)
    assert first.effect is not None
    assert not second.quantized
    assert "skip" in second.reason or "settings" in second.reason or second.reason
    assert second.alone is None
    assert second.together is not None  # what it makes is wrong by what came before
    assert second.together == pytest.approx(run.accuracy.sqnr)
    assert first.source == ("conv1",)


def test_a_tensor_has_the_values_of_all_samples(run: RunData) -> None:
    assert sum(run.tensors["x"].counts) == 40 * 3 * 6 * 6
    assert run.tensors["x"].clip is not None
    assert run.tensors["x"].minimum == images(0, 40).min()


def test_fused_nodes_are_named_as_the_source_names_them() -> None:
    from flow import build

    model = build(
        """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
            [conv] a = Conv (x, w) [norm] b = BatchNormalization (a, s, o, m, v) [relu] y = Relu (b) }""",
        w=normal(1, 4, 3, 1, 1), s=np.ones(4, np.float32), o=np.zeros(4, np.float32), m=np.zeros(4, np.float32),
        v=np.ones(4, np.float32),
    )  # fmt: skip
    run = gather(amct_onnx.quantize(model, images(0, 4), effort="fast"))
    assert run.layers[0].source == ("conv", "norm")
    assert [node.name for node in run.nodes] == ["conv", "relu"]


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "ascend"])
def test_every_target_has_errors_and_histograms(target: str) -> None:
    run = gather(amct_onnx.quantize(two_convs(), images(0, 8), target=target, effort="fast"))
    assert run.accuracy.sqnr is not None
    assert run.accuracy.sqnr > 20
    for layer in run.layers:
        assert layer.alone is not None
        assert run.tensors[layer.reads[0]].clip is not None


def test_a_result_without_errors_says_why() -> None:
    model = two_convs()
    result = amct_onnx.quantize(model, images(0, 4), effort="fast")
    empty = gather(amct_onnx.quantize(model, result.statistics))
    assert empty.accuracy.sqnr is None
    assert empty.accuracy.problem == "there were no samples to look at"
    assert sum(empty.tensors["x"].counts) == 4 * 3 * 6 * 6


def test_models_without_activations_in_integers_have_weights_and_a_map() -> None:
    from flow import build

    model = build(
        "g (float[N,64] x) => (float[N,64] y) { [a] h = MatMul (x, w) [r] i = Relu (h) [b] y = MatMul (i, v) }",
        w=normal(1, 64, 64), v=normal(2, 64, 64),
    )  # fmt: skip
    for run in (
        gather(amct_onnx.quantize(model, None, weight_only=8)),
        gather(amct_onnx.quantize(model, None, dynamic=True, full_int8=True)),
    ):
        assert run.accuracy.problem
        assert run.layers[0].weight is not None
        assert len(run.nodes) == 3
