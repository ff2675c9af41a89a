"""The processes of `make conformance`: each takes a model after the other, and the end of one costs no other model.

A worker reads a task a line and answers with lines: the route that it begins, what came of it, and the end of the task.
So the parent knows what a crash or a timeout is to be blamed on, and a new worker goes on behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from queue import SimpleQueue
from typing import Any

TIMEOUT = 120.0  # seconds for a route of a model


@dataclass(frozen=True, kw_only=True, order=True)
class Task:
    """A form of a model, and the routes that it goes."""

    form: str
    source: str
    name: str
    routes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one route of a task; the route "form" stands for all where the form could not be made."""

    task: Task
    route: str
    words: str
    details: str
    seconds: float


def run_tasks(tasks: Sequence[Task], workers: int) -> Iterator[Answer]:
    """All answers, in the order in which they come."""
    waiting: SimpleQueue[Task] = SimpleQueue()
    for task in tasks:
        waiting.put(task)
    answers: SimpleQueue[Answer | BaseException | None] = SimpleQueue()

    def serve() -> None:
        try:
            _serve(waiting, answers)
        except BaseException as error:
            answers.put(error)
        finally:
            answers.put(None)

    with ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            pool.submit(serve)
        working = workers
        while working:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                working -= 1
            else:
                yield answer


def _serve(waiting: SimpleQueue[Task], answers: SimpleQueue[Any]) -> None:
    worker: _Worker | None = None
    while not waiting.empty():
        task = waiting.get()
        left = list(task.routes)
        while left:
            worker = worker or _Worker()
            for answer in worker.do(replace(task, routes=tuple(left))):
                answers.put(replace(answer, task=task))
                left = [] if answer.route == "form" else [route for route in left if route != answer.route]
            if not worker.alive:
                worker = None
    if worker:
        worker.close()


class _Worker:
    """A process that does tasks until it ends."""

    def __init__(self) -> None:
        self.alive = True
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def do(self, task: Task) -> Iterator[Answer]:
        """The answers to a task, of which the last is a crash if the process ends with it."""
        process, late = self._process, threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        begun = "form"
        timer = threading.Timer(TIMEOUT, stop)
        timer.start()
        try:
            process.stdin.write(json.dumps(asdict(task)) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                timer.cancel()
                timer = threading.Timer(TIMEOUT, stop)
                timer.start()
                if "begins" in said:
                    begun = said["begins"]
                elif "ends" in said:
                    return
                else:
                    yield Answer(task=task, **said)
        finally:
            timer.cancel()
        self.alive = False
        code = process.wait()
        details = f"no answer within {TIMEOUT:.0f} s" if late.is_set() else f"ended with {code}"
        if begun == "form":  # making it, or the float model
            yield Answer(task=task, route="form", words="float model ends the process", details=details, seconds=0.0)
        else:
            words = "WRONG: timeout" if late.is_set() else "WRONG: crash"
            yield Answer(task=task, route=begun, words=words, details=details, seconds=0.0)

    def close(self) -> None:
        """Let the process end."""
        self._process.stdin.close()
        self._process.wait()


def _work() -> None:
    """Do the tasks of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # what libraries print is in nobody's way
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from conformance_task import answers_to

    for line in sys.stdin:
        task = json.loads(line)
        for said in answers_to(task["form"], task["source"], task["name"], task["routes"]):
            answers.write(json.dumps(said) + "\n")
        answers.write(json.dumps({"ends": True}) + "\n")


if __name__ == "__main__":
    _work()
