"""ONNX files in and out. External data is checked on the way in and kept on the way out."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from amct_onnx.errors import FileMissingError, ModelError, ModelFileError, OutputError
from amct_onnx.formats.files import FILE_MODE, make_folder
from amct_onnx.graph.layers import default_opset

MINIMUM_OPSET = 11
# protobuf cannot hold 2 GiB; AMCT's own limit leaves room for the graph (spec section 1.6).
_EMBEDDED_LIMIT = 2_000_000_000
# Set on the graph of a model that was loaded with external data: passes may replace every one of its external tensors.
_EXTERNAL_KEY = "amct_onnx.external_data"


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """The model in the file `path`; large weights stay on disk until they are read.

    Raises FileMissingError (the file or its external data) or ModelFileError (not ONNX, truncated).
    """
    source = Path(path)
    if not source.exists():
        raise FileMissingError(f"The model file {source} does not exist: check the path.")
    try:
        model = ir.load(source)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{source} is not an ONNX model, or it is truncated: export or copy it again.") from error
    except OSError as error:
        raise ModelFileError(f"{source} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelFileError(f"{source} is not a valid ONNX model: {_one_line(error)}.") from error
    if not model.ir_version or (not model.graph.num_nodes() and not model.graph.outputs):
        raise ModelFileError(f"{source} is not an ONNX model, or it is empty: export or copy it again.")
    _check_external_data(model, source)
    return model


def check_opset(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Raise ModelError when the default domain's opset is older than MINIMUM_OPSET or not declared."""
    opset = default_opset(model)
    if opset < MINIMUM_OPSET:
        found = f"opset {opset}" if opset else "no opset of the default domain"
        raise ModelError(
            f"{path} uses {found}, the oldest supported is {MINIMUM_OPSET}: "
            "export it again or convert it with onnx.version_converter."
        )


def save_model_file(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write `model` to `path` (mode 0640), complete or not at all.

    Weights go to one file `<name>.data` beside it when the model had external data or would exceed 2 GB. Raises
    OutputError.
    """
    target = Path(path)
    try:
        make_folder(target.parent)
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        staging = Path(tempfile.mkdtemp(prefix=".amct_", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        data = f"{target.name}.data" if _wants_external_data(model) else None
        ir.save(model, staging / target.name, format="protobuf", external_data=data)
        for name in filter(None, (data, target.name)):
            if (staging / name).exists():
                os.chmod(staging / name, FILE_MODE)
                os.replace(staging / name, target.parent / name)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _cannot_write(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"Cannot write {target}: {reason}. Choose a folder that is writable and has room.")


def _initializers(model: ir.Model) -> list[ir.TensorProtocol]:
    graphs = model.graphs()
    return [v.const_value for graph in graphs for v in graph.initializers.values() if v.const_value is not None]


def _wants_external_data(model: ir.Model) -> bool:
    embedded = sum(tensor.nbytes for tensor in _initializers(model))
    return embedded >= _EMBEDDED_LIMIT or bool(model.graph.meta.get(_EXTERNAL_KEY))


def _check_external_data(model: ir.Model, source: Path) -> None:
    for tensor in _initializers(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        model.graph.meta[_EXTERNAL_KEY] = True
        file = Path(tensor.path)
        if not file.exists():
            raise FileMissingError(f"{source} needs its external data file {file}, which is missing: copy it there.")
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if file.stat().st_size < end:
            raise ModelFileError(f"External data file {file} of {source} is truncated at {tensor.name}: copy it again.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
