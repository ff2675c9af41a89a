"""Whatever goes wrong beside the files: they are written, those of all targets, and what failed is one warning."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import build, normal

import amct_onnx
from amct_onnx.ptq.quantized_model import QuantizedModel


def model() -> onnx.ModelProto:
    return build(
        "g (float[N,6] x) => (float[N,5] y) { a = MatMul (x, w1) r = Relu (a) y = MatMul (r, w2) }",
        w1=normal(1, 6, 8, scale=0.4),
        w2=normal(2, 8, 5, scale=0.4),
    )


def quantized(path: Path) -> QuantizedModel:
    onnx.save(model(), path)
    return amct_onnx.quantize(path, normal(3, 32, 6), effort="fast")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("sample", [normal(0, 1, 7), np.zeros((1, 6), np.int64), np.zeros((3, 2, 6), np.float32)])
def test_a_sample_that_does_not_run_takes_the_latency_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sample: Any
) -> None:
    result = replace(quantized(tmp_path / "m.onnx"), sample={"x": sample})
    saved = result.save(tmp_path / "q")
    assert saved.report is not None
    assert saved.report.latency is None
    assert any("integer kernel" in line for line in saved.report.lines())
    ort.InferenceSession(saved.files[0])
    (told,) = warnings(caplog)
    assert "q_onnxruntime.onnx is written, but its latency could not be measured: ONNX Runtime cannot run" in told
    assert "\n" not in told


def test_a_float_model_whose_file_is_gone_bad_is_compared_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in memory since it was opened."""
    result = quantized(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    saved = result.save(tmp_path / "q")
    assert saved.report is not None
    assert saved.report.latency is not None
    ort.InferenceSession(saved.files[0])
    assert not warnings(caplog)


def test_the_command_writes_the_other_targets_where_one_cannot_be_written(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", normal(3, 32, 6))
    (tmp_path / "q_onnxruntime.onnx").mkdir()
    (tmp_path / "q_tensorrt.onnx").mkdir()
    words = ["quantize", "m.onnx", "--data", "x.npy", "--save_path", "q", "--effort", "fast"]
    words += ["--target", "onnxruntime,openvino,tensorrt,ascend"]
    line = [sys.executable, "-m", "amct_onnx", *words]
    done = subprocess.run(line, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert len(errors) == 2
    assert {name for name in ("q_onnxruntime.onnx", "q_tensorrt.onnx") if any(name in e for e in errors)} == {
        "q_onnxruntime.onnx",
        "q_tensorrt.onnx",
    }
    for name in ("q_openvino.onnx", "q_deploy_model.onnx", "q_fake_quant_model.onnx"):
        assert onnx.load(tmp_path / name).graph.node


def test_a_search_whose_layers_cannot_be_measured_gives_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    """A sequence of tensors lies between the layers, and a model cannot be cut into parts there."""
    cut = build(
        """g (float[N,6] x) => (float[N,5] y) {
            a = MatMul (x, w1)
            s = SplitToSequence<axis=1> (a, four)
            b = ConcatFromSequence<axis=1> (s)
            y = MatMul (b, w2) }""",
        w1=normal(1, 6, 8, scale=0.4),
        w2=normal(2, 8, 5, scale=0.4),
        four=np.int64(4),
    )
    result = amct_onnx.quantize(cut, normal(3, 64, 6), min_sqnr=90)
    assert result.precision is not None
    assert not result.precision.met
    assert all(decision.quantized for decision in result.decisions)
    first, second = warnings(caplog)
    assert first.startswith("Which layers are to blame could not be measured: The tensor s is of type seq(")
    assert "The target is NOT met" in second
