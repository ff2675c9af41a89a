"""What the search is doing, on a terminal: one line that goes when the step is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def showing(what: str) -> Iterator[None]:
    """Show `what` on stderr while the block runs; in a pipe nothing is written."""
    if not sys.stderr.isatty():
        yield
        return
    text = f"{what} ..."
    print(f"\r{text}", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print(f"\r{' ' * len(text)}\r", end="", file=sys.stderr, flush=True)
