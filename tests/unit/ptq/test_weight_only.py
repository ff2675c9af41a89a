"""`quantize(..., weight_only=4)`: what is quantized and why not, what GPTQ and AdaRound gain, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr, two_convs

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import ArgumentError, ModelError
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.ptq.weight_only import quantize_weights
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.request import Request

WIDTH = 96
MODEL = build(
    """g (float[N,L,96] x) => (float[N,L,32] y) {
        [first] a = MatMul (x, w) [act] r = Relu (a) [second] b = MatMul (r, v)
        [turned] t = Transpose <perm=[0,2,1]> (b) [square] s = MatMul (b, t) [weigh] p = Softmax (s)
        [mix] m = MatMul (p, b) [third] y = MatMul (m, u) }""",
    w=normal(1, WIDTH, 64, scale=0.1),
    v=normal(2, 64, 48, scale=0.2),
    u=normal(3, 48, 32, scale=0.2),
)


def correlated(seed: int) -> np.ndarray:
    """Inputs whose channels are mixtures of a few, as those of trained networks are."""
    return (normal(seed, 2, 40, 24) @ normal(99, 24, WIDTH) + normal(seed + 1, 2, 40, WIDTH, scale=0.1)).astype(
        np.float32
    )


FEEDS = [{"x": correlated(seed)} for seed in range(10, 18)]


def run(model: Any, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(source, providers=CPU)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def test_second_order_rounding_beats_the_nearest_on_other_data(tmp_path: Path) -> None:
    test = [{"x": correlated(seed)} for seed in range(50, 54)]
    exact = run(MODEL, test)
    source = FloatModel.open(MODEL).prepared()
    learned = AdaRound(num_iteration=2000)
    found = {}
    for rounding in ("nearest", "gptq", "adaround"):
        result = quantize_weights(
            source, FEEDS, request=Request(), target=TARGETS["onnxruntime"], rounding=rounding, settings=learned
        )
        found[rounding] = sqnr(exact, run(result.save(tmp_path / rounding, inspect=False).files[0], test))
    assert found["gptq"] > found["nearest"] + 2
    assert found["adaround"] > found["nearest"] + 2


def test_every_product_with_a_weight_is_decided_and_smaller(tmp_path: Path) -> None:
    result = amct_onnx.quantize(MODEL, FEEDS, weight_only=4, skip_layers=["third"])
    decisions = {d.layer: d.reason if not d.quantized else "" for d in result.decisions}
    assert decisions == {
        "first": "",
        "second": "",
        "square": "it multiplies two activations",
        "mix": "it multiplies two activations",
        "third": "it is switched off by the settings",
    }
    assert sorted(result.lowered.blocks) == ["first", "second"]
    saved = result.save(tmp_path / "m")
    assert saved.files == (str(tmp_path / "m_onnxruntime.onnx"),)
    assert saved.report is not None
    assert saved.report.bytes_after < 0.5 * saved.report.bytes_before
    kinds = [node.op_type for node in onnx.load(saved.files[0]).graph.node]
    assert kinds.count("MatMulNBits") == 2


def test_without_data_weights_are_rounded_to_the_nearest() -> None:
    result = amct_onnx.quantize(MODEL, None, weight_only=4)
    for weight, array in (("first", "w"), ("second", "v")):
        block = result.lowered.blocks[weight]
        rows = next(onnx.numpy_helper.to_array(i) for i in MODEL.graph.initializer if i.name == array).T
        assert np.array_equal(block.integers, block.grid.quantize(rows))


def test_the_command_gives_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(MODEL, path)
    words = ["--weight_only", "4", "--block_size", "16", "--save_path", str(tmp_path / "command"), "--no_report"]
    assert main(["quantize", str(path), *words]) == 0
    called = amct_onnx.quantize(path, None, weight_only=4, block_size=16).save(tmp_path / "call", inspect=False)
    assert (tmp_path / "command_onnxruntime.onnx").read_bytes() == Path(called.files[0]).read_bytes()


def test_eight_bits_lose_less_than_four(tmp_path: Path) -> None:
    found = {}
    for bits in (4, 8):
        result = amct_onnx.quantize(MODEL, FEEDS, weight_only=bits, block_size=16)
        file = result.save(tmp_path / f"{bits}", inspect=False).files[0]
        found[bits] = sqnr(run(MODEL, FEEDS), run(file, FEEDS))
    assert found[8] > found[4] + 5


def test_equal_calls_give_equal_bytes_and_the_number_of_feeds_is_kept(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        result = amct_onnx.quantize(MODEL, iter(FEEDS), weight_only=4)
        assert result.statistics.samples == sum(len(feed["x"]) for feed in FEEDS)
        files.append(Path(result.save(tmp_path / name, inspect=False).files[0]).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weight_only": 4, "target": "openvino"}, "weight_only needs target onnxruntime, got openvino"),
        ({"weight_only": 3}, "weight_only=3 bits: use 4 or 8"),
        ({"weight_only": 4, "block_size": 24}, "block_size=24 is no power of two from 16 on"),
        ({"weight_only": 4, "block_size": 8}, "block_size=8 is no power of two from 16 on"),
        ({"weight_only": 4, "block_size": 32.0}, "block_size=32.0 is no power of two"),
    ],
)
def test_what_the_operator_does_not_have_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        amct_onnx.quantize(MODEL, FEEDS, **arguments)


def test_statistics_do_not_help() -> None:
    statistics = amct_onnx.quantize(MODEL, FEEDS).statistics
    with pytest.raises(ArgumentError, match="cannot use statistics"):
        amct_onnx.quantize(MODEL, statistics, weight_only=4)


def test_a_model_without_products() -> None:
    with pytest.raises(ModelError, match="no product whose weight could be quantized"):
        amct_onnx.quantize(two_convs(), [{"x": normal(0, 1, 3, 4, 4)}], weight_only=4)


def test_there_is_no_other_target() -> None:
    with pytest.raises(ArgumentError, match="no other target"):
        amct_onnx.quantize(MODEL, None, weight_only=4).to("openvino")
