"""Layers are rounded, samples judged and trials of a search made by whoever an engine has: with the same result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from far_engine import FarEngine
from flow import build, normal

import amct_onnx
from amct_onnx.engine.processes import ProcessEngine

SAMPLES = 120


@cache
def network() -> onnx.ModelProto:
    """Convolutions, one with groups and one transposed, and products, one of them turned."""
    return build(
        """g (float[N,3,12,12] x) => (float[N,6] y) {
            [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, b1) [relu1] r = Relu (a)
            [conv2] b = Conv <pads=[1,1,1,1], group=4> (r, w2) [relu2] s = Relu (b)
            [up] u = ConvTranspose <strides=[2,2]> (s, w3) [relu3] t = Relu (u)
            [conv3] c = Conv <strides=[2,2]> (t, w4, b4) [relu4] v = Relu (c)
            [pool] p = GlobalAveragePool (v) [flat] f = Flatten (p)
            [fc1] g = Gemm <transB=1> (f, w5, b5) [relu5] h = Relu (g) [fc2] y = MatMul (h, w6) }""",
        w1=normal(1, 16, 3, 3, 3), b1=normal(2, 16), w2=normal(3, 16, 4, 3, 3), w3=normal(4, 16, 12, 2, 2),
        w4=normal(5, 24, 12, 3, 3), b4=normal(6, 24), w5=normal(7, 32, 24), b5=normal(8, 32), w6=normal(9, 32, 6),
    )  # fmt: skip


def data(count: int = SAMPLES) -> np.ndarray:
    return normal(0, count, 3, 12, 12)


def files_of(result: amct_onnx.QuantizedModel, folder: Path) -> Mapping[str, bytes]:
    result.save(folder / "m", inspect=False)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def outcome(folder: Path, engine: Any, **options: Any) -> tuple[object, ...]:
    result = amct_onnx.quantize(network(), data(), progress=False, engine=engine, **options)
    return files_of(result, folder), result.precision, result.steps, result.accuracy


@pytest.fixture(scope="module")
def processes() -> Any:
    engine = ProcessEngine(2)
    yield engine
    engine.close()


ROUNDED = [
    {"effort": "best"},
    {"effort": "best", "target": "ascend"},
    {"weight_only": 4, "effort": "best", "block_size": 16},
]


@pytest.mark.parametrize("options", ROUNDED, ids=str)
def test_layers_are_rounded_the_same_elsewhere(options: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for name, engine in {"local": "local", "far": FarEngine()}.items():
        (tmp_path / name).mkdir()
        found.append(outcome(tmp_path / name, engine, **options))
    assert found[0] == found[1]
    assert isinstance(engine, FarEngine)
    assert "_Rounding" in engine.works
