"""Opening a model that is in memory as a session of ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import ModelError, OutputError
from amct_onnx.formats.onnx_file import model_bytes
from amct_onnx.runtime.scratch import place_with_room

QUIET = 4  # ONNX Runtime's own lines on stderr: fatal ones only, since an error is raised as well

# A model in memory is there three times while a session opens; a larger one goes through a file, which is mapped.
_MAX_INLINE_BYTES = 1 << 27


class SessionError(ModelError):
    """ONNX Runtime refuses a model; the message is its reason, in one line."""


def open_session(
    model: ir.Model,
    path: Path | None,
    sess_options: ort.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    *,
    disabled_optimizers: Sequence[str] = (),
) -> ort.InferenceSession:
    """A session that runs `model`, which came from the file `path`; without providers on the CPU.

    A large model goes through a temporary file as long as the session opens, in the folder of `path` if the system's
    has no room. Raises SessionError, or OutputError if no disk has the room.
    """

    def session(source: str | bytes) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                source,
                sess_options=sess_options,
                providers=list(providers) if providers is not None else ["CPUExecutionProvider"],
                disabled_optimizers=list(disabled_optimizers),
            )
        except Exception as error:  # ONNX Runtime has a class for each status code, and they share no base
            raise SessionError(one_line(error)) from error

    if model_bytes(model) <= _MAX_INLINE_BYTES:
        return session(ir.to_proto(ir.external_data.load_to_model(model)).SerializeToString())
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


def one_line(reason: Exception) -> str:
    """The message of an error of ONNX Runtime, in one line and not too long."""
    return " ".join(str(reason).split())[:600]
