"""`make bench` on a small model: whether each side is run and shown; what it measures is not looked at."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import beside_peers
import jobs
import numpy as np
import onnx
import peers
import pytest
from flow import build, normal, two_convs
from prepared import Case, MissingDataError
from processes import run_process

posix = pytest.mark.skipif(os.name != "posix", reason="scripts as programs, and signals")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a quick run on a model of two layers; opset 11, so that per-channel schemes need a conversion."""
    monkeypatch.delenv("AMCT_PEERS", raising=False)
    onnx.save(two_convs(opset=11), tmp_path / "net.onnx")
    np.save(tmp_path / "images.npy", normal(5, 3, 3, 8, 8))
    return ["--quick", "--model", str(tmp_path / "net.onnx"), "--images", str(tmp_path / "images.npy")]


def rows(table: str, title: str) -> dict[str, list[str]]:
    """Cells by label of the table whose title begins like that."""
    lines = table[table.index(title) :].split("\n\n", maxsplit=1)[0].splitlines()
    split = (re.split(r"\s{2,}", line) for line in lines)
    return {cells[0]: cells[1:] for cells in split}


@pytest.mark.slow
def test_quick_run_shows_every_installed_side(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert beside_peers.main(words) == 0
    table = capsys.readouterr().out
    absent = next(line for line in table.splitlines() if line.startswith("not installed: "))
    assert "onnxruntime" not in absent
    for name in ("nncf", "amd-quark", "aimet-onnx", "nvidia-modelopt"):
        assert (name in absent) == (peers.SIDES[name].version() is None)
    speed = rows(table, "net, 4 images: whole processes")
    latency = rows(table, "net: latency")
    for scheme in ("min-max Q/DQ per channel", "min-max QOperator"):
        assert float(speed[f"onnxruntime, {scheme}"][0]) > 0
        integer, floating = latency[f"onnxruntime, {scheme}"][3:5]
        assert int(integer) >= 2
        assert int(floating) == 0
    assert [int(count) for count in latency["float"][3:5]] == [0, 2]
    assert min(float(cells[2]) for label, cells in latency.items() if label.startswith("onnxruntime, ")) == 1.0


@pytest.mark.slow
@posix
def test_a_side_that_fails_is_a_remark(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(
        f"""#!{sys.executable}
import json, sys
if "--installed" in sys.argv:
    print(json.dumps({{"nncf": "9.9"}}))
else:
    sys.exit("nncf wants a licence")
""",
        encoding="utf-8",
    )
    interpreter.chmod(0o755)
    assert beside_peers.main([*words, "--python", str(interpreter), "--only", "speed"]) == 0
    out = capsys.readouterr().out
    assert "nncf 9.9" in out
    assert next(line for line in out.splitlines() if line.startswith("nncf, ")).endswith("nncf wants a licence")


def test_an_interpreter_that_does_not_start_is_left_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert beside_peers.find_sides([str(tmp_path / "nothing")]) == {}
    assert "nothing is left out: does not start" in capsys.readouterr().err


@posix
def test_problems_of_processes_are_one_line() -> None:
    raising = run_process([sys.executable, "-c", "raise ValueError('too\\nlong')"])
    assert raising.problem == "long"
    assert run_process([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).problem == "ended by signal 9"
    slow = run_process([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert slow.problem == "stopped after 0 s"
    fine = run_process([sys.executable, "-c", "print(1)"])
    assert (fine.problem, fine.stdout) == (None, "1\n")


def test_memory_of_a_process_is_its_own_peak() -> None:
    """A child does not begin with the memory of its parent, and memory that was freed still counts."""
    block = np.ones(64 << 20, np.uint8)
    code = "import processes, json; {}; print(json.dumps(processes.peak_mebibytes()))"
    folder = str(Path(beside_peers.__file__).parent)
    peaks = []
    for work in ("pass", f"b = bytearray(b'x') * {len(block)}; del b"):
        command = f"import sys; sys.path.insert(0, {folder!r}); {code.format(work)}"
        peaks.append(json.loads(run_process([sys.executable, "-c", command]).stdout))
    if peaks[0] is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert peaks[0] < 50
    assert 60 < peaks[1] - peaks[0] < 70


def test_images_start_again_where_there_are_fewer(tmp_path: Path) -> None:
    images = normal(1, 3, 2)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "net.onnx").touch()
    case = Case.of(str(tmp_path / "net.onnx"), tmp_path / "images.npy")
    case.write_images(tmp_path / "more.npy", 5)
    np.testing.assert_array_equal(np.load(tmp_path / "more.npy"), images[[0, 1, 2, 0, 1]])
    feeds = jobs.Feeds(tmp_path / "more.npy", "x")
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), images[[0, 1, 2, 0, 1]])
    reader = jobs.Reader(feeds)
    assert sum(1 for _ in iter(reader.get_next, None)) == len(feeds) == 5


def test_a_model_is_converted_once_and_only_below_the_opset(tmp_path: Path) -> None:
    onnx.save(build("g (float[N] x) => (float[N] y) { y = Relu (x) }", opset=11), tmp_path / "old.onnx")
    case = Case(name="old", model=tmp_path / "old.onnx")
    assert case.at_opset(11, tmp_path) == case.model
    converted = case.at_opset(13, tmp_path)
    assert onnx.load(converted).opset_import[0].version == 13
    assert case.at_opset(13, tmp_path) == converted


def test_a_model_that_cannot_be_converted_is_a_remark(tmp_path: Path) -> None:
    onnx.save(build("g (float[N] x) => (float[N] y) { y = Unheard (x) }", opset=11), tmp_path / "odd.onnx")
    bench = beside_peers.Bench(beside_peers.parse_arguments(["--quick"]), tmp_path)
    scheme = peers.find_scheme("onnxruntime", "min-max Q/DQ per channel")
    entry = beside_peers.Entry(side=peers.SIDES["onnxruntime"], scheme=scheme, python=sys.executable)
    run = bench.run(entry, Case(name="odd", model=tmp_path / "odd.onnx"), tmp_path / "images.npy")
    assert run.model is None
    assert str(run.problem).startswith("needs opset 13, and onnx cannot convert")


def test_a_missing_model_or_image_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="needs --images"):
        Case.of(str(tmp_path / "net.onnx"), None)
    with pytest.raises(MissingDataError, match=r"no such file: .*net\.onnx"):
        Case.of(str(tmp_path / "net.onnx"), tmp_path / "images.npy")
