"""Run files: how one is found, and what is said of another file."""

from __future__ import annotations

from pathlib import Path

import pytest

from amct_onnx.errors import FileMissingError, OutputError, RunFileError
from amct_onnx.files.run_file import find_run, read_run, run_path, write_run


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("out/m", "out/m_openvino_run.json"), ("out/", "out/openvino_run.json"), ("m", "m_openvino_run.json")],
)
def test_a_run_has_the_name_of_its_model(prefix: str, path: str) -> None:
    assert run_path(prefix, "openvino") == path


@pytest.mark.parametrize(
    "word", ["out/m", "out/m_onnxruntime", "out/m_onnxruntime.onnx", "out/m_onnxruntime_run.json", "out"]
)
def test_a_run_is_found_by_what_a_user_has(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("out/m_onnxruntime_run.json", {"schema": 1})
    Path("out/m_onnxruntime.onnx").write_bytes(b"")
    assert find_run(word) == str(Path("out/m_onnxruntime_run.json"))


def test_of_several_runs_one_has_to_be_named(tmp_path: Path) -> None:
    for target in ("ascend", "openvino"):
        write_run(run_path(tmp_path / "m", target), {"schema": 1})
    with pytest.raises(RunFileError, match=r"several runs, .*m_ascend_run.json, .*m_openvino_run.json: name one"):
        find_run(tmp_path / "m")
    assert find_run(tmp_path / "m_ascend").endswith("m_ascend_run.json")


def test_letters_of_patterns_in_names_are_letters(tmp_path: Path) -> None:
    write_run(run_path(tmp_path / "m[1]*", "ascend"), {"schema": 1})
    assert find_run(tmp_path / "m[1]*").endswith("m[1]*_ascend_run.json")
    with pytest.raises(FileMissingError):
        find_run(tmp_path / "m*")


def test_without_a_run_it_is_said_who_writes_one(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"m has no run file \(.*m_<target>_run.json\): .*--save_path"):
        find_run(tmp_path / "m")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"[1", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "is no run file"),
        (b'{"a": 1}', "is no run file"),
    ],
)
def test_another_file_is_refused_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RunFileError, match=said) as error:
        read_run(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_what_json_does_not_know_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path / "x_run.json", {"schema": float("nan")})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_run(tmp_path / "file" / "x_run.json", {"schema": 1})
