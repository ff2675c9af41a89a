"""Work that was stopped goes on where it was, and what it leaves is refused by other work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from engine_networks import a_folder_of_images, an_array_in_a_file, files_of, network, samples
from filelock import FileLock

import amct_onnx
from amct_onnx.errors import ArgumentError, StateError
from amct_onnx.files.state_folder import StateFolder
from amct_onnx.measure.output_judge import OutputJudge
from amct_onnx.observe.histograms import TensorCounter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(tmp_path_factory.mktemp("state"))


class StoppedError(Exception):
    """As Ctrl-C in the middle."""


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_what_is_done_is_not_done_again(
    model: Path,
    tmp_path: Path,
    effort: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = an_array_in_a_file(tmp_path)
    whole = files_of(amct_onnx.quantize(model, data, effort=effort, batch_size=4), tmp_path / "whole")
    runs: Counter[int] = Counter()
    judged, left = 0, 0
    run, scores = TensorCounter.run, OutputJudge.scores

    def counted(self: TensorCounter, feeds: Iterable[Any]) -> Any:
        nonlocal left
        if not left:
            raise StoppedError
        feeds = list(feeds)
        left -= 1
        runs.update(number for number, _ in feeds)
        return run(self, feeds)

    def judging(self: OutputJudge, *arguments: Any) -> Any:
        nonlocal judged
        judged += 1
        return scores(self, *arguments)

    monkeypatch.setattr(TensorCounter, "run", counted)
    monkeypatch.setattr(OutputJudge, "scores", judging)
    stops = 0
    for _ in range(60):
        left = 3
        try:
            result = amct_onnx.quantize(model, data, effort=effort, batch_size=4, state=tmp_path / "state")
        except StoppedError:
            stops += 1
        else:
            break
    assert stops >= 3
    assert files_of(result, tmp_path / "resumed") == whole
    assert set(runs.values()) == {1}
    before = dict(runs), judged
    again = amct_onnx.quantize(model, data, effort=effort, batch_size=4, state=tmp_path / "state")
    assert files_of(again, tmp_path / "again") == whole
    assert (again.steps, again.accuracy) == (result.steps, result.accuracy)
    assert dict(runs) == before[0]
    assert judged - before[1] <= 1  # what the result is worth


@pytest.mark.parametrize("goal", [{"min_sqnr": 40.0}, {"max_slowdown": 1.5}, {"max_drop": 0.0}])
def test_a_search_goes_on_where_it_was(
    model: Path, tmp_path: Path, goal: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any time, nothing is measured twice, and the search is the same."""
    data = an_array_in_a_file(tmp_path)
    x = {"x": samples(32)}
    calls = 0

    def evaluate(session: Any) -> float:
        nonlocal calls
        calls += 1
        return -float(np.square(session.run(None, x)[0] - exact).mean())

    exact = onnxruntime.InferenceSession(model).run(None, x)[0]
    options: dict[str, Any] = {**goal, **({"evaluator": evaluate} if "max_drop" in goal else {})}
    whole = amct_onnx.quantize(model, data, effort="fast", **options)
    evaluated, calls = calls, 0
    done: Counter[str] = Counter()
    write = StateFolder.recalled

    def stopping(self: StateFolder, key: str, make: Any) -> Any:
        def once() -> Any:
            made = make()
            done[key] += 1
            return made

        before = sum(done.values())
        found = write(self, key, once)
        if sum(done.values()) > before and len(done) % 3 == 0:
            raise StoppedError
        return found

    monkeypatch.setattr(StateFolder, "recalled", stopping)
    stops = 0
    while True:
        try:
            result = amct_onnx.quantize(model, data, effort="fast", state=tmp_path / "state", **options)
            break
        except StoppedError:
            stops += 1
    assert stops >= 2
    assert set(done.values()) == {1}
    assert calls == evaluated + (stops if evaluated else 0)  # of the float model, whether it still gives the same
    assert (result.precision, result.steps) == (whole.precision, whole.steps)
    assert files_of(result, tmp_path / "resumed") == files_of(whole, tmp_path / "whole")


SCRIPT = """
import sys
sys.path[:] = {path!r}
import amct_onnx
result = amct_onnx.quantize({model!r}, {data!r}, images="torch", batch_size=2, engine={engine!r}, state={state!r})
result.save({out!r}, inspect=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "processes:2"])
def test_a_killed_run_goes_on(model: Path, tmp_path: Path, engine: str) -> None:
    data = a_folder_of_images(tmp_path)
    amct_onnx.quantize(model, data, images="torch", batch_size=2).save(tmp_path / "whole", inspect=False)
    names = {"path": sys.path, "model": str(model), "data": str(data), "engine": engine}
    script = SCRIPT.format(**names, state=str(tmp_path / "state"), out=str(tmp_path / "resumed"))
    for files in (2, 5, 9, None):
        with subprocess.Popen([sys.executable, "-c", script]) as process:
            while process.poll() is None and (files is None or len(list((tmp_path / "state").glob("*.*"))) < files):
                time.sleep(0.005)
            if files is not None:
                process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    assert process.returncode == 0
    whole, resumed = (tmp_path / f"{name}_onnxruntime.onnx" for name in ("whole", "resumed"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_a_run_killed_before_it_said_what_it_is_of_goes_on(model: Path, tmp_path: Path) -> None:
    """All that such a run leaves is a lock and the begun file of its facts."""
    data, state = an_array_in_a_file(tmp_path), tmp_path / "state"
    state.mkdir()
    (state / ".lock").touch()
    (state / ".amct-begun.json").write_text('{"schema": ')
    amct_onnx.quantize(model, data, effort="fast", state=state)
    assert (state / "state.json").exists()
    assert not (state / ".amct-begun.json").exists()


def test_other_work_is_refused_by_what_differs(model: Path, tmp_path: Path) -> None:
    data, state = an_array_in_a_file(tmp_path), tmp_path / "state"
    amct_onnx.quantize(model, data, effort="fast", state=state)
    for options, text in (
        ({"effort": "default"}, "effort was 'fast' and is 'default'"),
        ({"batch_size": 8}, "batch_size was None and is 8"),
        ({"target": "openvino"}, "target was 'onnxruntime' and is 'openvino'"),
        ({"skip_layers": ["type:Gemm"]}, "request was "),
    ):
        with pytest.raises(StateError, match=text):
            amct_onnx.quantize(model, data, **{"effort": "fast", "state": state, **options})
    np.save(data, np.ones((150, 3, 16, 16), np.float32))
    with pytest.raises(StateError, match="data was "):
        amct_onnx.quantize(model, data, effort="fast", state=state)


def test_an_evaluator_that_judges_otherwise_is_refused(model: Path, tmp_path: Path) -> None:
    """Its text is the same, and not the labels that it reads."""
    x = {"x": samples(32)}
    labels = onnxruntime.InferenceSession(model).run(None, x)[0].argmax(1)

    def evaluate(session: Any) -> float:
        return float((session.run(None, x)[0].argmax(1) == labels).mean())

    def run() -> float:
        options = {"evaluator": evaluate, "max_drop": 0.1, "state": tmp_path / "state"}
        found = amct_onnx.quantize(model, samples(40), effort="fast", **options).precision
        assert found is not None
        return found.reference

    assert run() == run() == 1.0
    labels = labels + 1
    with pytest.raises(StateError, match="the scores that the evaluator gives the float model were others"):
        run()


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_other_data_of_an_iterable_are_refused(model: Path, tmp_path: Path, effort: Any) -> None:
    """They can be read only once, and so are known when they come."""

    def run(data: Iterable[np.ndarray]) -> None:
        amct_onnx.quantize(model, data, effort=effort, batch_size=4, state=tmp_path / "state")

    run(iter(samples(150)))
    run(iter(samples(150)))
    for place in (0, 149):
        changed = samples(150)
        changed[place] += 1
        with pytest.raises(StateError, match=r"of another run: the (first samples|feeds .* of the data) were others"):
            run(iter(changed))


def test_what_is_no_state_is_refused(model: Path, tmp_path: Path) -> None:
    data = an_array_in_a_file(tmp_path)
    with pytest.raises(StateError, match="holds something else: give a new folder"):
        amct_onnx.quantize(model, data, state=tmp_path)
    with pytest.raises(StateError, match="holds something else"):
        amct_onnx.quantize(model, data, state=data)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text("[]")
    with pytest.raises(StateError, match="is no state of a run"):
        amct_onnx.quantize(model, data, state=tmp_path / "state")
    with pytest.raises(ArgumentError, match="state keeps what a calibration has seen, and none is run here"):
        amct_onnx.quantize(model, None, dynamic=True, state=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_part_is_named(model: Path, tmp_path: Path) -> None:
    data, state = an_array_in_a_file(tmp_path), tmp_path / "state"
    first = amct_onnx.quantize(model, data, effort="fast", state=state)
    part = next(state.glob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StateError, match=f"{part.name}: the file of state is damaged .* delete it"):
        amct_onnx.quantize(model, data, effort="fast", state=state)
    part.unlink()
    assert amct_onnx.quantize(model, data, effort="fast", state=state).statistics == first.statistics


def test_one_call_at_a_time_works_with_a_folder(model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"

    def twice() -> Iterator[Any]:
        with pytest.raises(StateError, match="another call works with this folder now: wait until it has ended"):
            amct_onnx.quantize(model, twice(), effort="fast", state=state)
        yield samples(4)

    expected = amct_onnx.quantize(model, [samples(4)], effort="fast")
    assert amct_onnx.quantize(model, twice(), effort="fast", state=state).statistics == expected.statistics


def test_a_file_system_without_locks_keeps_state_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: FileLock, *_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    data, state = an_array_in_a_file(tmp_path), tmp_path / "state"
    first, again = (amct_onnx.quantize(model, data, effort="fast", state=state) for _ in range(2))
    assert first.statistics == again.statistics
    assert (state / "state.json").exists()


def test_state_says_what_it_is_of(model: Path, tmp_path: Path) -> None:
    data, state = an_array_in_a_file(tmp_path), tmp_path / "state"
    amct_onnx.quantize(model, data, effort="fast", state=state, min_sqnr=10.0)
    document = json.loads((state / "state.json").read_text())
    assert document["min_sqnr"] == "10.0"
    assert str(data) in document["data"]
    assert {"version", "model", "target", "effort"} <= document.keys()
