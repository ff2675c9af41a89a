"""Where results go: names that a user expects, and paths that cannot be written are told before any data are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from flow import build, normal

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import OutputError
from amct_onnx.files.whole_files import check_writable

MODEL = "g (float[N,3,8,8] x) => (float[N,8,6,6] y) { [conv] y = Conv (x, w) }"
ASCEND = {"m_deploy_model.onnx", "m_fake_quant_model.onnx", "m_quant.json"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data that tell whoever reads them, and a file that stands in the way."""
    monkeypatch.chdir(tmp_path)
    onnx.save(build(MODEL, w=normal(1, 8, 3, 3, 3)), "m.onnx")
    np.save("data.npy", normal(2, 16, 3, 8, 8))
    Path("broken").mkdir()
    Path("broken/0.npy").write_bytes(b"broken")
    Path("taken").write_text("")
    Path("in_place_onnxruntime.onnx").mkdir()
    Path("in_place_deploy_model.onnx").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("target", "path", "files"),
    [
        ("onnxruntime", "out/m", {"m_onnxruntime.onnx"}),
        ("onnxruntime", "out/m.onnx", {"m.onnx"}),
        ("openvino", "out/m.ONNX", {"m.ONNX"}),
        ("tensorrt", "out/m.onnx", {"m.onnx"}),
        ("ascend", "out/m.onnx", ASCEND),
        ("onnxruntime,ascend", "out/m.onnx", {"m_onnxruntime.onnx", *ASCEND}),
        ("onnxruntime,tensorrt", "out/", {"onnxruntime.onnx", "tensorrt.onnx"}),
    ],
)
def test_the_names_of_results(here: Path, target: str, path: str, files: set[str]) -> None:
    words = ["quantize", "m.onnx", "--data", "data.npy", "--effort", "fast", "--no_report"]
    assert main([*words, "--target", target, "--save_path", path]) == 0
    assert set(os.listdir("out")) == files


def test_a_result_saved_from_python_has_the_same_name(here: Path) -> None:
    result = amct_onnx.quantize("m.onnx", "data.npy", effort="fast")
    assert result.save("a/n.onnx", inspect=False).files == ("a/n.onnx",)
    weights = amct_onnx.quantize("m.onnx", "data.npy", effort="fast", target="ascend").save("b/n.onnx").files
    assert weights == ("b/n_deploy_model.onnx", "b/n_fake_quant_model.onnx", "b/n_quant.json")
    with pytest.raises(OutputError, match="is the float model itself"):
        result.save("m.onnx")


def no_permission(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    folder.mkdir(mode=0o500)


WAYS: list[tuple[str, str]] = [
    ("taken/m", "is a file and no folder"),
    ("taken/deeper/m", "is a file and no folder"),
    ("in_place", "it is a folder"),
    (f"out/{'x' * 300}", "cannot be written"),
    ("/proc/nothing/m", "cannot be written"),
    ("m.onnx", "is the float model itself"),
]


@pytest.mark.parametrize(("path", "told"), WAYS)
@pytest.mark.parametrize("option", ["--save_path", "--save_statistics"])
def test_quantize_says_first_what_it_cannot_write(
    here: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, path: str, told: str, option: str
) -> None:
    if option == "--save_statistics":
        path, told = ("in_place_onnxruntime.onnx", told) if path == "in_place" else (path, told)
        if path == "m.onnx":
            pytest.skip("statistics are a file of their own")
    words = {"--save_path": "out/m", option: path}
    given = [word for pair in words.items() for word in pair]
    before = set(here.rglob("*"))
    assert main(["quantize", "m.onnx", "--data", "broken", *given]) == 1
    message = capsys.readouterr().err + caplog.text
    assert told in message
    assert "0.npy" not in message
    assert {file.name for file in set(here.rglob("*")) - before} <= {"amct_log", "amct_onnx.log"}


@pytest.mark.parametrize("path", ["taken/m", "in_place"])
def test_amcts_commands_say_it_first_too(here: Path, caplog: pytest.LogCaptureFixture, path: str) -> None:
    data = ["--input_shape", "x:2,3,8,8", "--data_dir", "broken", "--data_types", "float32"]
    assert main(["calibration", "--model", "m.onnx", "--save_path", path, *data]) == 1
    assert main(["convert", "--model", "no.onnx", "--save_path", path]) == 1
    assert "0.npy" not in caplog.text
    assert "no.onnx" not in caplog.text


CALLS: dict[str, Callable[[str], object]] = {
    "create_quant_config": lambda path: amct_onnx.create_quant_config(path, "no.onnx"),
    "updated_model": lambda path: amct_onnx.create_quant_config("c.json", "no.onnx", updated_model=path),
    "quantize_model": lambda path: amct_onnx.quantize_model("no.json", "no.onnx", path, "r.txt"),
    "record": lambda path: amct_onnx.quantize_model("no.json", "no.onnx", "q.onnx", path),
    "quantize_preprocess": lambda path: amct_onnx.quantize_preprocess("no.json", path, "no.onnx", "q.onnx"),
    "save_model": lambda path: amct_onnx.save_model("no.onnx", "no.txt", path),
    "convert_qat_model": lambda path: amct_onnx.convert_qat_model("no.onnx", path),
    "its record": lambda path: amct_onnx.convert_qat_model("no.onnx", "out/m", path),
}


@pytest.mark.parametrize("call", CALLS)
def test_amcts_functions_say_it_before_they_read(here: Path, call: str) -> None:
    with pytest.raises(OutputError, match="taken is a file and no folder"):
        CALLS[call]("taken/m")


def test_what_can_be_written_is_not_touched(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "file.onnx", tmp_path / "file")
    (tmp_path / "there").write_text("content")
    check_writable(tmp_path / "there")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("there", "content")]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    no_permission(tmp_path / "locked")
    with pytest.raises(OutputError, match="Permission denied"):
        check_writable(tmp_path / "locked" / "m.onnx")


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="no file system here that refuses everybody")
def test_a_file_system_that_takes_no_files() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        check_writable("/sys/kernel/m.onnx")
