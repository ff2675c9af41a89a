"""Models that are large: their weights stay on disk. Small ones stand in for them, with lower limits."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, check_outputs, normal
from onnx import external_data_helper
from refusal import refused

import amct_onnx as amct
from amct_onnx.errors import OutputError
from amct_onnx.files import onnx_file
from amct_onnx.run import session
from amct_onnx.run import temporary_files as scratch

WIDTH, LAYERS = 1024, 10  # 40 MiB in 10 MatMuls
# Peak of what Python and numpy hold, against all weights: copies of one layer (0.1 each), and parts of it in float64.
HELD = 0.5


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A chain of MatMuls; the weights of every second one are in a file of their own, the others share one."""
    names = [f"w{index}" for index in range(LAYERS)]
    nodes = " ".join(
        f"[m{index}] t{index + 1} = MatMul (t{index}, {name})" for index, name in enumerate(names)
    ).replace("t0,", "x,")
    body = f"g (float[N,{WIDTH}] x) => (float[N,{WIDTH}] t{LAYERS}) {{ {nodes} }}"
    weights = {name: normal(index, WIDTH, WIDTH, scale=1 / WIDTH**0.5) for index, name in enumerate(names)}
    proto = build(body, **weights)
    for index, tensor in enumerate(proto.graph.initializer):
        external_data_helper.set_external_data(tensor, f"w{index}.bin" if index % 2 else "shared.bin")
    folder = tmp_path / "float"
    folder.mkdir()
    onnx.save(proto, folder / "float.onnx")
    (tmp_path / "out").mkdir()
    return Flow(str(folder / "float.onnx"), tmp_path / "out")


def feeds(seed: int) -> dict[str, np.ndarray]:
    return {"x": normal(seed, 4, WIDTH)}


def held(call: Callable[[], Any]) -> float:
    """The peak of memory that Python and numpy hold meanwhile, against the weights; mapped files do not count."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / (4 * LAYERS * WIDTH**2)
    finally:
        tracemalloc.stop()


def test_no_step_holds_the_weights(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    assert held(lambda: flow.configure(batch_num=1)) < HELD
    assert held(flow.quantize) < HELD
    flow.calibrate([feeds(0)])
    assert held(flow.save) < HELD
    assert len(flow.records()) == LAYERS
    monkeypatch.setattr(session, "MAX_INLINE_BYTES", 0)
    assert held(lambda: amct.deployed_session(flow.deploy)) < HELD


def test_a_deploy_model_with_external_data_runs_from_memory_and_from_a_file(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flow.run(feeds(0))
    assert Path(f"{flow.deploy}.data").stat().st_size >= LAYERS * WIDTH**2
    check_outputs(flow, feeds(0), feeds(1))
    monkeypatch.setattr(session, "MAX_INLINE_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    check_outputs(flow, feeds(0), feeds(1))
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("full", ["before", "half way"])
def test_no_room_for_the_file_that_a_deploy_model_runs_from(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: str
) -> None:
    flow.run(feeds(0))
    monkeypatch.setattr(session, "MAX_INLINE_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if full == "before":
        usage = scratch.shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(scratch.shutil, "disk_usage", lambda _: usage)
        parts = [r"model_deploy_model\.onnx takes a temporary file of 0\.01 GB", "neither", "TMPDIR"]
    else:
        monkeypatch.setattr(session.ir, "save", no_space)
        parts = [r"model_deploy_model\.onnx takes a temporary file", "No space left on device"]
    with refused(tmp_path, OutputError, *parts):
        amct.deployed_session(flow.deploy)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["updated_model", "quantize_model", "save_model"])
def test_a_full_disk_leaves_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    flow.configure(batch_num=1)
    if step == "save_model":
        flow.quantize().calibrate([feeds(0)])
    run = {
        "updated_model": lambda: flow.configure(updated_model=str(flow.folder / "named.onnx")),
        "quantize_model": flow.quantize,
        "save_model": flow.save,
    }[step]
    monkeypatch.setattr(onnx_file.ir, "save", no_space)
    with refused(flow.folder, OutputError, r"Cannot write .*\.onnx: No space left on device"):
        run()


def test_results_may_take_the_place_of_the_calibration_model(flow: Flow) -> None:
    """Its weights are read while results are written: the one that takes its place must come last."""
    flow.run(feeds(0))
    record, wanted = str(flow.folder / "again.txt"), results(flow.folder)
    for kind in ("deploy", "fake_quant"):
        calibrated = str(flow.folder / kind / f"model_{kind}_model.onnx")
        amct.quantize_model(flow.config, flow.model, calibrated, record)
        ort.InferenceSession(calibrated, amct.AMCT_SO, providers=CPU).run(None, feeds(0))
        amct.save_model(calibrated, record, str(flow.folder / kind / "model"))
        assert results(flow.folder / kind) == wanted


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model_*")}
