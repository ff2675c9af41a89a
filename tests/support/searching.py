"""What the tests of accuracy-based calibration share: a model of which two layers suffer, and an evaluator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from flow import CPU, Feeds, Flow, build, normal, sqnr

import amct_onnx as amct
from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase, AutoCalibrationStrategyBase

SUFFERING = ("conv2", "conv4")  # the most sensitive one first
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def suffering() -> onnx.ModelProto:
    """Five layers; in front of two of them one channel is stretched, and its weights are small.

    A tensor has one scale, so the other channels, on which the outputs of these layers depend, get few levels.
    """

    def narrow(seed: int, factor: float) -> np.ndarray:
        weight = normal(seed, 4, 4, 1, 1, scale=0.5)
        weight[:, 0] /= factor
        return weight

    return build(
        """g (float[N,3,H,W] x) => (float[N,5,H,W] y) {
            [conv1] a1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
            [relu1] r1 = Relu (a1)
            [stretch1] s1 = Mul (r1, c1)
            [conv2] a2 = Conv (s1, w2)
            [relu2] r2 = Relu (a2)
            [conv3] a3 = Conv (r2, w3)
            [relu3] r3 = Relu (a3)
            [stretch2] s2 = Mul (r3, c2)
            [conv4] a4 = Conv (s2, w4)
            [relu4] r4 = Relu (a4)
            [conv5] y = Conv (r4, w5)
        }""",
        w1=normal(1, 4, 3, 3, 3, scale=0.3),
        b1=normal(2, 4),
        c1=np.float32([300, 1, 1, 1]).reshape(1, 4, 1, 1),
        w2=narrow(3, 300),
        w3=normal(4, 4, 4, 1, 1, scale=0.5),
        c2=np.float32([40, 1, 1, 1]).reshape(1, 4, 1, 1),
        w4=narrow(5, 40),
        w5=normal(6, 5, 4, 1, 1, scale=0.5),
    )


def pictures(seed: int, count: int = 4) -> np.ndarray:
    """Input of `suffering`."""
    return normal(seed, count, 3, 8, 8)


class ErrorEvaluator(AutoCalibrationEvaluatorBase):
    """Measures the relative error of the first output in percent; `target` of it is allowed. Notes each call."""

    def __init__(self, batches: Iterable[np.ndarray | Feeds], target: float) -> None:
        self.batches = [dict(batch) if isinstance(batch, Mapping) else {"x": batch} for batch in batches]
        self.target = target
        self.calls: list[str] = []
        self.reference: np.ndarray | None = None

    def calibration(self, model_file: str) -> None:
        self.calls.append("calibration")
        session = ort.InferenceSession(model_file, amct.AMCT_SO, providers=CPU)
        for batch in self.batches:
            session.run(None, batch)

    def evaluate(self, model_file: str) -> float:
        self.calls.append("evaluate")
        session = ort.InferenceSession(model_file, providers=CPU)
        output = np.concatenate([session.run(None, batch)[0].ravel() for batch in self.batches])
        if self.reference is None:
            self.reference = output
        return 100 * float(np.linalg.norm(output - self.reference) / np.linalg.norm(self.reference))

    def metric_eval(self, original_metric: float, new_metric: float) -> tuple[bool, float]:
        return new_metric - original_metric <= self.target, new_metric - original_metric


class Fixed(AutoCalibrationStrategyBase):
    """Rolls back certain layers, whatever is told."""

    def __init__(self, *rolled_back: str) -> None:
        super().__init__()
        self.rolled_back = rolled_back

    def initialize(self, ranking_info: dict[str, float]) -> None:
        self.layers = list(ranking_info)

    def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
        config = {layer: layer not in self.rolled_back for layer in self.layers}
        return {"stop_flag": True, "roll_back_config": config}


class Search:
    """One search, with all files in one folder and the results in `results/` below it."""

    def __init__(self, folder: Path, model: onnx.ModelProto | None = None, **config: Any) -> None:
        self.folder = folder
        self.flow = Flow.of(suffering() if model is None else model, folder).configure(**config)
        self.results = folder / "results"

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            "model_file": self.flow.model,
            "config_file": self.flow.config,
            "record_file": self.flow.record,
            "save_dir": str(self.results / "model"),
        }

    def run(self, evaluator: AutoCalibrationEvaluatorBase, **more: Any) -> Search:
        amct.accuracy_based_auto_calibration(**{**self.arguments, "model_evaluator": evaluator, **more})
        return self

    @property
    def fake_quant(self) -> str:
        return str(self.results / "model_fake_quant_model.onnx")

    @property
    def deploy(self) -> str:
        return str(self.results / "model_deploy_model.onnx")

    @property
    def final_config(self) -> dict[str, Any]:
        return json.loads((self.results / "accuracy_based_auto_calibration_final_config.json").read_text())

    @property
    def ranking(self) -> list[list[Any]]:
        return json.loads((self.results / "accuracy_based_auto_calibration_ranking_information.json").read_text())

    @property
    def quantized(self) -> list[str]:
        """The layers that the final configuration quantizes."""
        entries = self.final_config.items()
        return [name for name, entry in entries if isinstance(entry, dict) and entry["quant_enable"]]


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The trials in the record file below `folder`: JSON objects one after another."""
    text = (folder / "amct_log" / "accuracy_based_auto_calibration_record.json").read_text()
    found, decoder = [], json.JSONDecoder()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


# Layers in float may add in another order in the two models, which flips the rounding of single values behind them.
AGREEMENT_DB = 50.0


def agreement(search: Search, feeds: Feeds) -> float:
    """dB between the deploy model, in integers, and the fake-quant model: the least of all outputs."""
    deployed = amct.deployed_session(search.deploy).run(None, dict(feeds))
    simulated = ort.InferenceSession(search.fake_quant, providers=CPU).run(None, dict(feeds))
    return min(sqnr(a, b) for a, b in zip(deployed, simulated, strict=True))
