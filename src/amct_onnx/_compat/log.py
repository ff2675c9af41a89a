"""AMCT's log (amct_formats.md: Logs): lines on stderr and in ./amct_log/amct_onnx.log, begun with the first call."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from amct_onnx.errors import ArgumentError
from amct_onnx.progress import wipe

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FORMAT = "%(levelname)s - [AMCT]:[%(area)s]: %(message)s"
_LINE = 500


class _Formatter(logging.Formatter):
    """`[AMCT]:[<area>]` from the last part of the logger's name; lines over 500 characters are split."""

    def format(self, record: logging.LogRecord) -> str:
        _, _, area = record.name.partition(".")
        record.area = area or "Utils"
        message = record.getMessage()
        lines = message.split("\n")
        record.msg = "\n".join(line[i : i + _LINE] for line in lines for i in range(0, max(len(line), 1), _LINE))
        record.args = ()
        return super().format(record)


class _Console(logging.StreamHandler[TextIO]):
    """Lines on stderr, wherever that leads now, where a line of progress may stand."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # which knows no stream

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # somebody may redirect it later
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        wipe()
        super().emit(record)


def start_log(usual: str = "INFO") -> None:
    """Open the log once per process; `usual`: the level of stderr where AMCT_LOG_LEVEL says none.

    Raises ArgumentError for a level that does not exist.
    """
    logger = logging.getLogger("amct_onnx")
    if any(isinstance(handler.formatter, _Formatter) for handler in logger.handlers):
        return  # an application may have handlers of its own here
    screen, file = _level("AMCT_LOG_LEVEL", usual), _level("AMCT_LOG_FILE_LEVEL", "INFO")
    console = _Console()
    console.setLevel(screen)
    console.setFormatter(_Formatter(_FORMAT))
    logger.addHandler(console)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        logger.addHandler(_file_handler(file))
    except OSError as error:
        logger.warning("No log file: %s cannot be written (%s).", Path("amct_log").resolve(), error.strerror)


def _file_handler(level: str) -> logging.Handler:
    folder = Path("amct_log")
    folder.mkdir(mode=0o750, exist_ok=True)
    path = folder / "amct_onnx.log"
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    with contextlib.suppress(OSError):  # a file system without modes
        os.chmod(path, 0o640)
    handler.setLevel(level)
    handler.setFormatter(_Formatter(f"%(asctime)s - {_FORMAT}"))
    return handler


def _level(variable: str, usual: str) -> str:
    value = os.environ.get(variable, usual)
    if value.upper() not in _LEVELS:
        raise ArgumentError(f"{variable}{{'{value}'}} is invalid, only support {list(_LEVELS)}")
    return value.upper()
