"""A bar on stderr while work goes on, if that is a terminal; nothing at all in a pipe or a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TextIO

_WIDTH = 30
_CLEAR = "\r\x1b[K"


def show_progress(steps: Iterable[int], total: int, what: str, stream: TextIO | None = None) -> None:
    """Exhaust `steps`, which yields the number of steps done, and show `what`, a bar and the time left meanwhile.

    The line is removed at the end, so that log lines begin on a clean one.
    """
    out = sys.stderr if stream is None else stream
    if not out.isatty():
        for _ in steps:
            pass
        return
    start = time.monotonic()
    try:
        _draw(out, what, 0, total, "")
        for done in steps:
            left = (time.monotonic() - start) / done * (total - done)
            _draw(out, what, done, total, f"{int(left // 60)}:{int(left % 60):02d} left")
    finally:
        out.write(_CLEAR)
        out.flush()


def _draw(out: TextIO, what: str, done: int, total: int, note: str) -> None:
    bar = "#" * (_WIDTH * done // total)
    out.write(f"{_CLEAR}{what} [{bar:<{_WIDTH}}] {done}/{total} {note}")
    out.flush()
