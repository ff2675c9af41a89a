"""Work on Ray: nodes that are lost and come back, a cluster that is there already, and one that is started here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_works import Doubled, Slow, add
from shared_nodes import ray_nodes

from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.errors import EngineError

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    ray_nodes()
    with opened_engine("ray") as engine:
        yield engine


def arrays(count: int, lost: int, back: int) -> Iterator[np.ndarray]:
    """Arrays so large that they lie in the stores of nodes; one node is lost before such an item, and comes back."""
    for number in range(count):
        if number == lost:
            ray_nodes().lose_one()
        if number == back:
            ray_nodes().add_one()
        yield np.full(30_000, number)


def test_a_node_is_lost_in_merging_and_comes_back(engine: Any) -> None:
    for lost, back in ((20, 30), (40, 41)):
        found = engine.merge(Doubled(), arrays(100, lost, back), np.add)
        assert np.array_equal(found, np.full(30_000, 2 * sum(range(100))))
        wait_for_two(engine)


def test_a_node_is_lost_between_outcomes_and_comes_back(engine: Any) -> None:
    found = list(engine.map(Doubled(), arrays(60, 20, 40)))
    assert [int(array[0]) for array in found] == [2 * number for number in range(60)]
    assert all(array.flags.writeable for array in found)
    wait_for_two(engine)


def wait_for_two(engine: Any) -> None:
    """Until the node that has come back works as well."""
    end = time.monotonic() + 30
    while engine.workers < 2 or len(engine._crew.hands) < 2:
        assert time.monotonic() < end
        assert list(engine.map(Slow(seconds=0.1), range(4))) == list(range(4))


def test_a_cluster_that_is_there_is_left(engine: Any) -> None:
    import ray

    with closing(engine.map(Slow(seconds=0), range(4))) as outcomes:
        assert next(outcomes) == 0
    with opened_engine("ray") as other:  # its workers wait for those of the first engine
        assert other.workers == 2
    assert ray.is_initialized()
    assert engine.merge(Slow(seconds=0), range(4), add) == 6


def test_another_version_there_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from amct_onnx.engine import ray_engine

    engine.close()  # for the processors of its workers
    monkeypatch.setattr(ray_engine, "VERSION", "9.9")
    text = r"The cluster has amct_onnx 0\..*, and this process has amct_onnx 9.9: install the same version"
    with opened_engine("ray") as other, pytest.raises(EngineError, match=text):
        list(other.map(Slow(seconds=0), range(3)))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "amct_onnx.engine.ray_engine", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    text = r"""engine='ray' needs Ray \(.*\): pip install "amct-onnx\[ray\]"$"""
    with pytest.raises(EngineError, match=text), opened_engine("ray"):
        pass


SCRIPT = """
import sys, tempfile
sys.path[:] = {path!r}
from engine_works import Slow
from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.errors import EngineError

for address in ("ray://127.0.0.1:1", "ray://", "ray://nowhere"):
    try:
        with opened_engine(address):
            pass
    except EngineError as error:
        print(error)
with opened_engine("ray") as engine:
    print(engine.workers, list(engine.map(Slow(seconds=0), range(5))), flush=True)
    list(engine.map(Slow(seconds=60), range(5)))
"""


def test_a_cluster_is_started_and_ended_quietly(tmp_path: Path) -> None:
    environment = {**os.environ, "AMCT_ONNX_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT.format(path=sys.path)]
    left = set(Path("/tmp").glob("amct_ray_*"))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(4)]
    assert said[3] == "1 [0, 1, 2, 3, 4]"
    assert all(line.startswith("Ray at ray://") and "give ray://HOST:PORT" in line for line in said[:3])
    assert "nobody answers" in said[0]
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 20
    assert process.returncode in (-signal.SIGINT, 130)
    assert (out, err.strip().splitlines()[-1]) == ("", "KeyboardInterrupt")
    assert err.count("Traceback") == 1
    assert set(Path("/tmp").glob("amct_ray_*")) <= left
    assert list(tmp_path.iterdir()) == []
