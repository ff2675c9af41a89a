"""Reads and writes ONNX files. External data are checked when they are read, and stay external when they are written.

A model with external weights is written as two files, the model and `<name>.data` beside it. If the model of one pair
met the data of another, it would silently compute wrong numbers. So both files of an old pair are moved away, the
model first, before the files of the new pair are moved into place. If the process dies in between, there is no model at
that path; the old pair is then in the folder `.amct_*` beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError

from amct_onnx.errors import FileMissingError, ModelError, ModelFileError, OutputError, one_line
from amct_onnx.files.detached_weights import detach_weights
from amct_onnx.files.well_formed import check_connections, from_proto, is_sorted, tidy
from amct_onnx.files.whole_files import FILE_MODE, make_folder
from amct_onnx.graph.access import all_nodes
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.tensors import array_of

MINIMUM_OPSET = 11
IN_MEMORY = "the model in memory"  # what messages call a model that comes from no file
# protobuf cannot hold 2 GiB; AMCT's own limit leaves room for the graph (amct_formats.md: save_model).
_EMBEDDED_LIMIT = 2_000_000_000
# External tensors up to this size are read at once.
_SMALL = 1 << 16
# The metadata of a graph that was loaded with external data: the real paths of the model and of its data files. The
# tensors do not tell, since passes may have replaced every external one.
EXTERNAL_KEY = "amct_onnx.external_data"
_log = logging.getLogger("amct_onnx.Utils")


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """The model in the file `path`. Large external weights stay on the disk until they are used.

    Raises FileMissingError (the file or its external data) or ModelFileError (not ONNX, truncated, external data
    outside the folder of the model).
    """
    source = Path(path)
    if "\0" in str(source) or not source.exists():
        raise FileMissingError(f"The model file {printable(source)} does not exist: check the path.")
    try:
        proto, weights = detach_weights(onnx.load(source, load_external_data=False))
    except (DecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{source} is not an ONNX model, or it is truncated: export or copy it again.") from error
    except OSError as error:
        raise ModelFileError(f"{source} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelFileError(f"{source} is not a valid ONNX model: {one_line(error)}.") from error
    model = from_proto(proto, str(source))
    for name, tensor in weights.items():
        model.graph.initializers[name].const_value = tensor
    if not model.ir_version or (not model.graph.num_nodes() and not model.graph.outputs):
        raise ModelFileError(f"{source} is not an ONNX model, or it is empty: export or copy it again.")
    ir.external_data.set_base_dir(model.graph, os.path.dirname(source))
    _take_external_data(model, source)
    tidy(model, str(source))
    return model


def take_model(model: ir.Model | onnx.ModelProto) -> ir.Model:
    """A copy of a model in memory: an onnx.ModelProto or an onnx_ir.Model, which stays as it is.

    External data of a ModelProto are looked for in the current folder. Raises what `load_model` raises, and ModelError
    for a model that is not well formed.
    """
    if isinstance(model, ir.Model):
        check_connections(model, IN_MEMORY)
        for tensor in (value.const_value for graph in model.graphs() for value in graph.initializers.values()):
            if isinstance(tensor, ir.ExternalTensor):
                _checked(tensor, None, {}, anywhere=True)
        taken = model.clone() if is_sorted(model) else _copied(model)
    else:
        taken = from_proto(model, IN_MEMORY)
        if not taken.graph.num_nodes() and not taken.graph.outputs:
            raise ModelFileError(f"{IN_MEMORY} is empty: export it or load it again.")
        _take_external_data(taken, None)
    tidy(taken, IN_MEMORY)
    return taken


def check_opset(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Raise ModelError when the default domain's opset is older than MINIMUM_OPSET or not declared."""
    opset = default_opset(model)
    if opset < MINIMUM_OPSET:
        found = f"opset {opset}" if opset else "no opset of the default domain"
        raise ModelError(
            f"{path} uses {found}, the oldest supported is {MINIMUM_OPSET}: "
            "export it again or convert it with onnx.version_converter."
        )


def save_model_file(model: ir.Model, path: str | os.PathLike[str], *, embedded_limit: int = _EMBEDDED_LIMIT) -> None:
    """Write `model` to `path` (mode 0640), complete or not at all.

    If the model had external data, or has `embedded_limit` bytes of weights, these go to one file `<name>.data` beside
    it, one tensor after another. Raises OutputError, also if that file holds the weights of the model's own source.
    """
    target = Path(path)
    is_external = model.graph.meta.get(EXTERNAL_KEY) or model_bytes(model) >= embedded_limit
    data = f"{target.name}.data" if is_external else None
    names = [name for name in (data, target.name) if name is not None]
    if data is not None:
        _refuse_to_overwrite_source(model, target, target.parent / data)
    try:
        make_folder(target.parent)
        if any((target.parent / name).is_dir() for name in names):
            raise IsADirectoryError(21, "Is a directory")
        staging = Path(tempfile.mkdtemp(prefix=".amct_", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        if data is not None:
            check_room(staging, model_bytes(model), target)
        ir.save(model, staging / target.name, format="protobuf", external_data=data)
        written = [name for name in names if _has_content(staging / name)]  # small tensors stay in the model
        for name in written:
            os.chmod(staging / name, FILE_MODE)
        _move_into_place(staging, target.parent, written)
    except OSError as error:
        raise _cannot_write(target, error) from error
    except (EncodeError, ValueError) as error:
        raise OutputError(f"Cannot write {target}: {one_line(error)}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    stale = target.parent / f"{target.name}.data"
    if stale.name not in written and stale.exists():
        _log.warning("%s holds its weights itself: %s is not used any more and can be deleted", target, stale)


def check_room(folder: Path, needed: int, target: Path) -> None:
    """Raise OutputError if the disk of `folder` has fewer free bytes than `needed`, which writing `target` takes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        text = f"it needs {needed / 1e9:.2f} GB, and {folder.resolve().parent} has {free / 1e9:.2f} GB left"
        raise OutputError(f"Cannot write {target}: {text}. Make room or choose another folder.")


def model_bytes(model: ir.Model) -> int:
    """The number of bytes of all initializers."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def file_bytes(model: ir.Model, path: str | os.PathLike[str]) -> int:
    """Bytes of the file `path` that `model` was loaded from, and of the files that hold its external data."""
    _, files = model.graph.meta.get(EXTERNAL_KEY) or ("", ())
    return sum(os.path.getsize(file) for file in (path, *files))


def model_files(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The file of a model and those of its external data. Raises what `load_model` raises."""
    _, files = load_model(path).graph.meta.get(EXTERNAL_KEY) or ("", ())
    return (os.fspath(path), *sorted(files))


def is_source(model: ir.Model, path: str | os.PathLike[str]) -> bool:
    """Whether `model` was loaded from `path` and may still read its external data."""
    source, _ = model.graph.meta.get(EXTERNAL_KEY) or ("", ())
    return bool(os.path.realpath(path) == source)


def _refuse_to_overwrite_source(model: ir.Model, target: Path, data: Path) -> None:
    """Raise OutputError if `data` holds the weights of the model's source, and the source itself is not overwritten."""
    source, files = model.graph.meta.get(EXTERNAL_KEY) or ("", ())
    if os.path.realpath(data) in files and not is_source(model, target):
        raise OutputError(
            f"Cannot write {target}: its weights would go to {data}, which holds those of {source}. "
            "Choose another name or folder."
        )


def _move_into_place(staging: Path, folder: Path, names: Sequence[str]) -> None:
    """Move `names`, data before model, from `staging` to `folder` as the head of the module says."""
    old: list[str] = []
    new: list[str] = []
    try:
        if len(names) > 1:
            for name in reversed(names):
                if (folder / name).exists():
                    os.replace(folder / name, staging / f"old_{name}")
                    old.append(name)
        for name in names:
            os.replace(staging / name, folder / name)
            new.append(name)
    except BaseException:
        for name in reversed(new):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)
        for name in reversed(old):
            with contextlib.suppress(OSError):
                os.replace(staging / f"old_{name}", folder / name)
        raise


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _cannot_write(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"Cannot write {target}: {reason}. Choose a folder that is writable and has room.")


def _copied(model: ir.Model) -> ir.Model:
    """A copy of a model whose nodes are in no order, for which onnx_ir has none; weights are shared."""
    copy = ir.from_proto(ir.to_proto(model))
    for graph, source in zip(copy.graphs(), model.graphs(), strict=True):
        for name, value in source.initializers.items():
            graph.initializers[name].const_value = value.const_value
    return copy


def _take_external_data(model: ir.Model, source: Path | None) -> None:
    """Check the external data of a model, and read its small tensors: each tensor left on disk takes a file handle.

    source: the file of the model, None for one in memory, whose data lie in the current folder.
    """
    files: dict[str, int] = {}  # real path -> size
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                tensor = _checked(value.const_value, source, files)
                value.const_value = tensor if tensor.nbytes > _SMALL else _in_memory(tensor)
    # The data of an attribute stays in the node: when the model is saved only initializers become external again.
    for node in all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                tensor = _checked(attribute.value, source, files)
                node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor))
    if files and source is None:  # they may be those of another model
        _log.warning("The model in memory has its weights in files: they are read from %s", ", ".join(sorted(files)))
    if files:
        model.graph.meta[EXTERNAL_KEY] = ("" if source is None else os.path.realpath(source), frozenset(files))


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[np.ndarray]:
    return ir.Tensor(array_of(tensor).copy(), dtype=tensor.dtype, name=tensor.name)


def _checked(
    tensor: ir.ExternalTensor, source: Path | None, files: dict[str, int], *, anywhere: bool = False
) -> ir.ExternalTensor:
    """`tensor` with the real path of its file, after a check that the file may be read and has the tensor's bytes.

    `files` has the size of each file that was checked before, by real path; a new one is added. anywhere: the file may
    lie outside the folder of the model.
    """
    path, called = os.fspath(tensor.path), source or IN_MEMORY
    if "\0" in path:
        raise ModelFileError(
            f"Tensor {tensor.name} of {called}: the name of its external data file, {printable(path)}, cannot be that "
            "of a file: export the model again."
        )
    file = Path(path)
    real = os.path.realpath(file)
    if real not in files:
        files[real] = _check_external_file(tensor, Path(real), source, anywhere=anywhere)
    start, length = tensor.offset or 0, tensor.length
    if start < 0 or (length is not None and length < tensor.nbytes):
        raise ModelFileError(
            f"Tensor {tensor.name} of {called}: its place in the external data file {file} is malformed "
            f"(offset {start}, length {length}, and it takes {tensor.nbytes} bytes): export the model again."
        )
    end = start + max(length or 0, tensor.nbytes)
    if files[real] < end:
        raise ModelFileError(
            f"External data file {file} of {called} is truncated: tensor {tensor.name} ends at byte {end}, the file at "
            f"{files[real]}. Copy it again."
        )
    # With base_dir, onnx_ir would refuse all links, also hard ones. Links have been checked above.
    return ir.ExternalTensor(
        real, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=""
    )


def _check_external_file(tensor: ir.ExternalTensor, real: Path, source: Path | None, *, anywhere: bool) -> int:
    """The size of an external data file. It must lie in the model's folder, or a model could read any file.

    If the model is a link, the folder of the file behind the link counts as well: in a cache, model and data are links.
    """
    file, called = Path(tensor.path), source or IN_MEMORY
    folders = (Path(),) if source is None else (source.parent, source.resolve().parent)
    if not anywhere and not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
        raise ModelFileError(
            f"External data file {file} of tensor {tensor.name} in {called} lies outside the folder of the model, "
            "where ONNX allows none (also as a link): copy it beside the model."
        )
    if not real.exists():
        advice = "copy it there" if source else "give the path of the model, or load it with its external data"
        raise FileMissingError(
            f"Tensor {tensor.name} of {called} is in the external data file {file}, which is missing: {advice}."
        )
    if not real.is_file():
        raise ModelFileError(
            f"External data file {file} of tensor {tensor.name} in {called} is no regular file: put a copy there."
        )
    return real.stat().st_size


def printable(path: object) -> str:
    """A path as messages show it: one that no file can have is quoted."""
    text = str(path)
    return text if text.isprintable() else repr(text)
