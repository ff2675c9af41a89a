"""Work by several processes beyond what every engine promises (tests/contracts): their log, their end, their names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from engine_works import Scaled, Slow, Wrong

from amct_onnx.engine.engine import Engine
from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.engine.processes import ProcessEngine
from amct_onnx.engine.processors import processors
from amct_onnx.errors import ArgumentError, ArgumentTypeError, EngineError
from amct_onnx.run import workers


@pytest.fixture(scope="module")
def engine() -> Iterator[ProcessEngine]:
    made = ProcessEngine(2)
    yield made
    made.close()


def test_what_a_worker_logs_is_logged_here(engine: ProcessEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        list(engine.map(Scaled(array=np.ones(2)), range(4)))
    assert "a worker says something of its work" in caplog.messages


def test_an_error_that_cannot_be_sent_is_told_of(engine: ProcessEngine) -> None:
    with pytest.raises(EngineError, match="AwkwardError: 7: nobody knows"):
        list(engine.map(Wrong(number=7, awkward=True), range(10)))


def test_nobody_waits_for_work_that_is_not_wanted(engine: ProcessEngine) -> None:
    start = time.monotonic()
    with closing(engine.map(Slow(seconds=60, quick=1), range(10))) as outcomes:
        assert next(outcomes) == 0
    assert time.monotonic() - start < 30


def test_workers_end_with_the_process_that_has_started_them(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path[:] = {sys.path!r}
from engine_works import Scaled, Slow
from amct_onnx.engine.processes import ProcessEngine
engine = ProcessEngine(2)
print(*[worker._process.pid for worker in engine._all], flush=True)
list(engine.map(Slow(seconds=60), range(4)))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(part) for part in process.stdout.readline().split()]
        process.kill()
    deadline = time.monotonic() + 20
    while (left := [pid for pid in workers if _is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not left


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")  # one that has ended and that nobody has waited for counts as gone
    return not (status.exists() and "State:\tZ" in status.read_text())


@pytest.mark.parametrize("name", ["local", "processes:2", "processes"])
def test_engines_have_names(name: str) -> None:
    with opened_engine(name) as engine:
        assert engine.workers == {"local": 1, "processes:2": 2, "processes": processors()}[name]
        assert list(engine.map(Wrong(number=-1), range(3))) == [0, 1, 2]


def test_an_engine_of_the_caller_stays_open(engine: ProcessEngine) -> None:
    with opened_engine(engine) as same:
        assert same is engine
    assert list(engine.map(Wrong(number=-1), range(3))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proceses", "did you mean 'processes'"),
        ("spark", "use local, processes"),
        ("processes:", "the number of processes behind the colon"),
        ("processes:0", "the number of processes behind the colon"),
        ("processes:two", "the number of processes behind the colon"),
        ("processes:99999", "the number of processes behind the colon"),
    ],
)
def test_wrong_names(name: str, text: str) -> None:
    with pytest.raises(ArgumentError, match=text), opened_engine(name):
        pass


def test_something_else_than_an_engine() -> None:
    wrong: Engine = 3  # type: ignore[assignment]
    with pytest.raises(ArgumentTypeError, match="engine must be a name or an Engine, got int"), opened_engine(wrong):
        pass


def test_fewer_processors_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMCT_ONNX_THREADS", "1")
    assert processors() == 1
    monkeypatch.setenv("AMCT_ONNX_THREADS", "no number")
    assert processors() >= 1


@pytest.mark.parametrize(
    ("name", "here", "told"),
    [
        ("runtime_version", "1.0", r"A worker has onnxruntime 1\..*, and this process has 1\.0: install"),
        ("last_bits", "others", r"A worker on .* computes other last bits than this process.* of one kind"),
    ],
)
def test_a_worker_that_computes_otherwise_is_refused(
    name: str, here: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, name, lambda: here)
    with workers.opened_workers("processes:1", None) as engine, pytest.raises(EngineError, match=told):
        list(engine.map(Wrong(number=-1), range(3)))
