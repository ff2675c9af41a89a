"""How long work tells what it has done: whoever calls decides whether and where to show it."""

from __future__ import annotations

import sys
from typing import Protocol


class Progress(Protocol):
    """Called now and then, from any thread, with what is being done and the share of it that is, up to 1."""

    def __call__(self, what: str, share: float) -> None: ...


def silent(what: str, share: float) -> None:
    """Show nothing."""


def show_on_terminal(what: str, share: float) -> None:
    """One line on stderr that goes when the work is done; in a pipe there is none."""
    if sys.stderr is None or not sys.stderr.isatty():
        return
    text = f"\r{what}: {int(share * 100):3d} %"
    print(text if share < 1 else f"\r{' ' * len(text)}\r", end="", file=sys.stderr, flush=True)
