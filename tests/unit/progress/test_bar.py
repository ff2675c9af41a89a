"""The bar: on a terminal only, and gone at the end."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from amct_onnx.cli.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_each_step_and_ends_with_a_clean_line() -> None:
    terminal = Terminal()
    show_progress(iter([1, 2, 3]), 3, "calibration", terminal)
    shown = terminal.getvalue().split("\r\x1b[K")
    assert [text.split("]")[-1].split()[0] for text in shown[1:-1]] == ["0/3", "1/3", "2/3", "3/3"]
    assert shown[2].startswith("calibration [##########          ")
    assert "0:00 left" in shown[4]
    assert shown[-1] == ""


def test_a_pipe_shows_nothing_and_the_work_is_done() -> None:
    pipe, done = io.StringIO(), []

    def steps() -> Iterator[int]:
        for step in (1, 2):
            done.append(step)
            yield step

    show_progress(steps(), 2, "calibration", pipe)
    assert (pipe.getvalue(), done) == ("", [1, 2])


def test_the_line_is_cleared_after_an_error_too() -> None:
    def steps() -> Iterator[int]:
        yield 1
        raise ValueError("step 2")

    terminal = Terminal()
    with pytest.raises(ValueError, match="step 2"):
        show_progress(steps(), 2, "calibration", terminal)
    assert terminal.getvalue().endswith("\r\x1b[K")
