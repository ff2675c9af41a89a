"""The AMCT flow as a user's script drives it, and how its results are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

import amct_onnx as amct
from amct_onnx.files.record import read_record
from amct_onnx.values.layers import LayerRecord

Feeds = Mapping[str, np.ndarray]
CPU = ["CPUExecutionProvider"]


def sqnr(reference: np.ndarray, got: np.ndarray) -> float:
    """Signal to noise ratio of `got` in dB; infinite when it is bit for bit the reference."""
    assert reference.shape == got.shape
    noise = np.sum((reference.astype(np.float64) - got) ** 2)
    return float("inf") if noise == 0 else float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise))


def build(body: str, *, opset: int = 17, ir_version: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text `g (inputs) => (outputs) {nodes}`, with its initializers as arrays.

    `__` in a name of `weights` stands for a dot.
    """
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {body}')
    arrays = {name.replace("__", "."): array for name, array in weights.items()}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    return model


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Reproducible float32 noise."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def two_convs(*, opset: int = 17) -> onnx.ModelProto:
    """x [N,3,H,W] -> conv1 -> Relu -> conv2 -> y: two layers, each with its own tensor."""
    return build(
        """g (float[N,3,H,W] x) => (float[N,5,H,W] y) {
            [conv1] a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
            [relu] r = Relu (a)
            [conv2] y = Conv <kernel_shape=[1,1]> (r, w2, b2)
        }""",
        opset=opset,
        w1=normal(1, 4, 3, 3, 3, scale=0.3),
        b1=normal(2, 4),
        w2=normal(3, 5, 4, 1, 1, scale=0.5),
        b2=normal(4, 5),
    )


def classifier() -> onnx.ModelProto:
    """A convolution, a pool and a product."""
    return build(
        """g (float[N,3,8,8] x) => (float[N,4] y) {
            [conv] a = Conv <pads=[1,1,1,1]> (x, w, b) [relu] r = Relu (a) [pool] p = GlobalAveragePool (r)
            [flat] f = Flatten (p) [fc] y = Gemm (f, v) }""",
        w=normal(1, 8, 3, 3, 3), b=normal(2, 8), v=normal(3, 8, 4),
    )  # fmt: skip


def images(seed: int, count: int = 2, size: int = 6) -> np.ndarray:
    """Input of `two_convs`."""
    return normal(seed, count, 3, size, size)


@dataclass
class Flow:
    """One run of the three functions on one model, with all files in one folder."""

    model: str
    folder: Path
    prefix: str = "model"
    options: Any = field(default_factory=lambda: amct.AMCT_SO)

    @classmethod
    def of(cls, model: onnx.ModelProto, folder: Path, **more: Any) -> Flow:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / "float.onnx")
        return cls(str(folder / "float.onnx"), folder, **more)

    @property
    def config(self) -> str:
        return str(self.folder / "config.json")

    @property
    def modified(self) -> str:
        return str(self.folder / "modified.onnx")

    @property
    def record(self) -> str:
        return str(self.folder / "record.txt")

    @property
    def deploy(self) -> str:
        return str(self.folder / f"{self.prefix}_deploy_model.onnx")

    @property
    def fake_quant(self) -> str:
        return str(self.folder / f"{self.prefix}_fake_quant_model.onnx")

    def configure(self, **arguments: Any) -> Flow:
        amct.create_quant_config(self.config, self.model, **arguments)
        return self

    @property
    def balancing(self) -> str:
        return str(self.folder / "balancing.onnx")

    def balance(self, batches: Iterable[Feeds]) -> Flow:
        """quantize_preprocess, and its model on `batches` in one session."""
        amct.quantize_preprocess(self.config, self.record, self.model, self.balancing)
        session = ort.InferenceSession(self.balancing, self.options, providers=CPU)
        for batch in batches:
            session.run(None, dict(batch))
        return self

    def quantize(self) -> Flow:
        amct.quantize_model(self.config, self.model, self.modified, self.record)
        return self

    def session(self) -> ort.InferenceSession:
        return ort.InferenceSession(self.modified, self.options, providers=CPU)

    def calibrate(self, batches: Iterable[Feeds]) -> Flow:
        session = self.session()
        for batch in batches:
            session.run(None, dict(batch))
        return self

    def save(self) -> Flow:
        amct.save_model(self.modified, self.record, str(self.folder / self.prefix))
        return self

    def run(self, *batches: Feeds, **arguments: Any) -> Flow:
        """Everything: one calibration batch for each of `batches`."""
        return self.configure(batch_num=len(batches), **arguments).quantize().calibrate(batches).save()

    def records(self) -> dict[str, LayerRecord]:
        return read_record(self.record)

    def record_bytes(self) -> bytes:
        return Path(self.record).read_bytes()

    def run_float(self, feeds: Feeds) -> np.ndarray:
        return ort.InferenceSession(self.model, providers=CPU).run(None, dict(feeds))[0]

    def run_fake_quant(self, feeds: Feeds) -> np.ndarray:
        return ort.InferenceSession(self.fake_quant, providers=CPU).run(None, dict(feeds))[0]

    def run_deploy(self, feeds: Feeds) -> np.ndarray:
        return amct.deployed_session(self.deploy).run(None, dict(feeds))[0]


def operators(path: str | Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def node_named(path: str | Path, name: str) -> onnx.NodeProto:
    return next(node for node in onnx.load(path, load_external_data=False).graph.node if node.name == name)


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content and every folder: equal before and after when nothing was written."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# fake-quant against float, on noise: 8 bits and a few layers give 30 to 40 dB
MINIMUM_SQNR_DB = 25.0


def check_outputs(flow: Flow, seen: dict[str, np.ndarray], fresh: dict[str, np.ndarray]) -> None:
    """fake-quant is near float on the data it was calibrated with, and deploy is fake-quant bit for bit on any."""
    assert sqnr(flow.run_float(seen), flow.run_fake_quant(seen)) > MINIMUM_SQNR_DB
    for feeds in (seen, fresh):
        np.testing.assert_array_equal(flow.run_deploy(feeds), flow.run_fake_quant(feeds))


def prepared(folder: Path, batch_num: int = 1, **arguments: object) -> Flow:
    """`two_convs` up to the calibration model."""
    return Flow.of(two_convs(), folder).configure(batch_num=batch_num, **arguments).quantize()


def feeds(*seeds: int) -> list[dict[str, np.ndarray]]:
    """A batch for `two_convs` from each seed."""
    return [{"x": images(seed)} for seed in seeds]
