"""Reports as a user's script and command line make them: files, names, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from flow import images, two_convs

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import ArgumentTypeError, FileMissingError, OutputError, RunFileError
from amct_onnx.ptq.quantized_model import QuantizedModel

SCHEMAS = Path(amct_onnx.__file__).parent / "cli" / "schemas"


@pytest.fixture(scope="module")
def result() -> QuantizedModel:
    return amct_onnx.quantize(two_convs(), images(0, 8), effort="fast")


def data_of(page: Path) -> list[dict[str, Any]]:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert match is not None
    found: list[dict[str, Any]] = json.loads(match[1])
    return found


def steady(run: dict[str, Any]) -> dict[str, Any]:
    """A run without what a clock has measured."""
    text = re.sub(r'"seconds_(before|after)": [^,}]+', "", json.dumps(run))
    text = re.sub(r'"(runs|slow_because|low|high|too_busy)": (\[[^\]]*\]|[^,}]+)', "", text)
    return {"text": re.sub(r'"advice": \[.*?\], "notes"', "", text)}


def test_a_page_is_one_file_that_asks_for_nothing(result: QuantizedModel, tmp_path: Path) -> None:
    path = amct_onnx.write_report(result, tmp_path / "deep" / "r.html")
    assert path == str(tmp_path / "deep" / "r.html")
    assert [file.name for file in Path(path).parent.iterdir()] == ["r.html"]
    text = Path(path).read_text(encoding="utf-8")
    outside = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#|data:)([^"\')\s>]+)', text.split('id="data"')[0])
    assert outside == []
    assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}


def test_a_run_file_gives_the_page_of_its_result(result: QuantizedModel, tmp_path: Path) -> None:
    saved = result.save(tmp_path / "m")
    run = amct_onnx.save_run(result, tmp_path / "m", saved=saved)
    assert run == str(tmp_path / "m_onnxruntime_run.json")
    straight, later = tmp_path / "straight.html", tmp_path / "later.html"
    amct_onnx.write_report(result, straight, saved=saved)
    for file in saved.files:
        Path(file).unlink()  # nothing but the run file is needed
    amct_onnx.write_report(tmp_path / "m", later)
    (one,), (two,) = data_of(straight), data_of(later)
    assert two.pop("title") == "m_onnxruntime"
    one.pop("title")
    assert steady(one) == steady(two)


def test_two_runs_of_the_same_name_are_told_apart(result: QuantizedModel, tmp_path: Path) -> None:
    amct_onnx.write_report(result, tmp_path / "r.html", beside=result.to("tensorrt"))
    assert [run["target"] for run in data_of(tmp_path / "r.html")] == ["onnxruntime", "tensorrt"]
    assert len({run["title"] for run in data_of(tmp_path / "r.html")}) == 2


def test_measuring_is_shown(result: QuantizedModel, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    amct_onnx.save_run(result, tmp_path / "m", progress=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("wrong", [None, 3, two_convs()])
def test_something_else_is_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="what quantize returned or of the path of a run"):
        amct_onnx.write_report(wrong, tmp_path / "r.html")
    with pytest.raises(ArgumentTypeError):
        amct_onnx.save_run(wrong, tmp_path / "m")


def test_wrong_paths_are_one_line(result: QuantizedModel, tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="has no run file"):
        amct_onnx.write_report(tmp_path / "nothing", tmp_path / "r.html")
    amct_onnx.save_run(result, tmp_path / "m")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        amct_onnx.write_report(tmp_path / "m", tmp_path / "folder")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, r"layout 99, and this version of amct_onnx reads 1: quantize again"),
        ({"layers": 3}, r"the run file is damaged \(the run.layers is no list\)"),
        ({"target": None}, r"damaged \(the run.target is no str\)"),
    ],
)
def test_a_damaged_run_says_where(result: QuantizedModel, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = Path(amct_onnx.save_run(result, tmp_path / "m"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunFileError, match=said):
        amct_onnx.write_report(path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


# --- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model that was quantized by the command, for two targets."""
    monkeypatch.chdir(tmp_path)
    onnx.save(two_convs(), "model.onnx")
    np.save("x.npy", images(0, 8))
    words = ["--data", "x.npy", "--save_path", "out/m", "--effort", "fast", "--target", "onnxruntime,tensorrt"]
    assert main(["quantize", "model.onnx", *words]) == 0
    return tmp_path


def test_the_command_makes_a_page_of_what_quantize_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", "out/m_onnxruntime"]) == 0
    assert "out/m_onnxruntime_report.html" in capsys.readouterr().out
    (run,) = data_of(folder / "out" / "m_onnxruntime_report.html")
    assert run["accuracy"]["sqnr"] > 20
    assert run["runtime"]["integer"] == {"QLinearConv": 2}


def test_the_command_shows_two_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", "out/m_onnxruntime", "out/m_tensorrt_run.json", "--save_path", "both.html", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads((SCHEMAS / "report.json").read_text()))
    assert document["file"] == "both.html"
    assert document["runs"] == ["out/m_onnxruntime_run.json", "out/m_tensorrt_run.json"]
    assert [run["target"] for run in data_of(folder / "both.html")] == ["onnxruntime", "tensorrt"]


def test_the_command_says_what_is_wrong(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for words, said in (
        (["out/nothing"], "out/nothing has no run file"),
        (["out/m"], "several runs"),
        (["model.onnx"], "model.onnx has no run file"),
        (["x.npy"], "damaged"),
    ):
        caplog.clear()
        assert main(["report", *words]) == 1
        (error,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert said in error
        assert "\n" not in error
    for words in ([], ["a", "b", "c"], ["out/m", "--save-path", "x"]):
        with pytest.raises(SystemExit) as end:
            main(["report", *words])
        assert end.value.code == 2


def test_without_a_report_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_convs(), "model.onnx")
    np.save("x.npy", images(0, 8))
    words = ["--data", "x.npy", "--save_path", "out/m", "--effort", "fast", "--no_report"]
    assert main(["quantize", "model.onnx", *words]) == 0
    assert [file.name for file in Path("out").iterdir()] == ["m_onnxruntime.onnx"]
