"""Progress of long work: those who work tell a `Progress`, and their caller decides whether a terminal shows it.

Everything here writes to one line of stderr, which is gone when the work is done. Nothing is written in a pipe or a
file, nor where there is no stderr. The line is drawn here and not by a library, so that the log can wipe it before it
writes, and that it shows in a notebook without widgets.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

_BAR = 30  # letters
_PAUSE = 0.1  # seconds between two drawings of a bar
_SETTLED = 1.0  # seconds after which the time left can be told


class Progress(Protocol):
    """Called now and then, from any thread, with what is being done and the share of it that is, up to 1."""

    def __call__(self, what: str, share: float) -> None: ...


def silent(what: str, share: float) -> None:
    """Show nothing."""


class TerminalProgress:
    """A bar with the time left, of one piece of work after the other; a share of 0 shows the work without a bar.

    say: gets what is to be said before long work begins, a line at a time.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._what, self._start, self._drawn = "", 0.0, 0.0

    def __call__(self, what: str, share: float) -> None:
        with self._lock:
            now = time.monotonic()
            if what != self._what:
                self._what, self._start, self._drawn = what, now, 0.0
            if share >= 1:
                self._what = ""
                _draw("")
            elif now - self._drawn >= _PAUSE:
                self._drawn = now
                _draw(self._line(what, share, now - self._start))

    @staticmethod
    def _line(what: str, share: float, spent: float) -> str:
        if share <= 0:
            return f"{what} ..."
        left = int(spent / share * (1 - share))
        told = f" {left // 60}:{left % 60:02d} left" if spent >= _SETTLED else ""
        return f"{what} [{'#' * int(_BAR * share):<{_BAR}}] {int(share * 100):3d} %{told}"

    def say(self, text: str) -> None:
        """Say a line, if somebody listens."""
        if self._say is not None:
            wipe()
            self._say(text)


def progress_of(wanted: Progress | bool | None) -> Progress:
    """What shows the progress that an argument asks for: True and None show it where somebody can see it, False not."""
    if wanted is False:
        return silent
    return TerminalProgress() if wanted is None or wanted is True else wanted


def say_before(progress: Progress, text: str) -> None:
    """Let a progress say what is known before the work begins, if it can."""
    if isinstance(progress, TerminalProgress):
        progress.say(text)


_SHOWN = TerminalProgress()


def show_on_terminal(what: str, share: float) -> None:
    """Show `what`, a bar and the time left, until the share is 1."""
    _SHOWN(what, share)


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
    if sys.stderr is None or not (sys.stderr.isatty() or _in_notebook()):
        return
    width = shutil.get_terminal_size().columns - 1
    print(f"\r{' ' * width}\r{text[:width]}", end="", file=sys.stderr, flush=True)


def wipe() -> None:
    """Remove the line, as whoever writes something else on the terminal does before."""
    _draw("")


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
