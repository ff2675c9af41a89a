"""What SmoothQuant claims, on the whole of `quantize`: the same function in float, less error in integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr
from qdq_graph import exact_session

import amct_onnx

WIDTH, HIDDEN = 48, 96
FEEDS = [{"x": normal(seed, 2, 7, WIDTH)} for seed in range(10, 18)]
BLOCK = """g (float[N,L,48] x) => (float[N,L,48] y) {{
    [norm] t = LayerNormalization <axis=-1> (x, g, b)
    [up] u = MatMul (t, w) [add] a = Add (u, c) [act] r = Tanh (a) [down] d = MatMul (r, v)
    [residual] y = Add (d, {residual}) }}"""


def block(*, outliers: bool = True, post_norm: bool = False) -> onnx.ModelProto:
    """A feed-forward block whose normalization makes two channels forty times as large as the others.

    Where a residual sum reads the normalization, the outliers are in the output too; its weights undo them.
    """
    scale = np.ones(WIDTH, np.float32)
    scale[[5, 30]] = 40 if outliers else 1
    up = normal(1, WIDTH, HIDDEN, scale=0.1) / scale[:, None]
    return build(
        BLOCK.format(residual="t" if post_norm else "x"),
        g=scale,
        b=normal(2, WIDTH, scale=0.1),
        w=up.astype(np.float32),
        c=normal(3, HIDDEN),
        v=normal(4, HIDDEN, WIDTH, scale=0.1),
    )


def outputs(model: bytes | onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    source = model if isinstance(model, bytes) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=CPU)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def errors(model: onnx.ModelProto, tmp_path: Path, **options: object) -> float:
    """SQNR in dB on other data than those of the calibration, of what the block adds to its residual."""
    test = [{"x": normal(seed, 2, 7, WIDTH)} for seed in range(50, 54)]
    result = amct_onnx.quantize(model, FEEDS, reduce_range=True, **options)
    file = result.save(tmp_path / "m", inspect=False).files[0]
    session = exact_session(file)
    got = np.concatenate([session.run(None, feed)[0] for feed in test])
    exact = outputs(model, test)
    residual = np.concatenate([feed["x"] for feed in test])
    return sqnr(exact - residual, got - residual)


def test_outlier_channels_cost_less(tmp_path: Path) -> None:
    smoothed, plain = errors(block(), tmp_path), errors(block(), tmp_path, effort="fast")
    assert smoothed > plain + 10


def test_a_model_without_outliers_stays_as_it_is() -> None:
    result = amct_onnx.quantize(block(outliers=False), FEEDS)
    names = {node.name for node in result.model().graph}
    assert not any("smooth" in (name or "") for name in names)
    assert np.array_equal(result.model().graph.initializers["g"].const_value.numpy(), np.ones(WIDTH, np.float32))


def test_before_a_residual_sum_a_mul_is_added_and_decisions_name_nodes_of_the_user() -> None:
    model = block(post_norm=True)
    result = amct_onnx.quantize(model, FEEDS)
    assert "t.smooth" in {node.name for node in result.model().graph}
    assert {decision.layer for decision in result.decisions} <= {node.name for node in model.graph.node}
    assert {d.layer for d in result.decisions if d.quantized} >= {"up", "down"}


def test_the_step_is_reported_and_left_out_where_nothing_is_tried() -> None:
    model = block(post_norm=True)
    steps = [step for step in amct_onnx.quantize(model, FEEDS).steps if "smoothed" in step.name]
    assert [step.name[-3:] for step in steps] == ["0.5", "0.7"]
    assert steps[0].kept
    for result in (amct_onnx.quantize(model, FEEDS, effort="fast"), amct_onnx.quantize(model, FEEDS, target="ascend")):
        assert "t.smooth" not in {node.name for node in result.calibration.source.model.graph}


def test_the_statistics_know_the_factors(tmp_path: Path) -> None:
    model = block(post_norm=True)
    result = amct_onnx.quantize(model, FEEDS)
    assert "t" in result.statistics.factors
    amct_onnx.save_statistics(result.statistics, tmp_path / "s.npz")
    again = amct_onnx.quantize(model, amct_onnx.load_statistics(tmp_path / "s.npz"))
    assert again.activations == result.activations


def test_other_targets_are_smoothed_from_the_same_statistics() -> None:
    result = amct_onnx.quantize(block(post_norm=True), FEEDS).to("openvino")
    assert "t.smoothed" in result.activations
    assert "t" not in result.activations


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_constants_in_front_take_the_factors_where_only_products_read(target: str) -> None:
    result = amct_onnx.quantize(block(), FEEDS).to(target)
    scales = {value.name: value.const_value for value in result.model().graph.initializers.values()}
    assert scales["g"].numpy().max() / np.median(scales["g"].numpy()) < 4
    assert not any("smooth" in (node.name or "") for node in result.model().graph)


def test_a_residual_sum_that_is_quantized_too_keeps_what_it_reads() -> None:
    result = amct_onnx.quantize(block(post_norm=True), FEEDS, target="tensorrt")
    assert "t" in result.activations
    assert "t.smoothed" not in result.activations
