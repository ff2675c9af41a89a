"""What `amct_onnx quantize` answers: a summary on stdout, a document that keeps to its schema, or nothing."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from flow import build, normal
from PIL import Image

import amct_onnx
from amct_onnx.cli.commands import COMMANDS
from amct_onnx.cli.main import main

SCHEMAS = Path(amct_onnx.__file__).parent / "cli" / "schemas"
MODEL = """g (float[N,3,8,8] x) => (float[N,5] y) {
    [conv] a = Conv (x, w) [relu] r = Relu (a) p = GlobalAveragePool (r) f = Flatten (p) [gemm] y = Gemm (f, v) }"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a classifier, and data for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    onnx.save(build(MODEL, w=normal(1, 8, 3, 3, 3), v=normal(2, 8, 5)), "m.onnx")
    np.save("x.npy", normal(3, 48, 3, 8, 8))
    Path("photos").mkdir()
    for number in range(12):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)).save(
            f"photos/{number}.png"
        )
    return tmp_path


def run(*words: str, data: str = "x.npy", code: int = 0) -> None:
    assert main(["quantize", "m.onnx", "--data", data, "--save_path", "out/m", *words]) == code


def valid(text: str, command: str = "quantize") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    jsonschema.validate(document, json.loads((SCHEMAS / f"{command}.json").read_text()))
    return document


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_one_and_belongs_to_a_command(path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))
    assert path.stem in COMMANDS


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_the_summary(here: Path, capsys: pytest.CaptureFixture[str], effort: str) -> None:
    run("--effort", effort, data="photos")
    out = capsys.readouterr().out
    assert re.search(
        r"^accuracy  SQNR \d+\.\d dB, same top-1 for \d+\.\d%, on \d+ samples (held out|of the cal)", out, re.M
    )
    assert "int8      " in out
    assert "out/m_onnxruntime.onnx" in out
    assert out.startswith("Assumed: input 'x': images")
    assert "Warning: No preset is named for the images: --preset torch is assumed, since its output 'y'" in out
    assert "\x1b" not in out
    assert len(out.splitlines()) <= 25


def test_what_is_assumed_is_said_before_the_data_are_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/5.png").write_bytes(Path("photos/5.png").read_bytes()[:200])
    run(data="photos", code=1)
    assert "Assumed: input 'x': images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        *(["--effort", "fast"], ["--effort", "default"], ["--target", "ascend,onnxruntime,openvino"], ["--no_report"]),
        *(["--min_sqnr", "20"], ["--weight_only", "8"], ["--skip_layers", "conv"], ["--max_slowdown", "2"]),
    ],
)
def test_the_document_keeps_to_its_schema(here: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    run(*words, "--json")
    found = valid(capsys.readouterr().out)
    assert found["model"] == "m.onnx"
    for result in found["results"]:
        assert result["accuracy"]["sqnr_db"] > 5
        assert all(Path(file).is_file() for file in result["files"])
        assert (result["latency"] is not None) == (result["target"] == "onnxruntime" and "--no_report" not in words)


def test_a_document_without_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "m.onnx", "--dynamic", "--full_int8", "--save_path", "d", "--json"]) == 0
    found = valid(capsys.readouterr().out)
    assert (found["data"], found["results"][0]["accuracy"]) == (None, None)


def test_the_document_of_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--json", data="nowhere", code=1)
    assert "nowhere: the data do not exist" in valid(capsys.readouterr().out)["error"]


def test_a_target_that_failed_is_in_the_document(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/m_openvino.onnx").mkdir(parents=True)
    run("--json", "--effort", "fast", "--target", "openvino,tensorrt", code=1)
    found = valid(capsys.readouterr().out)
    assert [result["target"] for result in found["results"]] == ["tensorrt"]
    assert "m_openvino.onnx: cannot be written, it is a folder" in found["errors"][0]


def test_quiet_says_nothing_but_warnings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("x.npy", np.zeros((40, 3, 8, 8), np.float32))
    run("--quiet", "--effort", "fast")
    out, err = capsys.readouterr()
    assert out == ""
    assert "all zero" in err or logging.getLogger("amct_onnx").handlers


def test_a_detector_is_not_taken_for_a_classifier(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "g (float[N,3,8,8] x) => (float[N,36,6] y) { a = Conv (x, w) y = Reshape (a, s) }"
    onnx.save(build(text, w=normal(1, 6, 3, 3, 3), s=np.array([0, 36, 6])), "m.onnx")
    run(data="photos", code=1)
    for name in ("--preset ultralytics", "--preset yolox", "torch", "a file that says it"):
        assert name in caplog.text
    assert not Path("out").exists()
    run("--preset", "ultralytics", "--effort", "fast", data="photos")
