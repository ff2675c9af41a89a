"""On which execution providers of ONNX Runtime a call opens its sessions: on those that the user gave, or on the CPU.

They hold for all that happens in the call, as far as it may be from the argument; so they are a variable of its context
and no argument of a hundred functions. Other threads have a context of their own: what opens a session there takes
`providers_here()` along. Workers of an engine get them with the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import ArgumentError, ArgumentTypeError, one_line
from amct_onnx.words import given, named

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
