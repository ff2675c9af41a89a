"""Opening a model that is in memory as a session of ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import ModelError, OutputError
from amct_onnx.files.onnx_file import model_bytes
from amct_onnx.graph.tensors import shape_of
from amct_onnx.run.temporary_files import place_with_room

QUIET = 4  # ONNX Runtime's own lines on stderr: fatal ones only, since an error is raised as well

# The runtime copies weights that are in memory; a larger model goes through a file, which is mapped.
_MAX_INLINE_BYTES = 1 << 27
_LEAST_LENT = 1 << 12  # bytes of an initializer
_LENT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8})


class SessionError(ModelError):
    """ONNX Runtime refuses a model; the message is its reason, in one line."""


def open_session(
    model: ir.Model,
    path: Path | None,
    sess_options: ort.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    *,
    disabled_optimizers: Sequence[str] = (),
    own_options: bool = True,
) -> ort.InferenceSession:
    """A session that runs `model`, which came from the file `path`; without providers on the CPU.

    own_options: whether `sess_options` are for this session alone, and may be changed.

    A large model goes through a temporary file as long as the session opens, in the folder of `path` if the system's
    has no room. Raises SessionError, or OutputError if no disk has the room.
    """

    options = ort.SessionOptions() if sess_options is None else sess_options

    def session(source: str | bytes) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                source,
                sess_options=options,
                providers=list(providers) if providers is not None else ["CPUExecutionProvider"],
                disabled_optimizers=list(disabled_optimizers),
            )
        except Exception as error:  # ONNX Runtime has a class for each status code, and they share no base
            raise SessionError(one_line(error)) from error

    if model_bytes(model) <= _MAX_INLINE_BYTES:
        inline: ir.Model = ir.external_data.load_to_model(model)
        lent: dict[str, ort.OrtValue] = {}
        if own_options or sess_options is None:
            inline, lent = _lend(inline)
        if lent:
            options.add_external_initializers(list(lent), list(lent.values()))
        opened = session(ir.to_proto(inline).SerializeToString())
        opened.lent = lent  # what the runtime does not copy must live as long
        return opened
    # ONNX Runtime maps the data file; where an open file cannot be deleted the folder is left to the system.
    place = place_with_room(model_bytes(model), path or Path("model"))
    with tempfile.TemporaryDirectory(prefix="amct_onnx_", dir=place, ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "model.onnx"
        try:
            ir.save(model, file, external_data="model.data")
        except OSError as error:
            text = f"takes a temporary file {file}: {error.strerror or error}"
            raise OutputError(f"Running {path or 'the model'} {text}.") from error
        return session(str(file))


def open_exact_session(model: ir.Model) -> ort.InferenceSession:
    """A session on the CPU whose sums of uint8 times int8 do not saturate, on CPUs where they otherwise do."""
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.add_session_config_entry("session.x64quantprecision", "1")
    return open_session(model, None, options)


def _lend(model: ir.Model) -> tuple[ir.Model, dict[str, ort.OrtValue]]:
    """A copy of `model` without its large initializers, and those: the runtime takes them from where they are, and not
    from a serialized model that would be written and parsed first."""
    copy = model.clone()
    lent: dict[str, ort.OrtValue] = {}
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _LENT_TYPES or tensor.nbytes < _LEAST_LENT:
            continue
        lent[name] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor.numpy()))
        shape = ir.Shape(shape_of(tensor))
        value.const_value = ir.ExternalTensor("lent", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
    return copy, lent


def one_line(reason: Exception) -> str:
    """The message of an error of ONNX Runtime, in one line and not too long."""
    return " ".join(str(reason).split())[:600]
