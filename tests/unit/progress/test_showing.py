"""The line that says what a search is doing."""

from __future__ import annotations

import io

import pytest

from amct_onnx.amct.step_line import showing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def visible(text: str) -> str:
    """What is left on a line after carriage returns."""
    line: list[str] = []
    for part in text.split("\r"):
        line[: len(part)] = part
    return "".join(line).rstrip()


def test_a_terminal_shows_the_step_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with showing("calibrate"):
        assert visible(terminal.getvalue()) == "calibrate ..."
    assert visible(terminal.getvalue()) == ""
    assert "\n" not in terminal.getvalue()


def test_a_pipe_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    with showing("calibrate"):
        pass
    assert pipe.getvalue() == ""
