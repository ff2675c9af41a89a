"""What a command says on stdout: text for people, one JSON document, or nothing.

The log has its own ways, stderr and a file. rich is imported when something is said, and not for `--help`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command says what came of it.

    json: only `document` writes. quiet: nothing writes. Colours are for terminals, and not under NO_COLOR.
    """

    json: bool = False
    quiet: bool = False

    @property
    def is_text(self) -> bool:
        """Whether people read it."""
        return not (self.json or self.quiet)

    def say(self, text: str = "") -> None:
        """Write a line of plain text for people, which wraps at the width of the terminal."""
        if self.is_text:
            with pipe_may_be_gone():
                self._console().print(text, markup=False, highlight=False)

    def show(self, renderable: Any) -> None:
        """Write a table or another thing of rich for people."""
        if self.is_text:
            with pipe_may_be_gone():
                self._console().print(renderable)

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the JSON document of `--json`; numbers that JSON does not have (NaN, infinity) are null."""
        if self.json:
            with pipe_may_be_gone():
                print(json.dumps(_plain(document), indent=2, allow_nan=False), file=sys.stdout, flush=True)

    def _console(self) -> Console:
        from rich.console import Console

        # NO_COLOR, for rich, leaves bold letters; no system of colours leaves nothing.
        return Console(file=sys.stdout, color_system=None if os.environ.get("NO_COLOR") else "auto")


@contextmanager
def pipe_may_be_gone() -> Iterator[None]:
    """Whoever read stdout may have enough of it, as `head`: the work goes on."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value
