"""Trained models on real images: deploy models compute what fake-quant models do, and stay close to float."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import shared_data as shared
from flow import CPU, Flow, sqnr
from slow import mark_slow

import amct_onnx as amct

Feeds = dict[str, np.ndarray]
MINIMUM_SQNR_DEPLOY_DB = 60.0
# What a broken flow does not reach (a wrong scale or layout gives 0 dB or less); it is no measure of quality, which is
# `make accuracy`. YOLOX-nano and MobileNetV2 are hard: their quantized weights alone give 14 and 16 dB.
MINIMUM_SQNR_FLOAT_DB = {
    "mobilenetv2": 10.0,
    "squeezenet": 20.0,
    "resnet20": 15.0,
    "resnet56": 15.0,
    "mobilenetv1": 10.0,
    "yolox_nano": 5.0,
    "super_resolution": 20.0,
}
MINIMUM_SQNR_DEFAULT_DB = 18.0  # of YOLOX-nano, whose first layers in float bring 14 dB
TestData = Callable[..., Path]


def agreeing(flow: Flow, batches: Iterable[Feeds]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float, fake-quant and deploy outputs of all batches, after the last two were found to agree."""
    sessions = [ort.InferenceSession(path, providers=CPU) for path in (flow.model, flow.fake_quant)]
    sessions.append(amct.deployed_session(flow.deploy))
    runs = [[session.run(None, batch)[0] for session in sessions] for batch in batches]
    exact, simulated, deployed = (np.concatenate(outputs) for outputs in zip(*runs, strict=True))
    assert sqnr(simulated, deployed) > MINIMUM_SQNR_DEPLOY_DB
    return exact, simulated, deployed


@pytest.mark.parametrize("name", mark_slow(shared.MODELS, "mobilenetv2", "squeezenet", "mobilenetv1", "resnet56"))
def test_classifiers_agree_on_every_image(test_data: TestData, tmp_path: Path, name: str) -> None:
    data, model = test_data(), shared.MODELS[name]
    calibration = shared.spread(shared.read_labels(model.calibration, data), 16)
    test = shared.spread(shared.read_labels(model.test, data), 32)
    flow = Flow(str(model.path(data)), tmp_path)
    flow.run(*({model.input: x} for x, _ in shared.batches(calibration, 8, model.prepare)))
    exact, simulated, deployed = agreeing(flow, ({model.input: x} for x, _ in shared.batches(test, 16, model.prepare)))
    assert simulated.shape[:2] == (len(test), exact.shape[1])
    np.testing.assert_array_equal(deployed.argmax(1), simulated.argmax(1))
    assert sqnr(exact, simulated) > MINIMUM_SQNR_FLOAT_DB[name]


def coco(data: Path, prepare: Callable[..., np.ndarray], start: int, count: int) -> list[np.ndarray]:
    paths = sorted((data / "images" / "coco128").glob("*.jpg"))[start : start + count]
    return [shared.load(path, prepare)[None] for path in paths]


@pytest.mark.slow
def test_a_detector(test_data: TestData, tmp_path: Path) -> None:
    data, prepare = test_data(), partial(shared.letterbox, size=416)
    flow = Flow(str(test_data("models", "yolox_nano.onnx")), tmp_path)
    flow.run(*({"images": x} for x in coco(data, prepare, 0, 4)))
    exact, simulated, _ = agreeing(flow, ({"images": x} for x in coco(data, prepare, 64, 4)))
    assert sqnr(exact, simulated) > MINIMUM_SQNR_FLOAT_DB["yolox_nano"]


@pytest.mark.slow
def test_by_default_a_detector_keeps_what_its_first_layers_would_lose(test_data: TestData) -> None:
    """All in int8 it has 7 dB: time is bought where the noise is made, and less of it than int8 takes."""
    data, prepare = test_data(), partial(shared.letterbox, size=416)
    feeds = [{"images": x} for x in coco(data, prepare, 0, 28)]
    result = amct.quantize(str(test_data("models", "yolox_nano.onnx")), feeds)
    sessions = [
        ort.InferenceSession(str(test_data("models", "yolox_nano.onnx")), providers=CPU),
        result.lowered.exact_session(),
    ]
    tests = list(coco(data, prepare, 64, 8))
    exact, found = (np.concatenate([session.run(None, {"images": x})[0] for x in tests]) for session in sessions)
    assert sqnr(exact, found) > MINIMUM_SQNR_DEFAULT_DB


def test_super_resolution(test_data: TestData, tmp_path: Path) -> None:
    data, prepare = test_data(), partial(shared.luminance, size=224)
    flow = Flow(str(test_data("models", "super_resolution_10.onnx")), tmp_path)
    flow.run(*({"input": x} for x in coco(data, prepare, 0, 4)))
    exact, simulated, _ = agreeing(flow, ({"input": x} for x in coco(data, prepare, 64, 2)))
    assert sqnr(exact, simulated) > MINIMUM_SQNR_FLOAT_DB["super_resolution"]


def test_keyword_spotting(test_data: TestData, tmp_path: Path) -> None:
    clips = np.load(test_data("images", "kws", "kws01.npz"))
    x, label = clips["x_nchw"], clips["label"]
    flow = Flow(str(test_data("models", "kws_dscnn_mlperftiny.onnx")), tmp_path)
    flow.run(*({"input": part} for part in np.split(x[:100], 4)))
    exact, simulated, _ = agreeing(flow, [{"input": x[100:]}])
    hits = [(output.argmax(1) == label[100:]).mean() for output in (exact, simulated)]
    assert hits[1] > hits[0] - 0.02


@pytest.mark.slow
def test_sentence_embedding(test_data: TestData, tmp_path: Path) -> None:
    def sentences(part: str, count: int) -> Feeds:
        pairs = np.load(test_data("text", "stsb", f"{part}.npz"))
        names = {"input_ids": "ids_a", "attention_mask": "mask_a"}
        return {name: pairs[key][:count].astype(np.int64) for name, key in names.items()}

    flow = Flow(str(test_data("models", "minilm_l6.onnx")), tmp_path).run(sentences("calibration", 16))
    exact, simulated, _ = agreeing(flow, [sentences("test", 16)])
    cosine = np.sum(exact * simulated, 1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(simulated, axis=1)
    assert cosine.min() > 0.8
