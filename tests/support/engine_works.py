"""Works for the tests of engines: what they do to numbers, and to the process that does it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amct_onnx.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Multiplies numbers by the sum of an array, which travels with it. `log`: each opening is written there."""

    array: np.ndarray
    log: Path | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[int], float]]:
        if self.log is not None:
            _append(self.log, f"open {os.getpid()}")
        print("this must not come between the messages")
        logging.getLogger("amct_onnx.Data").warning("a worker says something of %s", "its work")
        yield lambda number: float(number * self.array.sum())
        if self.log is not None:
            _append(self.log, f"close {os.getpid()}")


@dataclass(frozen=True, kw_only=True)
class Deadly:
    """Squares numbers; the process is killed with the numbers of `with_it` as often as that says, counted in files."""

    folder: Path
    with_it: dict[int, int]

    @contextmanager
    def open(self) -> Iterator[Callable[[int], int]]:
        yield self._square

    def _square(self, number: int) -> int:
        deaths = self.folder / str(number)
        if (len(deaths.read_text()) if deaths.exists() else 0) < self.with_it.get(number, 0):
            _append(deaths, "x", end="")
            os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        return number * number


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """Raises a DataError, or an error that cannot be made again from a pickle, with one of the numbers."""

    number: int
    awkward: bool = False

    @contextmanager
    def open(self) -> Iterator[Callable[[int], int]]:
        yield self._same

    def _same(self, number: int) -> int:
        if number == self.number:
            raise AwkwardError(number, why="nobody knows") if self.awkward else DataError(f"item {number} is bad")
        return number


@dataclass(frozen=True, kw_only=True)
class Doubled:
    """Gives the double of numbers, or of arrays."""

    @contextmanager
    def open(self) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
        yield lambda array: 2 * array


class AwkwardError(Exception):
    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(f"{number}: {why}")


@dataclass(frozen=True, kw_only=True)
class Slow:
    """Gives back numbers after so many seconds; those below `quick` at once."""

    seconds: float
    quick: int = 0

    @contextmanager
    def open(self) -> Iterator[Callable[[int], int]]:
        yield self._wait

    def _wait(self, number: int) -> int:
        if number >= self.quick:
            time.sleep(self.seconds)
        return number


def _append(path: Path, text: str, end: str = "\n") -> None:
    with path.open("a") as file:
        file.write(text + end)


def add(one: float, two: float) -> float:
    return one + two
