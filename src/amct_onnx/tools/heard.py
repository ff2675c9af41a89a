"""Hears the warnings of the log while a command works, so that its summary can repeat them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Ear(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.ERROR and text not in self._heard:
            self._heard.append(text)


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """The warnings that are logged while the block runs, each once; the list grows."""
    heard: list[str] = []
    logger, ear = logging.getLogger("amct_onnx"), _Ear(heard)
    logger.addHandler(ear)
    try:
        yield heard
    finally:
        logger.removeHandler(ear)
