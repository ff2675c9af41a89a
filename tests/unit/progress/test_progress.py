"""Progress on a terminal: one line that goes in the end; nothing in a pipe, and nothing without a stream."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from amct_onnx import progress
from amct_onnx.progress import (
    TerminalProgress,
    progress_of,
    say_before,
    show_on_terminal,
    show_steps,
    shown_on_terminal,
    silent,
    wipe,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def visible(self) -> str:
        """What is left on the line after carriage returns."""
        line: list[str] = []
        for part in self.getvalue().split("\r"):
            line[: len(part)] = part
        return "".join(line).rstrip()

    def lines(self) -> list[str]:
        """What was visible one after the other."""
        return [part for part in self.getvalue().split("\r") if part.strip()]


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> Terminal:
    """Stderr from now on. Not a fixture: pytest puts its own stderr back when the test begins."""
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_share_is_shown_until_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    show_on_terminal("Learning rounding", 0.074)
    assert stream.visible() == f"Learning rounding [##{' ' * 28}]   7 %"
    show_on_terminal("Learning rounding", 1)
    assert stream.visible() == ""
    assert "\n" not in stream.getvalue()


def test_a_shorter_text_leaves_nothing_of_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    show_on_terminal("Learning rounding", 0.5)
    show_on_terminal("ranges", 0.5)
    assert stream.visible() == f"ranges [{'#' * 15}{' ' * 15}]  50 %"


def test_a_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has wrapped could not be taken back."""
    stream = terminal(monkeypatch, columns=20)
    show_on_terminal("a step with a long name", 0.5)
    assert stream.visible() == "a step with a long"
    assert max(map(len, stream.getvalue().split("\r"))) < 20


def test_a_step_is_shown_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    with shown_on_terminal("calibrate"):
        assert stream.visible() == "calibrate ..."
    assert stream.visible() == ""
    assert "\n" not in stream.getvalue()


def test_a_bar_shows_each_step_and_ends_with_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    show_steps(iter([1, 2, 3]), 3, "calibration")
    shown = stream.lines()
    assert [text.split("]")[-1].split()[0] for text in shown] == ["0/3", "1/3", "2/3", "3/3"]
    assert shown[1].startswith("calibration [##########          ")
    assert "0:00 left" in shown[3]
    assert stream.visible() == ""


def test_the_line_is_cleared_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)

    def steps() -> Iterator[int]:
        yield 1
        raise ValueError("step 2")

    with pytest.raises(ValueError, match="step 2"):
        show_steps(steps(), 2, "calibration")
    assert stream.lines()
    assert stream.visible() == ""
    with pytest.raises(ValueError, match="step 3"), shown_on_terminal("calibrate"):
        raise ValueError("step 3")
    assert stream.visible() == ""


def test_a_pipe_shows_nothing_and_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, done = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", pipe)

    def steps() -> Iterator[int]:
        for step in (1, 2):
            done.append(step)
            yield step

    show_steps(steps(), 2, "calibration")
    with shown_on_terminal("calibrate"):
        done.append(3)
    show_on_terminal("Learning rounding", 0.5)
    assert (pipe.getvalue(), done) == ("", [1, 2, 3])


def test_no_stream_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as in a Windows program without a console
    show_on_terminal("Learning rounding", 0.5)
    show_steps(iter([1]), 1, "calibration")


def test_the_time_left_is_told_once_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = terminal(monkeypatch), 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = TerminalProgress()
    bar("calibration", 0.0)
    assert stream.visible() == "calibration ..."
    now = 100.5
    bar("calibration", 0.25)
    assert stream.visible().endswith(" 25 %")
    now = 150.0
    bar("calibration", 0.5)
    assert stream.visible().endswith(" 50 % 0:50 left")
    now = 150.01
    bar("calibration", 0.6)
    assert stream.visible().endswith(" 50 % 0:50 left")  # too soon for another drawing
    bar("calibration", 1.0)
    assert stream.visible() == ""


def test_what_is_said_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, said = terminal(monkeypatch), list[str]()
    bar = TerminalProgress(said.append)
    bar("calibration", 0.5)
    say_before(bar, "Assumed: something.")
    assert (stream.visible(), said) == ("", ["Assumed: something."])
    bar("calibration", 0.5)
    wipe()
    assert stream.visible() == ""


def test_which_progress_an_argument_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(what: str, share: float) -> None:
        raise AssertionError

    assert progress_of(False) is silent
    assert progress_of(own) is own
    assert isinstance(progress_of(None), TerminalProgress)
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    progress_of(None)("calibration", 0.5)
    assert pipe.getvalue() == ""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # in a notebook
    progress_of(None)("calibration", 0.5)
    assert "calibration [" in pipe.getvalue()
