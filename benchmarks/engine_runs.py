"""Runs of quantize by the engines that there are, for benchmarks: what they write, and who may be killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray_nodes import RayNodes
from tasks import TASKS

import amct_onnx
from amct_onnx.engine.engine import Engine
from amct_onnx.engine.open_engine import opened_engine

KINDS = ("processes:2", "ray", "nodes")  # nodes: a cluster of Ray with two nodes, of which one is lost and comes back


class Run:
    """An engine, and a way to lose one of those who work for it."""

    def __init__(self, kind: str, engine: Engine, lose: Callable[[], Callable[[], None]]) -> None:
        self.kind, self.engine, self._lose = kind, engine, lose

    def losing(self, call: Callable[[], Any], after: float) -> Any:
        """What a call gives that runs on another thread, while somebody is lost after so many seconds."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(call()))
        thread.start()
        thread.join(after)
        back = self._lose()
        thread.join(0.5)
        back()
        thread.join()
        if not found:
            raise SystemExit(f"{self.kind}: the call failed")
        return found[0]


@contextlib.contextmanager
def running(kind: str, seed: int = 0) -> Iterator[Run]:
    """The engine of this kind, for as long as the block runs."""
    choice = random.Random(seed)
    with contextlib.ExitStack() as stack:
        if kind == "nodes":
            nodes = RayNodes()
            engine = stack.enter_context(opened_engine("ray"))

            def lose_node() -> Callable[[], None]:
                nodes.lose_one()
                return nodes.add_one

            yield Run(kind, engine, lose_node)
            return
        engine = stack.enter_context(opened_engine(kind))

        def lose_worker() -> Callable[[], None]:
            if workers := _workers(engine):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(choice.choice(workers), signal.SIGKILL)
            return lambda: None

        yield Run(kind, engine, lose_worker)


def _workers(engine: Any) -> list[int]:
    """The processes that work for an engine now."""
    if hasattr(engine, "_all"):
        return [worker._process.pid for worker in engine._all if worker._process is not None]
    import ray._private.state

    table = ray._private.state.actors()
    return [int(actor["Pid"]) for actor in table.values() if actor["State"] == "ALIVE" and int(actor["Pid"])]


def calibration(name: str, folder: Path, samples: int) -> Path:
    """The calibration data of a shared model, in a file."""
    task = TASKS[name]
    path = folder / f"{name}{task.suffix}"
    if not path.exists():
        task.write_calibration(path, samples)
    return path


def digest_of(result: Any) -> str:
    """One digest of all that a result writes: models, record, statistics."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        inspect = {} if result.target == "ascend" else {"inspect": False}
        result.save(folder / "m", **inspect)
        amct_onnx.save_statistics(result.statistics, folder / "statistics.npz")
        for file in sorted(folder.iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:24]
