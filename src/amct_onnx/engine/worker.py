"""A process that works on items for another one, `engine/processes.py`, which talks to it by pipes.

It ends when the other one does, in the middle of an item if need be. What it logs is sent along with each outcome, and
whatever prints goes to stderr.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from amct_onnx.engine.messages import load, receive, send
from amct_onnx.errors import AmctError, EngineError, one_line
from amct_onnx.words import of_the_command_line


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a worker has to know from the beginning. level: of messages that are wanted of its log."""

    is_command: bool
    level: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is to do: open the work in this file if it is not open yet, and work on an item; without an item,
    close what is open."""

    work: str = ""
    item: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of an order: an outcome or an error, and what was logged meanwhile."""

    outcome: Any = None
    error: BaseException | None = None
    log: list[logging.LogRecord] = field(default_factory=list)


class KeptLog(logging.Handler):
    """Keeps what is logged, in a form that can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)

    def taken(self) -> list[logging.LogRecord]:
        records, self._records = self._records, []
        return records


class _Opened:
    """The work that is open, and what is done to its items."""

    def __init__(self) -> None:
        self._stack, self._path = ExitStack(), ""
        self._do: Callable[[Any], Any] | None = None

    def obey(self, order: Order) -> Any:
        if order.work != self._path:
            self._stack.close()
            self._path, self._do = "", None
        if order.item is None:
            return None
        if self._do is None:
            self._do = self._stack.enter_context(load(Path(order.work)).open())
            self._path = order.work
        return self._do(pickle.loads(order.item))


def main() -> None:
    """Work for the process at the other end of stdin and stdout until it is gone."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which then ends this one
        hello: Hello = pickle.loads(receive(sys.stdin.buffer))
        orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
        log, logger = KeptLog(), logging.getLogger("amct_onnx")
        logger.addHandler(log)
        logger.propagate = False
        logger.setLevel(hello.level)
        with ExitStack() as stack:
            if hello.is_command:
                stack.enter_context(of_the_command_line())
            _work(out, orders, log)


def _listen(stream: IO[bytes], orders: queue.SimpleQueue[bytes]) -> None:
    try:
        while True:
            orders.put(receive(stream))
    except (EOFError, OSError):
        os._exit(0)  # nobody waits for an outcome any more


def _work(out: IO[bytes], orders: queue.SimpleQueue[bytes], log: KeptLog) -> None:
    opened = _Opened()
    while True:
        order: Order = pickle.loads(orders.get())
        try:
            answer = pickle.dumps(Answer(outcome=opened.obey(order), log=log.taken()), protocol=5)
        except BaseException as error:
            answer = _failed(error, log.taken())
        send(out, answer)


def _failed(error: BaseException, log: list[logging.LogRecord]) -> bytes:
    """The answer that hands on an error; one that cannot be pickled as what it says."""
    try:
        answer = pickle.dumps(Answer(error=error, log=log), protocol=5)
        pickle.loads(answer)
    except Exception:
        kind = "" if isinstance(error, AmctError) else f"{type(error).__name__}: "
        answer = pickle.dumps(Answer(error=EngineError(f"{kind}{one_line(error)}"), log=log), protocol=5)
    return answer
