"""Both implementations of the calibration operators: the compiled one and the one of onnxruntime-extensions."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import amct_onnx as amct
from amct_onnx.numerics.statistics.accumulator import new_accumulator
from amct_onnx.observe import operators as observer_op

MODEL = """<ir_version: 8, opset_import: ["" : 13]>
g (float[N, 4] x) => (float[N, 2] y)
<float[4, 3] a = {1, -2, 3, 4, 5, -6, 7, 8, -9, 1, 2, 3}, float[3, 2] b = {1, 2, -3, 4, 5, 6}> {
    [first] h = MatMul (x, a)
    [r] p = Relu (h)
    [second] y = MatMul (p, b)
}"""


@pytest.fixture(params=["compiled", "python"])
def options(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ort.SessionOptions:
    """Session options of one implementation."""
    if request.param == "python":
        monkeypatch.setattr(observer_op, "compiled", None)
    elif observer_op.compiled is None:
        if os.environ.get("CI") == "true":
            pytest.fail("the C extension was not built, and CI has a compiler")
        pytest.skip("the C extension was not built")
    return observer_op.session_options()


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the calibration model of MODEL for some batches; gives its folder."""
    monkeypatch.chdir(tmp_path)

    def write(batch_num: int = 2, cfg: str | None = None) -> Path:
        model = onnx.parser.parse_model(MODEL)
        model.graph.node[0].name, model.graph.node[2].name = "première_couche", "第二层"  # ONNX text has ASCII names
        onnx.save(model, "model.onnx")
        if cfg is not None:
            Path("q.cfg").write_text(cfg, encoding="utf-8")
        amct.create_quant_config(
            "config.json", "model.onnx", batch_num=batch_num, config_defination=None if cfg is None else "q.cfg"
        )
        amct.quantize_model("config.json", "model.onnx", "modified.onnx", "record.txt")
        return tmp_path

    return write


def run(options: ort.SessionOptions, *batches: np.ndarray) -> None:
    session = ort.InferenceSession("modified.onnx", options)
    for batch in batches:
        session.run(None, {"x": batch})


def test_implementations_write_the_same_record(prepare: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # The second batch is large enough to be counted in parts, on the threads of the runtime.
    batches = [np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32) for rows in (500, 200_000)]
    texts = []
    for compiled in (observer_op.compiled, None):
        monkeypatch.setattr(observer_op, "compiled", compiled)
        folder = prepare()
        run(observer_op.session_options(), *batches)
        texts.append((folder / "record.txt").read_bytes())
    assert b"scale_d" in texts[0]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("algorithm", ["ifmr_quantize : {}", "hfmg_quantize : { num_of_bins : 1024 }"])
def test_settings_and_names_reach_the_solver(
    prepare: Callable[..., Path], options: ort.SessionOptions, algorithm: str
) -> None:
    folder = prepare(cfg=f"batch_num : 1 common_config : {{ {algorithm} }}")
    run(options, np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32))
    text = (folder / "record.txt").read_text(encoding="utf-8")
    assert text.count("scale_d") == 2
    assert "première_couche" in text
    assert "第二层" in text


def test_batches_that_are_all_without_elements_are_an_error_of_save_model(
    prepare: Callable[..., Path], options: ort.SessionOptions
) -> None:
    prepare(batch_num=2)
    run(options, np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32))
    with pytest.raises(RuntimeError, match=r'layer "première_couche".*failed: the tensor is empty in every batch'):
        amct.save_model("modified.onnx", "record.txt", "out")


def test_what_is_raised_in_an_operator_comes_out_of_save_model(
    prepare: Callable[..., Path], options: ort.SessionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(batch_num=1)

    def stop(*_: Any) -> None:
        raise SystemError("stopped by a test")

    monkeypatch.setattr(type(new_accumulator(1)), "add", stop)
    run(options, np.ones((1, 4), np.float32))  # an exception that leaves an operator would end the process
    with pytest.raises(RuntimeError, match="stopped by a test"):
        amct.save_model("modified.onnx", "record.txt", "out")


def test_ctrl_c_in_an_operator_ends_the_run_that_it_interrupts(
    prepare: Callable[..., Path], options: ort.SessionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the compiled operators can tell the code around the session; the others leave it to save_model."""
    prepare(batch_num=1)

    def interrupt(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(type(new_accumulator(1)), "add", interrupt)
    with pytest.raises(KeyboardInterrupt) if observer_op.compiled is not None else nullcontext():
        run(options, np.ones((1, 4), np.float32))
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        amct.save_model("modified.onnx", "record.txt", "out")


def test_sessions_come_and_go_in_threads(prepare: Callable[..., Path], options: ort.SessionOptions) -> None:
    folder = prepare(batch_num=8)
    batches = [np.random.default_rng(seed).normal(size=(64, 4)).astype(np.float32) for seed in range(8)]
    threads = [threading.Thread(target=run, args=(options, batch)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    together = (folder / "record.txt").read_bytes()
    prepare(batch_num=8)
    run(options, *batches)
    assert (folder / "record.txt").read_bytes() == together
