"""What every refusal of bad input has in common."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flow import everything_below

from amct_onnx.errors import AmctError


@contextmanager
def refused(folder: Path, error: type[AmctError], *parts: str, mistakes: int = 1) -> Iterator[None]:
    """The block raises exactly `error`; its one line has all `parts` (patterns, in order), and `folder` is unchanged.

    Several mistakes of one document are a headline and a line each.
    """
    before = results_below(folder)
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is error, message
    lines = message.splitlines()
    assert len(lines) == (1 if mistakes == 1 else mistakes + 1), message
    assert all(line.startswith("  ") for line in lines[1:]), message
    assert re.search(".*".join(parts), message, re.DOTALL), message
    assert results_below(folder) == before


def results_below(folder: Path) -> dict[str, bytes | None]:
    """Everything but the log, which opens with the first call of a process, wherever that is."""
    return {path: content for path, content in everything_below(folder).items() if not path.startswith("amct_log")}
