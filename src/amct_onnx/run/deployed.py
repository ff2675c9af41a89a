"""A session that runs a deploy model in its integers, read from the file alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.errors import ModelError
from amct_onnx.files.onnx_file import load_model
from amct_onnx.graph.read.lift_deploy import has_ascend_operators, lift_deploy
from amct_onnx.run.session import open_session

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
    return open_deployed(model, f"the deploy model {path}", Path(path), sess_options, providers)


def open_deployed(
    model: ir.Model,
    name: str = "the deploy model",
    path: Path | None = None,
    sess_options: ort.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
) -> ort.InferenceSession:
    """`deployed_session` of a deploy model in memory, which is used up. Raises ModelError, OutputError."""
    lift_deploy(model)
    return open_session(
        model,
        sess_options,
        cannot=f"run the integers of {name}",
        providers=providers,
        disabled_optimizers=_INEXACT_OPTIMIZERS,
        own_options=False,
        own_model=True,
        path=path,
    )
