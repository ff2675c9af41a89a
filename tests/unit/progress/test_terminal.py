"""Progress of a function: a line on a terminal, nothing in a pipe."""

from __future__ import annotations

import io
import sys

import pytest

from amct_onnx.progress import show_on_terminal


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_line_that_goes_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_on_terminal("Learning rounding", 0.074)
    assert terminal.getvalue() == "\rLearning rounding:   7 %"
    show_on_terminal("Learning rounding", 1)
    shown = terminal.getvalue().removeprefix("\rLearning rounding:   7 %")
    assert shown.startswith("\r ")
    assert shown.strip() == ""
    assert len(shown.strip("\r")) >= len("Learning rounding:   7 %")


def test_a_pipe_and_a_closed_stream_get_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_on_terminal("Learning rounding", 0.5)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)  # as in a Windows program without a console
    show_on_terminal("Learning rounding", 0.5)
