"""Tensors without elements, through both doors: a detector finds nothing in some images, a cache is empty at first.

They count nothing where they are empty. Only what is empty in all of the data is named, and stays in float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from flow import Flow, build, normal, sqnr

import amct_onnx
from amct_onnx.errors import DataError, RecordError
from amct_onnx.ptq.options import EFFORT_NAMES, TARGET_NAMES
from amct_onnx.ptq.quantized_model import QuantizedModel

Feed = dict[str, np.ndarray]

# The second stage of a detector: from the boxes that were found to their classes.
STAGES = {
    "products": (
        """g (float[R,16] x, bool[R] found) => (float[K,4] y) {
            [stem] s = MatMul (x, ws)
            t = Relu (s)
            boxes = Compress<axis=0> (t, found)
            [first] h = Gemm (boxes, wa, ba)
            r = Relu (h)
            [second] y = MatMul (r, wb) }""",
        {
            "ws": normal(1, 16, 16, scale=0.25),
            "wa": normal(2, 16, 32, scale=0.25),
            "ba": normal(4, 32),
            "wb": normal(3, 32, 4, scale=0.2),
        },
    ),
    "convolutions": (
        """g (float[R,3,6,6] x, bool[R] found) => (float[K,5,4,4] y) {
            [stem] s = Conv<pads=[1,1,1,1]> (x, ws)
            t = Relu (s)
            boxes = Compress<axis=0> (t, found)
            [first] h = Conv<pads=[1,1,1,1]> (boxes, wa, ba)
            r = Relu (h)
            [second] y = Conv (r, wb) }""",
        {
            "ws": normal(1, 4, 3, 3, 3, scale=0.2),
            "wa": normal(2, 8, 4, 3, 3, scale=0.2),
            "ba": normal(4, 8),
            "wb": normal(3, 5, 8, 3, 3, scale=0.1),
        },
    ),
}


def images(stage: str, counts: list[int]) -> list[Feed]:
    """An image of six regions for each of `counts`, in the first of which so many things are found."""
    shape = (6, 16) if stage == "products" else (6, 3, 6, 6)
    return [{"x": normal(seed, *shape), "found": np.arange(6) < count} for seed, count in enumerate(counts)]


def noise_in_db(model: Any, result: QuantizedModel, feed: Feed, folder: Path) -> float:
    """Signal over noise of what `result` writes."""
    files = result.save(folder / "saved", inspect=False).files
    if result.target == "ascend":
        session = amct_onnx.deployed_session(next(file for file in files if "deploy" in file))
    else:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = ort.InferenceSession(files[0], options)
    exact = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    return sqnr(exact, session.run(None, feed)[0])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("effort", EFFORT_NAMES)
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_what_is_empty_for_some_samples_counts_nothing_for_them(
    tmp_path: Path, stage: str, effort: Any, target: str
) -> None:
    text, weights = STAGES[stage]
    model, feeds = build(text, **weights), images(stage, [0, 2, 3, 0, 1, 6, 0, 4] * 2)
    result = amct_onnx.quantize(model, feeds, target=target, effort=effort, full_int8=True)
    quantized = {decision.layer for decision in result.decisions if decision.quantized}
    assert {"stem", "first", "second"} <= quantized
    assert noise_in_db(model, result, feeds[5], tmp_path) > 20
    if effort != "fast":
        assert any(np.isfinite(step.before) for step in result.steps)
    full = amct_onnx.quantize(model, [feed for feed in feeds if feed["found"].any()], effort="fast")
    if effort == "fast":
        assert full.statistics.tensors["boxes"] == result.statistics.tensors["boxes"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("effort", EFFORT_NAMES)
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_what_is_empty_in_all_of_the_data_stays_in_float_and_is_named(
    tmp_path: Path, stage: str, effort: Any, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, weights = STAGES[stage]
    model = build(text, **weights)
    result = amct_onnx.quantize(model, images(stage, [0] * 8), target=target, effort=effort)
    reasons = {decision.layer: decision.reason for decision in result.decisions}
    assert reasons["stem"] == ""
    assert reasons["first"] == "the tensor boxes is empty in all of the data"
    assert "is empty in all of the data" in reasons["second"]
    assert 'Layer "first" stays in float: the tensor boxes is empty in all of the data' in caplog.text
    (feed,) = images(stage, [4])
    assert noise_in_db(model, result, feed, tmp_path) > 20
    for other in TARGET_NAMES:
        decisions = {decision.layer: decision.quantized for decision in result.to(other).decisions}
        assert (decisions["stem"], decisions["first"], decisions["second"]) == (True, False, False)


def test_statistics_of_empty_tensors_can_be_saved_and_merged(tmp_path: Path) -> None:
    text, weights = STAGES["products"]
    model, feeds = build(text, **weights), images("products", [0, 0, 0, 0, 2, 3])
    parts = [amct_onnx.quantize(model, some, effort="fast").statistics for some in (feeds[:4], feeds[4:])]
    for number, part in enumerate(parts):
        amct_onnx.save_statistics(part, tmp_path / f"{number}.npz")
    first, second = (amct_onnx.load_statistics(tmp_path / f"{number}.npz") for number in (0, 1))
    merged = first.merge(second)
    assert merged == second.merge(first) == amct_onnx.quantize(model, feeds, effort="fast").statistics
    assert all(decision.quantized for decision in amct_onnx.quantize(model, merged).decisions if decision.layer)


def test_layers_that_the_first_samples_do_not_show_are_quantized_all_the_same(tmp_path: Path) -> None:
    """The recipe looks at the first samples alone, in which nothing is found here."""
    text, weights = STAGES["products"]
    model, feeds = build(text, **weights), images("products", [0] * 100 + [3, 4, 5])
    result = amct_onnx.quantize(model, feeds)
    assert {d.layer for d in result.decisions if d.quantized} >= {"stem", "first", "second"}
    assert noise_in_db(model, result, feeds[-1], tmp_path) > 20


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_effects_of_layers_are_measured_where_outputs_are_empty_for_some_samples(target: str) -> None:
    text, weights = STAGES["products"]
    model, feeds = build(text, **weights), images("products", [2, 0, 3, 1] * 4)
    found = amct_onnx.sensitivity(model, feeds, target=target, samples=4)
    assert {"first", "second"} <= {layer.layer for layer in found.layers if 0 < layer.effect < 0.1}
    result = amct_onnx.quantize(model, feeds, target=target, min_sqnr=20)
    assert result.precision is not None
    assert result.precision.result.value >= 20  # four samples are held out, of which two are empty: that proves little
    with pytest.raises(DataError, match="outputs of the model are empty for all of the samples"):
        amct_onnx.sensitivity(result, images("products", [0, 0]))


@pytest.mark.parametrize("effort", ["default", "best"])
@pytest.mark.parametrize("target", TARGET_NAMES)
def test_outputs_whose_size_values_decide_are_judged(tmp_path: Path, target: str, effort: Any) -> None:
    """Rounding moves scores over the threshold, so that the integer model finds another number of boxes."""
    model = build(
        """g (float[N,16] x) => (float[K,8] boxes, int64[K,1] places, float[M,4] best) {
            [body] s = Gemm (x, ws, bs)
            score = ReduceSum<keepdims=0> (s, one)
            good = Greater (score, zero)
            boxes = Compress<axis=0> (s, good)
            found = NonZero (good)
            places = Transpose<perm=[1,0]> (found)
            [head] y = MatMul (boxes, wb)
            size = Shape (y)
            first = Slice (size, zeros, ones)
            few = Div (first, two)
            best, at = TopK<axis=0> (y, few) }""",
        ws=normal(1, 16, 8, scale=0.25),
        bs=normal(2, 8, scale=0.01),
        wb=normal(3, 8, 4),
        one=np.array([1]),
        zero=np.float32(0),
        zeros=np.array([0]),
        ones=np.array([1]),
        two=np.array([2]),
    )
    result = amct_onnx.quantize(
        model, [{"x": normal(seed, 200, 16)} for seed in range(8)], target=target, effort=effort
    )
    assert any(np.isfinite(step.before) for step in result.steps)
    assert {decision.layer for decision in result.decisions if decision.quantized} >= {"body", "head"}
    result.save(tmp_path / "m")
    amct_onnx.sensitivity(result)


def test_weights_that_no_data_reach_are_rounded_to_nearest(tmp_path: Path) -> None:
    text, weights = STAGES["products"]
    model = build(text, **weights)
    result = amct_onnx.quantize(model, images("products", [0] * 4), weight_only=8, block_size=16)
    assert all(decision.quantized for decision in result.decisions)
    assert noise_in_db(model, result, images("products", [4])[0], tmp_path) > 20


# AMCT's functions


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "way", ["plain", "ada_quantize { num_iteration : 10 }", "dmq_balancer { migration_strength : 0.5 }"]
)
@pytest.mark.parametrize("counts", [[0, 2, 6], [3, 0, 0], [1, 0, 4]])
def test_a_batch_in_which_a_tensor_is_empty_counts_and_adds_nothing(
    tmp_path: Path, stage: str, way: str, counts: list[int]
) -> None:
    text, weights = STAGES[stage]
    batches = images(stage, counts)
    full = [batch for batch in batches if batch["found"].any()]
    records = []
    for name, given in (("some", batches), ("full", (full * 3)[:3])):
        flow = Flow.of(build(text, **weights), tmp_path / name)
        cfg = tmp_path / "a.cfg"
        cfg.write_text("batch_num : 3" if way == "plain" else f"batch_num : 3 common_config : {{ {way} }}")
        flow.configure(config_defination=str(cfg))
        if "dmq" in way:
            flow.balance(given)
        flow.quantize().calibrate(given).save()
        x = full[0]
        assert sqnr(flow.run_float(x), flow.run_deploy(x)) > 12
        np.testing.assert_array_equal(flow.run_fake_quant(x), flow.run_deploy(x))
        records.append(flow.records()["first"])
    assert records[0].tensor_balance_factor == records[1].tensor_balance_factor


@pytest.mark.parametrize("stage", STAGES)
def test_layers_whose_tensor_is_empty_in_all_batches_are_named(tmp_path: Path, stage: str) -> None:
    text, weights = STAGES[stage]
    batches = images(stage, [0, 0])
    flow = Flow.of(build(text, **weights), tmp_path).configure(batch_num=2).quantize().calibrate(batches)
    cure = r"feed one in which it holds something, or add the layer to skip_layers"
    with pytest.raises(
        RecordError, match=rf'layer "first" \(and 1 more layers\) failed: .* empty in every batch: {cure}'
    ):
        flow.save()
    flow.configure(batch_num=2, skip_layers=["first", "second"]).quantize().calibrate(batches).save()
    x = images(stage, [5])[0]
    assert sqnr(flow.run_float(x), flow.run_deploy(x)) > 12
