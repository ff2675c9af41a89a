"""The three functions on small models: which files they write, what they log, and how nodes are named."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import (
    CPU,
    Flow,
    build,
    check_outputs,
    everything_below,
    images,
    normal,
    operators,
    two_convs,
)

import amct_onnx as amct

# Files


@pytest.mark.parametrize(
    ("save_path", "names"),
    [
        ("./results/model", {"model_deploy_model.onnx", "model_fake_quant_model.onnx", "model_quant.json"}),
        ("results/", {"deploy_model.onnx", "fake_quant_model.onnx", "quant.json"}),
        ("results/x/y.z", {"y.z_deploy_model.onnx", "y.z_fake_quant_model.onnx", "y.z_quant.json"}),
        ("", {"deploy_model.onnx", "fake_quant_model.onnx", "quant.json"}),
    ],
)
def test_save_path_is_a_folder_and_a_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_path: str, names: set[str]
) -> None:
    flow = Flow.of(two_convs(), tmp_path / "work").configure().quantize().calibrate([{"x": images(0)}])
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    amct.save_model(flow.modified, flow.record, save_path)
    written = {path for path in everything_below(tmp_path / "cwd") if not path.startswith("amct_log")}
    folder = os.path.dirname(os.path.normpath(f"{save_path}_")) if not save_path.endswith("/") else "results"
    files = {os.path.join(folder, name) for name in names}
    assert {path for path in written if (tmp_path / "cwd" / path).is_file()} == files


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_files_have_mode_0640_and_new_folders_0750(tmp_path: Path) -> None:
    source = tmp_path / "float.onnx"
    onnx.save(two_convs(), source)
    before = os.umask(0o022)
    try:
        amct.create_quant_config(
            str(tmp_path / "a" / "config.json"), str(source), updated_model=str(tmp_path / "b" / "updated.onnx")
        )
        modified, record = str(tmp_path / "c" / "modified.onnx"), str(tmp_path / "d" / "record.txt")
        amct.quantize_model(str(tmp_path / "a" / "config.json"), str(source), modified, record)
        ort.InferenceSession(modified, amct.AMCT_SO, providers=CPU).run(None, {"x": images(0)})
        amct.save_model(modified, record, str(tmp_path / "e" / "f" / "model"))
    finally:
        os.umask(before)
    made = [tmp_path / name for name in everything_below(tmp_path) if name != "float.onnx"]
    assert len([path for path in made if path.is_file()]) == 7
    for path in made:
        expected = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_existing_files_are_overwritten_with_a_warning(tmp_path: Path) -> None:
    flow = Flow.of(two_convs(), tmp_path).configure().quantize().calibrate([{"x": images(0)}])
    Path(flow.deploy).write_text("old")
    script = (
        f"import amct_onnx as amct; amct.save_model({flow.modified!r}, {flow.record!r}, {str(tmp_path / 'model')!r})"
    )
    result = run_script(script, tmp_path)
    assert f"WARNING - [AMCT]:[Utils]: The file already exists at {flow.deploy}" in result.stderr
    assert "AscendQuant" in operators(flow.deploy)


# Log


def run_script(
    script: str, folder: Path, *, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A new process: the log opens once in a process."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def flow_script(folder: Path) -> str:
    model = folder / "float.onnx"
    onnx.save(two_convs(), model)
    np.save(folder / "x.npy", images(0))
    return f"""
import numpy as np, onnxruntime as ort, amct_onnx as amct
amct.create_quant_config("./config.json", "{model.name}", skip_layers=[], batch_num=1, activation_offset=True)
amct.quantize_model("./config.json", "{model.name}", "./modified.onnx", "./record.txt")
ort.InferenceSession("./modified.onnx", amct.AMCT_SO).run(None, {{"x": np.load("x.npy")}})
amct.save_model("./modified.onnx", "./record.txt", "./out/model")
"""


LINES = [
    "INFO - [AMCT]:[Config]: Generate config file:./config.json success!",
    "INFO - [AMCT]:[Utils]: The model file is saved in ./out/model_deploy_model.onnx",
    "INFO - [AMCT]:[Utils]: The model file is saved in ./out/model_fake_quant_model.onnx",
]


def test_a_script_of_amct_prints_amcts_lines_and_keeps_them_in_the_log(tmp_path: Path) -> None:
    result = run_script(flow_script(tmp_path), tmp_path)
    assert result.stderr.splitlines() == LINES
    assert result.stdout == ""
    log = tmp_path / "amct_log" / "amct_onnx.log"
    stamped = [
        re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - (.*)", line)
        for line in log.open().read().split("\n")[:-1]
    ]
    assert [match[1] for match in stamped if match] == LINES
    assert len(stamped) == len(LINES)
    if os.name != "nt":
        assert [stat.S_IMODE(path.stat().st_mode) for path in (log.parent, log)] == [0o750, 0o640]


def test_the_log_starts_anew_in_each_process(tmp_path: Path) -> None:
    script = flow_script(tmp_path)
    for _ in range(2):
        run_script(script, tmp_path)
    assert (tmp_path / "amct_log" / "amct_onnx.log").read_text().count("Generate config file") == 1


@pytest.mark.parametrize(
    ("environment", "screen", "file"),
    [
        ({"AMCT_LOG_LEVEL": "error"}, 0, 3),
        ({"AMCT_LOG_FILE_LEVEL": "ERROR"}, 3, 0),
        ({"AMCT_LOG_LEVEL": "Warning", "AMCT_LOG_FILE_LEVEL": "warning"}, 0, 0),
        ({"AMCT_LOG_LEVEL": "DEBUG", "AMCT_LOG_FILE_LEVEL": "INFO"}, 3, 3),
    ],
)
def test_the_levels_of_screen_and_file(tmp_path: Path, environment: dict[str, str], screen: int, file: int) -> None:
    result = run_script(flow_script(tmp_path), tmp_path, **environment)
    assert result.stderr.count("INFO - [AMCT]") == screen
    assert (tmp_path / "amct_log" / "amct_onnx.log").read_text().count("INFO - [AMCT]") == file


@pytest.mark.parametrize("variable", ["AMCT_LOG_LEVEL", "AMCT_LOG_FILE_LEVEL"])
def test_a_level_that_does_not_exist_is_a_value_error(tmp_path: Path, variable: str) -> None:
    script = flow_script(tmp_path)
    before = everything_below(tmp_path)
    result = run_script(script, tmp_path, check=False, **{variable: "LOUD"})
    last = result.stderr.splitlines()[-1]
    assert last == (
        f"amct_onnx.errors.ArgumentError: {variable}{{'LOUD'}} is invalid, "
        "only support ['DEBUG', 'INFO', 'WARNING', 'ERROR']"
    )
    assert everything_below(tmp_path) == before


def test_the_import_writes_nothing(tmp_path: Path) -> None:
    run_script("import amct_onnx; amct_onnx.AMCT_SO; amct_onnx.save_model", tmp_path, AMCT_LOG_LEVEL="LOUD")
    assert everything_below(tmp_path) == {}


# Names


NAMELESS = """g (float[N,3,H,W] x) => (float[N,5,H,W] y) {
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    [same] r = Relu (a)
    [same] c = Conv <kernel_shape=[1,1]> (r, w2)
    [same] y = Conv <kernel_shape=[1,1]> (c, w3)
}"""
NAMELESS_WEIGHTS = {
    "w1": normal(1, 4, 3, 3, 3, scale=0.3),
    "b1": normal(2, 4),
    "w2": normal(3, 5, 4, 1, 1, scale=0.5),
    "w3": normal(4, 5, 5, 1, 1, scale=0.5),
}


def test_unnamed_and_duplicate_names_without_updated_model(tmp_path: Path) -> None:
    flow = Flow.of(build(NAMELESS, **NAMELESS_WEIGHTS), tmp_path).run({"x": images(0)})
    assert list(flow.records()) == ["Conv_0", "same_1", "same_2"]
    assert {node.name for node in onnx.load(flow.model).graph.node} == {"", "same"}  # the user's file is untouched
    # ONNX Runtime refuses duplicate names, so the float result comes from a model that has none.
    flow.model = Flow.of(build(NAMELESS.replace("[same] ", ""), **NAMELESS_WEIGHTS), tmp_path / "names").model
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})


def test_updated_model_has_the_names_and_is_quantized_the_same_way(tmp_path: Path) -> None:
    plain = Flow.of(build(NAMELESS, **NAMELESS_WEIGHTS), tmp_path / "plain").run({"x": images(0)})
    flow = Flow.of(build(NAMELESS, **NAMELESS_WEIGHTS), tmp_path / "updated")
    updated = str(tmp_path / "updated" / "named.onnx")
    flow.configure(updated_model=updated)
    assert [node.name for node in onnx.load(updated).graph.node] == ["Conv_0", "same", "same_1", "same_2"]
    flow.model = updated
    flow.quantize().calibrate([{"x": images(0)}]).save()
    assert flow.records() == plain.records()
    np.testing.assert_array_equal(flow.run_deploy({"x": images(1)}), plain.run_deploy({"x": images(1)}))
    check_outputs(flow, {"x": images(0)}, {"x": images(1)})
