"""The log: handlers made once, AMCT's line format, long messages, a folder that cannot be written."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from amct_onnx._compat.log import start_log
from amct_onnx.errors import ArgumentError

LOG = Path("amct_log", "amct_onnx.log")


@pytest.fixture(autouse=True)
def fresh_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An unopened log in an empty folder; what other tests opened comes back afterwards."""
    monkeypatch.chdir(tmp_path)
    for variable in ("AMCT_LOG_LEVEL", "AMCT_LOG_FILE_LEVEL"):
        monkeypatch.delenv(variable, raising=False)
    logger = logging.getLogger("amct_onnx")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [], True
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])  # not by its attribute: loggers below keep what was enabled


def test_lines_have_the_area_of_their_logger(capsys: pytest.CaptureFixture[str]) -> None:
    start_log()
    logging.getLogger("amct_onnx.Config").info("Generate %s", "x")
    logging.getLogger("amct_onnx").warning("no area")
    logging.getLogger("amct_onnx.Utils").debug("hidden")
    assert capsys.readouterr().err.splitlines() == [
        "INFO - [AMCT]:[Config]: Generate x",
        "WARNING - [AMCT]:[Utils]: no area",
    ]
    lines = LOG.read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - "
    assert len(lines) == 2
    assert re.fullmatch(stamp + r"INFO - \[AMCT\]:\[Config\]: Generate x", lines[0])
    assert re.fullmatch(stamp + r"WARNING - \[AMCT\]:\[Utils\]: no area", lines[1])


def test_it_opens_once(capsys: pytest.CaptureFixture[str]) -> None:
    start_log()
    logging.getLogger("amct_onnx").info("first")
    start_log()
    logging.getLogger("amct_onnx").info("second")
    assert capsys.readouterr().err.count("second") == 1
    assert [line.rpartition(": ")[2] for line in LOG.read_text().splitlines()] == ["first", "second"]


def test_a_handler_of_the_application_does_not_keep_the_log_from_opening() -> None:
    logging.getLogger("amct_onnx").addHandler(logging.NullHandler())
    start_log()
    logging.getLogger("amct_onnx").info("written")
    assert "written" in LOG.read_text()


def test_an_old_log_is_overwritten() -> None:
    LOG.parent.mkdir()
    LOG.write_text("old")
    start_log()
    assert LOG.read_text() == ""


@pytest.mark.parametrize(("length", "lines"), [(0, [0]), (500, [500]), (501, [500, 1]), (1234, [500, 500, 234])])
def test_long_messages_are_split(capsys: pytest.CaptureFixture[str], length: int, lines: list[int]) -> None:
    start_log()
    logging.getLogger("amct_onnx.Utils").info("x" * length)
    text = capsys.readouterr().err.removeprefix("INFO - [AMCT]:[Utils]: ")
    assert [len(line) for line in text.removesuffix("\n").split("\n")] == lines


def test_a_message_with_percent_signs_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    start_log()
    logging.getLogger("amct_onnx").warning("100% of %s")
    assert capsys.readouterr().err == "WARNING - [AMCT]:[Utils]: 100% of %s\n"


@pytest.mark.parametrize("variable", ["AMCT_LOG_LEVEL", "AMCT_LOG_FILE_LEVEL"])
@pytest.mark.parametrize("value", ["LOUD", "", "10"])
def test_an_unknown_level_opens_nothing(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ArgumentError, match=rf"^{variable}\{{'{value}'\}} is invalid, only support \['DEBUG'"):
        start_log()
    assert not LOG.parent.exists()
    assert logging.getLogger("amct_onnx").handlers == []


def test_without_a_log_folder_the_screen_says_so_and_work_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    LOG.parent.write_text("a file in place of the folder")
    start_log()
    logging.getLogger("amct_onnx.Utils").info("still here")
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"WARNING - \[AMCT\]:\[Utils\]: No log file: .*amct_log cannot be written", lines[0])
    assert lines[1:] == ["INFO - [AMCT]:[Utils]: still here"]


def test_the_root_logger_of_the_application_is_left_alone() -> None:
    root, records = logging.getLogger(), []
    before, handler = (root.handlers[:], root.level), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    root.addHandler(handler)
    try:
        logging.getLogger("amct_onnx").error("before it is opened")
        start_log()
        logging.getLogger("amct_onnx").error("ours")
        assert (root.handlers, root.level) == ([*before[0], handler], before[1])
    finally:
        root.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["before it is opened"]
