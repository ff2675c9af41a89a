"""The commands inspect, compare, evaluate, doctor and sensitivity: text for people, and documents with a schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import build, normal
from PIL import Image

import amct_onnx
from amct_onnx.cli.main import main

SCHEMAS = Path(amct_onnx.__file__).parent / "cli" / "schemas"
COMMANDS = ["inspect", "compare", "evaluate", "doctor", "sensitivity"]
MODEL = """g (float[N,3,8,8] x) => (float[N,5] y) {
    [conv] a = Conv (x, w) [relu] r = Relu (a) p = GlobalAveragePool (r) f = Flatten (p) [gemm] y = Gemm (f, v) }"""
WORDS = {
    "inspect": ["m.onnx"],
    "compare": ["m.onnx", "q.onnx", "--data", "x.npy"],
    "evaluate": ["m.onnx", "q.onnx", "--images", "photos", "--labels", "labels.txt", "--preset", "unit"],
    "doctor": [],
    "sensitivity": ["m.onnx", "--data", "x.npy"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier, the same quantized, and data for them."""
    path = tmp_path_factory.mktemp("tools")
    model = build(MODEL, w=normal(1, 8, 3, 3, 3), v=normal(2, 8, 5))
    onnx.save(model, path / "m.onnx")
    data = normal(3, 48, 3, 8, 8)
    np.save(path / "x.npy", data)
    ir.save(amct_onnx.quantize(model, data, effort="fast", full_int8=True).model(), path / "q.onnx")
    (path / "photos").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(path / "photos" / f"{number}.png")
    (path / "labels.txt").write_text("\n".join(f"{number}.png {number % 5}" for number in range(6)))
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_document_keeps_to_its_schema(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *WORDS[command], "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    schema = json.loads((SCHEMAS / f"{command}.json").read_text())
    jsonschema.validate(document, schema)
    assert document["command"] == command
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "surprise": 1}, schema)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_a_failure_is_a_document(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["missing.onnx" if word == "m.onnx" else word for word in WORDS[command]]
    assert main([command, *words, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads((SCHEMAS / f"{command}.json").read_text()))
    assert "missing.onnx does not exist" in document["error"]


SHOWN = {
    "inspect": ["opset 17", "What can be quantized", "onnxruntime"],
    "compare": ["No layer stands out. The weakest is", "conv", "SQNR", "alone"],
    "evaluate": ["Classification of 6 samples.", "top-1", "difference"],
    "doctor": ["Python", "VNNI" if sys.platform == "linux" else "CPU", "pandas"],
    "sensitivity": ["layers together", "conv", "gemm"],
}


@pytest.mark.parametrize("width", ["40", "100"])
@pytest.mark.parametrize("command", COMMANDS)
def test_text_for_people(
    command: str, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main([command, *WORDS[command]]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= int(width)
    if width == "100":
        assert [text for text in SHOWN[command] if text not in out] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_says_nothing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *WORDS[command], "--quiet"]) == 0
    assert capsys.readouterr().out == ""


HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "PIL", "pandas")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_waits_for_nothing_heavy(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from amct_onnx.cli.main import main
main(["{command}", "--help"])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
    assert len(found.stdout.splitlines()) <= 40
    assert max(map(len, found.stdout.splitlines())) <= 80


def test_a_broken_layer_is_shown_first(capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("q.onnx")
    weight = next(t for t in model.graph.initializer if t.name.startswith("w") and t.data_type == onnx.TensorProto.INT8)
    weight.raw_data = bytes(reversed(weight.raw_data))
    onnx.save(model, "broken.onnx")
    assert main(["compare", "m.onnx", "broken.onnx", "--data", "x.npy"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The models part first at Conv conv: its weight is another one" in out
    assert main(["compare", "m.onnx", "broken.onnx", "--data", "x.npy", "--json", "--samples", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["first"]["layer"] == "conv"
    assert document["samples"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compare", "m.onnx", "q.onnx"], "give --data"),
        (["compare", "m.onnx", "--data", "x.npy"], "QUANT"),
        (["evaluate", "m.onnx"], "give --images"),
        (["inspect"], "give one model"),
        (["inspekt", "m.onnx"], "did you mean inspect?"),
        (["evaluate", "m.onnx", "--images", "photos", "--label", "labels.txt", "--presett", "unit"], "--preset"),
    ],
)
def test_wrong_command_lines(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_images_are_prepared_as_options_say(capsys: pytest.CaptureFixture[str]) -> None:
    def figures(*more: str) -> Any:
        words = ["evaluate", "m.onnx", "--images", "photos", "--labels", "labels.txt", "--json"]
        assert main([*words, *more]) == 0
        return json.loads(capsys.readouterr().out)

    plain, other = figures("--preset", "unit"), figures("--preset", "unit", "--image_color", "BGR", "--limit", "4")
    assert plain["samples"] == 6
    assert other["samples"] == 4
    assert "BGR" in other["notes"][0]
    assert "RGB" in plain["notes"][0]
