"""Q/DQ models, converted, and run beside their original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from flow import CPU, normal

import amct_onnx as amct
from amct_onnx.amct.convert_qat import convert_qat_model, read_qat_model
from amct_onnx.files.record import read_record
from amct_onnx.values.layers import Kept, LayerRecord

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Converted:
    """A Q/DQ model and what `convert_qat_model` made of it."""

    original: Path
    folder: Path
    kept: tuple[Kept, ...]

    @classmethod
    def of(cls, model: onnx.ModelProto, folder: Path) -> Converted:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / "qat.onnx")
        return cls.file(folder / "qat.onnx", folder)

    @classmethod
    def file(cls, original: Path, folder: Path) -> Converted:
        convert_qat_model(str(original), str(folder / "out" / "model"), str(folder / "out" / "record.txt"))
        _, kept = read_qat_model(str(original))
        return cls(original, folder / "out", kept)

    @property
    def deploy(self) -> Path:
        return self.folder / "model_deploy_model.onnx"

    @property
    def fake_quant(self) -> Path:
        return self.folder / "model_fake_quant_model.onnx"

    @property
    def reasons(self) -> dict[str, str]:
        return {entry.name: entry.reason for entry in self.kept}

    def records(self) -> dict[str, LayerRecord]:
        return read_record(self.folder / "record.txt")

    def run_original(self, feeds: Feeds) -> list[np.ndarray]:
        """By ONNX Runtime as the file says, without its own fusions of Q and DQ."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(str(self.original), options, providers=CPU).run(None, dict(feeds))

    def run_fake_quant(self, feeds: Feeds) -> list[np.ndarray]:
        return ort.InferenceSession(str(self.fake_quant), providers=CPU).run(None, dict(feeds))

    def run_deploy(self, feeds: Feeds) -> list[np.ndarray]:
        return amct.deployed_session(self.deploy).run(None, dict(feeds))

    def check_equal(self, feeds: Feeds) -> None:
        """All three give the same bits. Holds where every scale is a power of two: no step of the original rounds."""
        original = self.run_original(feeds)
        for other in (self.run_fake_quant(feeds), self.run_deploy(feeds)):
            for expected, got in zip(original, other, strict=True):
                assert got.dtype == expected.dtype
                np.testing.assert_array_equal(got, expected)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def initializer(path: Path, name: str) -> np.ndarray:
    found = next(tensor for tensor in onnx.load(path).graph.initializer if tensor.name == name)
    return onnx.numpy_helper.to_array(found)


def int8(seed: int, *shape: int, low: int = -128, high: int = 127) -> np.ndarray:
    """Reproducible integers; both ends occur."""
    q = np.random.default_rng(seed).integers(low, high + 1, shape)
    q.reshape(-1)[:2] = low, high
    return q.astype(np.int8)


def image(seed: int = 0, count: int = 2) -> dict[str, np.ndarray]:
    return {"x": normal(seed, count, 3, 6, 6, scale=2.0)}
