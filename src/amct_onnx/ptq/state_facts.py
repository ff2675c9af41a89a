"""What resumable state is of: everything that the result of a call depends on, as a text for each."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from amct_onnx.data.fingerprint import data_fingerprint
from amct_onnx.files.state_folder import StateFolder
from amct_onnx.graph.digest import model_digest
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.run.last_bits import last_bits
from amct_onnx.run.workers import runtime_version
from amct_onnx.version import VERSION


@contextmanager
def opened_state(
    path: str | os.PathLike[str] | None, source: FusedModel, data: object, options: Mapping[str, object]
) -> Iterator[StateFolder | None]:
    """The state of the call with this model, these data and options, which belongs to it while the block runs; None
    without a path. Raises StateError where the folder has that of another call, or another one works with it."""
    if path is None:
        yield None
        return
    versions = {"version": VERSION, "onnxruntime": runtime_version(), "last bits of the processor": last_bits()}
    facts = {**versions, "model": model_digest(source.model), "data": data_fingerprint(data)}
    with StateFolder.opened(path, facts | {name: _text(value) for name, value in options.items()}) as state:
        yield state


def _text(value: object) -> str:
    if isinstance(value, (str, os.PathLike)) and os.path.isfile(value):
        with open(value, "rb") as file:  # settings, a tokenizer, how images are prepared
            return f"{os.fspath(value)} (digest {hashlib.blake2b(file.read(), digest_size=12).hexdigest()})"
    return _of_function(value) if callable(value) else repr(value)


def _of_function(function: Callable[..., object]) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # an object that can be called, or a function that was typed in
        return name
    return f"{name} (digest {hashlib.blake2b(source.encode(), digest_size=12).hexdigest()})"
