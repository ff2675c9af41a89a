"""On which execution providers of ONNX Runtime a call opens its sessions: on those that the user gave, or on the CPU.

They hold for all that happens in the call, as far as it may be from the argument; so they are a variable of its context
and no argument of a hundred functions. Other threads have a context of their own: what opens a session there takes
`providers_here()` along. Workers of an engine get them with the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.engine.engine import Engine, Work
from amct_onnx.engine.open_engine import opened_engine
from amct_onnx.errors import ArgumentError, ArgumentTypeError, one_line
from amct_onnx.words import given, named

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Provider = str | tuple[str, Mapping[str, Any]]  # a name, or one with its options
Providers = tuple[Provider, ...]

CPU: Providers = ("CPUExecutionProvider",)
_HERE: ContextVar[Providers | None] = ContextVar("providers", default=None)


def providers_here() -> Providers | None:
    """Those of the call that runs, None where it was given none."""
    return _HERE.get()


def checked_providers(providers: Sequence[Provider] | None) -> Providers | None:
    """What a user gave as `providers`, as a tuple, after a session has opened on them.

    Raises ArgumentTypeError, and ArgumentError for a provider that is unknown, not available, or does not start.
    """
    if providers is None:
        return None
    wanted = [providers] if isinstance(providers, str) else providers
    if not isinstance(wanted, list | tuple):
        raise ArgumentTypeError(f"{named('providers')} must be a list of names, got {type(providers).__name__}")
    taken = tuple(entry if isinstance(entry, str) else _pair(entry) for entry in wanted)
    names, available = [entry if isinstance(entry, str) else entry[0] for entry in taken], ort.get_available_providers()
    if not names:
        raise ArgumentError(f"{named('providers')} names none: give one of {', '.join(available)}.")
    for name in names:
        if name not in available:
            raise ArgumentError(
                f"{given('providers', name)} is none that this ONNX Runtime has: give one of {', '.join(available)}."
            )
    try:
        started = _session(taken).get_providers()
    except Exception as reason:  # ONNX Runtime has a class for each status code, and they share no base
        raise ArgumentError(f"{named('providers')}: ONNX Runtime cannot use them: {one_line(reason)}") from reason
    failed = [name for name in names if name not in started]
    if failed:
        raise ArgumentError(
            f"{given('providers', failed[0])} does not start: its libraries are missing or do not fit. "
            f"What started is {', '.join(started)}."
        )
    return taken


@contextmanager
def on_providers(providers: Providers | None) -> Iterator[None]:
    """Sessions that open while the block runs are on these, which are checked; None changes nothing."""
    before = _HERE.get()
    _HERE.set(providers or before)
    try:
        yield
    finally:
        _HERE.set(before)


@contextmanager
def opened_workers(engine: str | Engine, providers: Providers | None) -> Iterator[Engine]:
    """An engine, as `opened_engine` takes it, and sessions on these providers while the block runs, also those of its
    workers. Raises as `opened_engine` does."""
    with on_providers(providers), opened_engine(engine) as workers:
        yield workers if providers is None or workers.alone else _OnProviders(workers, providers)


class _OnProviders:
    """An engine, and what its workers open sessions on."""

    def __init__(self, engine: Engine, providers: Providers) -> None:
        self._engine, self._providers = engine, providers
        self.workers, self.alone = engine.workers, engine.alone

    def map(self, work: Work[Item, Outcome], items: Iterable[Item]) -> Generator[Outcome, None, None]:
        return self._engine.map(_WorkOn(work=work, providers=self._providers), items)

    def merge(
        self, work: Work[Item, Outcome], items: Iterable[Item], merge: Callable[[Outcome, Outcome], Outcome]
    ) -> Outcome | None:
        return self._engine.merge(_WorkOn(work=work, providers=self._providers), items, merge)

    def close(self) -> None:
        self._engine.close()


@dataclass(frozen=True, kw_only=True)
class _WorkOn(Generic[Item, Outcome]):
    """A work whose sessions are on these providers."""

    work: Work[Item, Outcome]
    providers: Providers

    @contextmanager
    def open(self) -> Iterator[Callable[[Item], Outcome]]:
        with on_providers(self.providers), self.work.open() as do:
            yield partial(self._do, do)  # some open sessions there

    def _do(self, do: Callable[[Item], Outcome], item: Item) -> Outcome:
        with on_providers(self.providers):
            return do(item)


def _pair(entry: Any) -> Provider:
    if isinstance(entry, tuple | list) and len(entry) == 2:
        name, options = entry
        if isinstance(name, str) and isinstance(options, Mapping):
            return name, dict(options)
    raise ArgumentTypeError(f"{named('providers')} has names, and pairs of a name and a dict of options, got {entry!r}")


def _session(providers: Providers) -> ort.InferenceSession:
    """A session of y = Identity(x)."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))
    node = ir.node("Identity", [x], num_outputs=1, name="same")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 13}, name="tried")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    model = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
    return ort.InferenceSession(model, options, providers=list(providers), enable_fallback=False)
