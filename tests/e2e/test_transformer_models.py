"""A trained sentence encoder: what int8 and weights of 4 bits may cost on all test pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformer_models as encoder
from measures import spearman
from onnxruntime.quantization import quantize_dynamic

import amct_onnx

TestData = Callable[..., Path]
pytestmark = pytest.mark.slow

FLOAT = 0.8203  # Spearman's correlation of the float model on the test pairs
# What is promised: integers everywhere in products cost at most 0.003, without data 0.006, weights of 4 bits 0.01.
INT8_LOSS, DYNAMIC_LOSS, INT4_LOSS = 0.003, 0.006, 0.01
SENTENCES, PAIRS = 200, 150


@pytest.fixture
def feeds(test_data: TestData) -> list[dict[str, np.ndarray]]:
    test_data("models", "minilm_l6.onnx")
    test_data("text", "stsb", "test.npz")
    return encoder.calibration(SENTENCES)


def correlation(file: str) -> float:
    items = list(encoder.TASK.test(None))
    found = encoder.embeddings(encoder.open_session(file), items).astype(np.float64)
    first, second = found[:, 0], found[:, 1]
    cosines = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    return float(spearman(np.ones((1, len(items))), cosines, np.array([score for _, score in items]))[0])


def sqnr(file: str) -> float:
    """In dB, on some test pairs."""
    items = list(encoder.TASK.test(PAIRS))
    reference = encoder.embeddings(encoder.open_session(encoder.MODEL), items)
    got = encoder.embeddings(encoder.open_session(file), items)
    return float(encoder.tally(reference, got, items).figures()["dB"].value)


def test_int8_keeps_the_order_of_pairs_and_smoothing_is_why(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    result = amct_onnx.quantize(encoder.MODEL, feeds, reduce_range=True)
    saved = result.save(tmp_path / "int8", inspect=False).files[0]
    assert correlation(saved) >= FLOAT - INT8_LOSS
    fast = amct_onnx.quantize(encoder.MODEL, feeds, reduce_range=True, effort="fast")
    plain = fast.save(tmp_path / "plain", inspect=False).files[0]
    assert sqnr(saved) >= sqnr(plain) + 3


def test_every_product_with_a_weight_is_an_integer_kernel(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    report = amct_onnx.quantize(encoder.MODEL, feeds[:2]).save(tmp_path / "int8").report
    assert report is not None
    assert report.kernels.integer == {"MatMulIntegerToFloat": 36, "Gather": 2}  # words and positions
    # The float kernels that ONNX Runtime fuses in the float model are there still.
    assert report.kernels.floating["BiasGelu"] == 6
    floating = report.kernels.floating
    assert floating.get("LayerNormalization", 0) + floating.get("SkipLayerNormalization", 0) == 13


def test_weights_of_four_bits(feeds: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    found = {}
    for name, data in (("nearest", None), ("gptq", feeds)):
        result = amct_onnx.quantize(encoder.MODEL, data, weight_only=4)
        assert len(result.lowered.blocks) == 36
        found[name] = result.save(tmp_path / name, inspect=False).files[0]
    assert correlation(found["gptq"]) >= FLOAT - INT4_LOSS
    assert sqnr(found["gptq"]) >= sqnr(found["nearest"]) + 2
    # Of 66.9 MB, 23.4 are the table of tokens in float16, and the 42.5 MB of weights become 6.7 with their grids.
    assert Path(found["gptq"]).stat().st_size < 33e6


def test_dynamic_integers_are_nearer_and_smaller_than_those_of_the_runtime_s_tool(
    test_data: TestData, tmp_path: Path
) -> None:
    test_data("models", "minilm_l6.onnx")
    test_data("text", "stsb", "test.npz")
    saved = amct_onnx.quantize(encoder.MODEL, None, dynamic=True, reduce_range=True).save(tmp_path / "ours")
    assert saved.report is not None
    kernels = saved.report.kernels
    assert kernels.integer["MatMulIntegerToFloat"] + kernels.integer["DynamicQuantizeMatMul"] == 36
    assert correlation(saved.files[0]) >= FLOAT - DYNAMIC_LOSS
    theirs = tmp_path / "theirs.onnx"
    quantize_dynamic(encoder.MODEL, theirs, reduce_range=True)
    assert sqnr(saved.files[0]) >= sqnr(str(theirs)) + 3
    assert Path(saved.files[0]).stat().st_size < 0.7 * theirs.stat().st_size
