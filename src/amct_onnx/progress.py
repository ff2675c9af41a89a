"""Progress of long work: those who work tell a `Progress`, and their caller decides whether a terminal shows it.

Everything here writes to one line of stderr, which is gone when the work is done. Nothing is written in a pipe or a
file, nor where there is no stderr.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

_BAR = 30  # letters


class Progress(Protocol):
    """Called now and then, from any thread, with what is being done and the share of it that is, up to 1."""

    def __call__(self, what: str, share: float) -> None: ...


def silent(what: str, share: float) -> None:
    """Show nothing."""


def show_on_terminal(what: str, share: float) -> None:
    """Show `what` and how many per cent of it are done."""
    _draw(f"{what}: {int(share * 100):3d} %" if share < 1 else "")


@contextmanager
def shown_on_terminal(what: str) -> Iterator[None]:
    """Show `what` while the block runs, of which nobody knows how far it is."""
    _draw(f"{what} ...")
    try:
        yield
    finally:
        _draw("")


def show_steps(steps: Iterable[int], total: int, what: str) -> None:
    """Exhaust `steps`, which yields how many of `total` are done; show `what`, a bar and the time left meanwhile."""
    start = time.monotonic()
    try:
        _draw(_bar(what, 0, total))
        for done in steps:
            left = (time.monotonic() - start) / done * (total - done)
            _draw(f"{_bar(what, done, total)} {int(left // 60)}:{int(left % 60):02d} left")
    finally:
        _draw("")


def _bar(what: str, done: int, total: int) -> str:
    return f"{what} [{'#' * (_BAR * done // total):<{_BAR}}] {done}/{total}"


def _draw(text: str) -> None:
    """Replace the line by `text`, cut to the width of the terminal: what wraps could not be replaced."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    width = shutil.get_terminal_size().columns - 1
    print(f"\r{' ' * width}\r{text[:width]}", end="", file=sys.stderr, flush=True)
