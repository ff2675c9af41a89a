"""A session that runs a deploy model in its integers, read from the file alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import ModelError, OutputError
from amct_onnx.formats.onnx_file import load_model, model_bytes
from amct_onnx.graph.passes.lift_deploy import has_ascend_operators, lift_deploy

# A model in memory is there three times while a session opens; a larger one goes through a file, which is mapped.
_MAX_INLINE_BYTES = 1 << 27

# Optimizers of ONNX Runtime that merge the Mul of a quantization into a float operator in front of it (into the
# weights of a Conv, for instance). That rounds differently, and now and then the integer is another one.
_INEXACT_OPTIMIZERS = ("ConvMulFusion", "DivMulFusion", "MatMulScaleFusion", "MatMulIntegerToFloatFusion")


def deployed_session(
    path: str | os.PathLike[str],
    sess_options: ort.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
) -> ort.InferenceSession:
    """Open the deploy model at `path` (`*_deploy_model.onnx`) as an ordinary `onnxruntime.InferenceSession`.

    The session computes what the file says: int8 times int8, summed up in int32, with the int32 bias, then the
    dequantization of the uint64 parameter. Inputs and outputs have the names, types and shapes of the file.
    `sess_options` and `providers` go to ONNX Runtime; without providers it runs on the CPU.

    Raises FileMissingError if there is no such file, ModelFileError if it is not an ONNX model, and ModelError if it
    is no deploy model or has something that cannot be run exactly: the node and the reason are named. A large model
    goes through a temporary file as long as the session opens; OutputError if no disk has room for it.
    """
    model = load_model(path)
    if not has_ascend_operators(model):
        raise ModelError(
            f"{path} is no deploy model: it has no AscendQuant or AscendDequant in the default domain. "
            "Open it with onnxruntime.InferenceSession directly."
        )
    lift_deploy(model)
    return _open(model, path, sess_options, providers)


def _open(
    model: ir.Model,
    path: str | os.PathLike[str],
    sess_options: ort.SessionOptions | None,
    providers: Sequence[Any] | None,
) -> ort.InferenceSession:
    def session(source: str | bytes) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(
                source,
                sess_options=sess_options,
                providers=list(providers) if providers is not None else ["CPUExecutionProvider"],
                disabled_optimizers=list(_INEXACT_OPTIMIZERS),
            )
        except Exception as error:  # ONNX Runtime has a class for each status code, and they share no base
            raise ModelError(f"ONNX Runtime cannot run the integers of the deploy model {path}: {error}") from error

    if model_bytes(model) <= _MAX_INLINE_BYTES:
        return session(ir.to_proto(ir.external_data.load_to_model(model)).SerializeToString())
    # ONNX Runtime maps the data file; where an open file cannot be deleted the folder is left to the system.
    place = _place_with_room(model_bytes(model), Path(path))
    with tempfile.TemporaryDirectory(prefix="amct_onnx_", dir=place, ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "lifted.onnx"
        try:
            ir.save(model, file, external_data="lifted.data")
        except OSError as error:
            raise OutputError(f"Running {path} takes a temporary file {file}: {error.strerror or error}.") from error
        return session(str(file))


def _place_with_room(needed: int, path: Path) -> Path:
    """A folder for a temporary file of `needed` bytes: the system's, or that of the model if it has more room."""
    places = [Path(tempfile.gettempdir()), path.resolve().parent]
    free = {place: shutil.disk_usage(place).free for place in places if os.access(place, os.W_OK)}
    for place, room in free.items():
        if room > needed:
            return place
    raise OutputError(
        f"Running {path} takes a temporary file of {needed / 1e9:.2f} GB, and neither {places[0]} nor {places[1]} has "
        "the room: free some, or name another folder in the environment variable TMPDIR."
    )
