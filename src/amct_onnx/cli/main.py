"""The command `amct_onnx`: it reads the options, does the work, and says in one line what went wrong."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from amct_onnx._compat.log import start_log
from amct_onnx.cli.command import AlreadyTold
from amct_onnx.cli.commands import Asked, parse
from amct_onnx.errors import AmctError

OK, FAILED, INTERRUPTED, TERMINATED = 0, 1, 128 + signal.SIGINT, 128 + signal.SIGTERM
_log = logging.getLogger("amct_onnx.Command")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Raises SystemExit: 0 after help, 2 for a wrong command line. Everything else that goes wrong is one ERROR line in
    the log, and the exit code 1. With AMCT_LOG_LEVEL=DEBUG the log on stderr has the traceback as well, and with
    AMCT_LOG_FILE_LEVEL=DEBUG the file of the log.
    """
    try:
        asked = parse(sys.argv[1:] if argv is None else argv)
    finally:
        _flush_output()
    try:
        start_log(_level(asked))
    except AmctError as error:
        print(f"ERROR - [AMCT]:[Command]: {error}", file=sys.stderr)
        return FAILED
    try:
        with _tidy_termination():
            asked.run()
        _flush_output()
    except KeyboardInterrupt as signalled:
        terminated = isinstance(signalled, _Terminated)
        _log.error("Terminated." if terminated else "Interrupted.")
        return TERMINATED if terminated else INTERRUPTED
    except AlreadyTold:
        return FAILED
    except Exception as error:
        _log.error("%s", _explain(error))
        asked.output.document({"command": asked.command.name, "error": _explain(error)})
        _log.debug("The error came from:", exc_info=error)
        return FAILED
    return OK


def _level(asked: Asked) -> str:
    """What stderr shows of the log: all of it, but for people who read a summary on the terminal, and for --quiet."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return "WARNING" if asked.output.quiet or (asked.command.shows and is_terminal) else "INFO"


def _flush_output() -> None:
    """Write what was said now. If it goes to a pipe that nobody reads any more, Python would complain when it ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> str:
    if isinstance(error, AmctError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory: use smaller batches, or a machine with more."
    kind, text = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, OSError | ImportError):
        return f"{text or kind}. The system or the installation refuses what is needed here."
    return f"Unexpected {kind}: {text}. Please report it with the lines that AMCT_LOG_LEVEL=DEBUG adds."


class _Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def _tidy_termination() -> Iterator[None]:
    """While the block runs, SIGTERM raises an exception, so that temporary files are removed."""

    def terminate(*_: object) -> NoReturn:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
