"""The engine that a user names: `local`, `processes:4`, `ray://HOST:PORT` and the like, or an `Engine` itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from amct_onnx.engine.engine import Engine, LocalEngine
from amct_onnx.engine.processes import ProcessEngine
from amct_onnx.errors import ArgumentError, ArgumentTypeError, EngineError, did_you_mean, one_line
from amct_onnx.words import given, named

NAMES = ("local", "processes", "ray")
_RAY = 'pip install "amct-onnx[ray]"'
_MOST = 256  # processes on one machine


@contextmanager
def opened_engine(engine: str | Engine) -> Iterator[Engine]:
    """The engine of this name as long as the block runs; an `Engine` is taken as it is, and is not closed.

    Raises ArgumentError for a name that is unknown, and for a number of processes that is none; EngineError where Ray
    is not installed, or its cluster cannot be joined.
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
    if name == "ray" or name.startswith("ray://"):
        return _on_ray(None if name == "ray" else name)
    advice = "use local, processes, processes:N, ray or ray://HOST:PORT."
    raise ArgumentError(f"{given('engine', name)} is unknown: {did_you_mean(kind, NAMES, advice)}")


def _on_ray(address: str | None) -> Engine:
    try:
        from amct_onnx.engine.ray_engine import RayEngine
    except ImportError as reason:
        raise EngineError(f"{given('engine', address or 'ray')} needs Ray ({one_line(reason)}): {_RAY}") from None
    return RayEngine(address)


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise ArgumentError(f"{given('engine', name)}: give the number of processes behind the colon, as processes:4.")
    return int(text)
