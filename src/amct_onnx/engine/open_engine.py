"""The engine that a user names: `local`, `processes`, `processes:4`, or an `Engine` itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from amct_onnx.engine.engine import Engine, LocalEngine
from amct_onnx.engine.processes import ProcessEngine
from amct_onnx.errors import ArgumentError, ArgumentTypeError, did_you_mean
from amct_onnx.words import given, named

NAMES = ("local", "processes")
_MOST = 256  # processes on one machine


@contextmanager
def opened_engine(engine: str | Engine) -> Iterator[Engine]:
    """The engine of this name as long as the block runs; an `Engine` is taken as it is, and is not closed.

    Raises ArgumentError for a name that is unknown, and for a number of processes that is none.
    """
    if not isinstance(engine, str):
        if not callable(getattr(engine, "map", None)):
            raise ArgumentTypeError(f"{named('engine')} must be a name or an Engine, got {type(engine).__name__}")
        yield engine
        return
    made = _make(engine)
    try:
        yield made
    finally:
        made.close()


def _make(name: str) -> Engine:
    kind, _, rest = name.partition(":")
    if name == "local":
        return LocalEngine()
    if kind == "processes":
        return ProcessEngine(_count(name, rest) if _ else None)
    advice = "use local, processes or processes:N."
    raise ArgumentError(f"{given('engine', name)} is unknown: {did_you_mean(kind, NAMES, advice)}")


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise ArgumentError(f"{given('engine', name)}: give the number of processes behind the colon, as processes:4.")
    return int(text)
