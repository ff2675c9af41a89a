"""Several processes on this machine work on items side by side. A process that is lost is replaced by a new one."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from amct_onnx.engine.engine import Work, merged
from amct_onnx.engine.messages import dump, receive, send
from amct_onnx.engine.processors import THREADS, processors
from amct_onnx.engine.worker import Answer, Hello, Order
from amct_onnx.errors import EngineError, one_line
from amct_onnx.words import either, is_command

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_AHEAD = 1  # items that wait for each worker, so that it need not wait for one
_MOST_LOST = 4  # workers, with one item
_PATIENCE = 2.0  # seconds until a worker that was told to end is ended
_START = "import sys; sys.path[:] = {path!r}; from amct_onnx.engine.worker import main; main()"
_log = logging.getLogger("amct_onnx.Engine")


class ProcessEngine:
    """Works in `workers` processes, as many as there are processors if nobody says how many.

    They share the processors that this process may use. A work is written to one temporary file, which they map.
    """

    alone = False

    def __init__(self, workers: int | None = None) -> None:
        self.workers = processors() if workers is None else workers
        self._numbers = count()
        self._folder = tempfile.TemporaryDirectory(prefix="amct_onnx_", ignore_cleanup_errors=True)
        threads = max(1, processors() // self.workers)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker(threads) for _ in range(self.workers)]
        for worker in self._all:
            self._idle.put(worker)

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        path = self._written(work)
        waiting: deque[Future[Outcome]] = deque()
        pool, stopped = ThreadPoolExecutor(self.workers, thread_name_prefix="amct_onnx"), threading.Event()
        try:
            failed: list[Exception] = []
            for number, item in enumerate(_until_failure(items, failed), 1):
                data = _pickled(item)
                waiting.append(pool.submit(self._do, path, data, number, stopped))
                if len(waiting) >= self.workers * (1 + _AHEAD):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
            if failed:
                raise failed[0]
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in self._all:
                worker.end()  # what they do is not wanted any more
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            if not stopped.is_set():
                self._shut()
            path.unlink(missing_ok=True)

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        return merged(self, work, items, merge)

    def close(self) -> None:
        for worker in self._all:
            worker.end(_PATIENCE)
        self._folder.cleanup()

    def _written(self, work: Work[Item, Outcome]) -> Path:
        path = Path(self._folder.name) / f"work-{next(self._numbers)}"
        try:
            dump(work, path)
        except OSError as reason:
            raise EngineError(f"{path}: the work for other processes cannot be written ({reason.strerror}).") from None
        except Exception as reason:
            raise _unpicklable(reason) from reason
        return path

    def _do(self, path: Path, item: bytes, number: int, stopped: threading.Event) -> Any:
        """Let a worker that is free work on an item."""
        for _ in range(_MOST_LOST):
            worker = self._idle.get()
            try:
                answer = worker.answer(Order(work=str(path), item=item))
            except _LostError as lost:
                if stopped.is_set():
                    raise
                _log.info("A worker is lost (%s); another one does its work again.", lost)
                continue
            finally:
                self._idle.put(worker)
            for record in answer.log:
                logging.getLogger(record.name).handle(record)
            if answer.error is not None:
                raise answer.error
            return answer.outcome
        advice = either("engine='processes:N' with a smaller N", "--engine processes:N with a smaller N")
        raise EngineError(
            f"Part {number} of the work has ended {_MOST_LOST} processes that worked on it. If the machine ran out of "
            f"memory, give {advice}."
        )

    def _shut(self) -> None:
        """Let workers close what they have opened; a lost one has nothing."""
        for worker in self._all:
            worker.shut()


class _LostError(Exception):
    """A worker is gone. Says how it ended."""


class _Worker:
    """A process that works, and the next one where it is lost. One thread at a time talks to it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        fewer = dict.fromkeys((THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(self._threads))
        process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **fewer},
            start_new_session=True,  # Ctrl-C ends this process first
        )
        hello = Hello(is_command=is_command(), level=logging.getLogger("amct_onnx").getEffectiveLevel())
        with contextlib.suppress(OSError):  # the first order will find out
            send(process.stdin, pickle.dumps(hello))  # type: ignore[arg-type]
        return process

    def answer(self, order: Order) -> Answer:
        """What comes of an order. Raises _LostError where the process ends meanwhile; the next order gets
        another one."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        try:
            send(process.stdin, pickle.dumps(order, protocol=5))  # type: ignore[arg-type]
            answer: Answer = pickle.loads(receive(process.stdout))  # type: ignore[arg-type]
        except (EOFError, OSError, ValueError):
            self.end(_PATIENCE)
            code = process.wait()
            raise _LostError(f"signal {-code}" if code < 0 else f"exit code {code}") from None
        return answer

    def shut(self) -> None:
        """Let the process close what it has opened."""
        if self._process is not None:
            with contextlib.suppress(_LostError):
                self.answer(Order())

    def end(self, patience: float = 0.0) -> None:
        """End the process, which has so many seconds to do it by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def _until_failure(items: Iterable[Item], failed: list[Exception]) -> Generator[Item, None, None]:
    """The items up to where no more can be had, which is noted: it concerns only those who want more."""
    try:
        yield from items
    except Exception as error:
        failed.append(error)


def _pickled(item: object) -> bytes:
    try:
        return pickle.dumps(item, protocol=5)
    except Exception as reason:
        raise _unpicklable(reason) from reason


def _unpicklable(reason: Exception) -> EngineError:
    return EngineError(f"The work cannot be sent to other processes: {one_line(reason)}.")
