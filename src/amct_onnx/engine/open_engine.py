"""The engine that a user names: `local`, or an `Engine` itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from amct_onnx.engine.engine import Engine, LocalEngine
from amct_onnx.errors import ArgumentError, ArgumentTypeError, did_you_mean
from amct_onnx.words import given, named

NAMES = ("local",)


@contextmanager
def opened_engine(engine: str | Engine) -> Iterator[Engine]:
    """The engine of this name as long as the block runs; an `Engine` is taken as it is, and is not closed.

    Raises ArgumentError for a name that is unknown.
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
    if name == "local":
        return LocalEngine()
    raise ArgumentError(f"{given('engine', name)} is unknown: {did_you_mean(name, NAMES, 'use local.')}")
