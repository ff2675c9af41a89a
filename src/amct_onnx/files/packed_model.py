"""A graph as a value that can be pickled and copied, and sent to another process: a graph of onnx_ir itself cannot.

Large weights stay apart from the message that holds the rest. So pickle writes them once, however many graphs share
them, and with protocol 5 as buffers of their own. What nobody has computed yet is computed when it is pickled. Weights
in files of external data travel as the places where they lie.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import onnx
import onnx_ir as ir

from amct_onnx.errors import FileMissingError
from amct_onnx.files.onnx_file import EXTERNAL_KEY
from amct_onnx.graph.access import name_of
from amct_onnx.graph.tensors import Computed, array_of, shape_of, unmapped

_APART = 1 << 12  # bytes of a weight
_PICKLED = (ir.Tensor, ir.TensorProtoTensor, Computed)  # what else there is stays in the message, as the bytes it is


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedModel:
    """A model of onnx_ir with the same nodes, names, order and weights, wherever it is unpacked.

    message: a serialized onnx.ModelProto without the large initializers, in the place of each of which stands the
    number of one of `weights`. files: size in bytes and time in nanoseconds of each file that some of these lie in.
    meta: what this package remembers of the graph.
    """

    message: bytes
    weights: tuple[ir.TensorProtocol, ...]
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, *, whole: bool = False) -> PackedModel:
        """From a model, which stays as it is; no weight is computed or copied.

        whole: external data are read and travel too, for those who cannot reach their files.
        """
        copy, weights, files = model.clone(), list[ir.TensorProtocol](), dict[str, tuple[int, int]]()
        for value, tensor in _weights(copy):
            taken: ir.TensorProtocol = tensor
            if isinstance(tensor, ir.ExternalTensor) and whole:
                taken = ir.Tensor(array_of(tensor), tensor.dtype, name=tensor.name)
            elif isinstance(tensor, ir.ExternalTensor):
                taken = unmapped(tensor)
                files[os.fspath(tensor.path)] = _stamp(tensor.path)
            elif not isinstance(tensor, _PICKLED) or tensor.nbytes < _APART:
                continue
            shape, name = ir.Shape(shape_of(tensor)), name_of(value)
            value.const_value = ir.ExternalTensor("apart", len(weights), 0, tensor.dtype, shape=shape, name=name)
            weights.append(taken)
        return cls(
            message=ir.to_proto(copy).SerializeToString(),
            weights=tuple(weights),
            files=files,
            meta={key: model.graph.meta[key] for key in (EXTERNAL_KEY,) if key in model.graph.meta},
        )

    def model(self) -> ir.Model:
        """A new model. Raises FileMissingError where a file of its weights is another one here, or none."""
        for file, stamp in self.files.items():
            if _stamp(file) != stamp:
                raise FileMissingError(
                    f"The external data file {file} has changed since the model was pickled or sent to a worker: it "
                    "must stay as it is."
                )
        model = ir.from_proto(onnx.ModelProto.FromString(self.message))
        for value, tensor in _weights(model):
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = self.weights[tensor.offset or 0]
        model.graph.meta.update(self.meta)
        return model

    def __deepcopy__(self, memo: object) -> PackedModel:
        """Itself: nobody changes it, nor the weights of a model."""
        return self


class HoldsGraphs:
    """What dataclasses that hold models of onnx_ir are derived from, so that they can be pickled and copied."""

    def __reduce__(self) -> tuple[Any, ...]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        packed = {
            name: PackedModel.of(value) if isinstance(value, ir.Model) else value for name, value in values.items()
        }
        return _built, (type(self), packed)


def _built(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return kind(**{name: value.model() if isinstance(value, PackedModel) else value for name, value in values.items()})


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def _stamp(file: str | os.PathLike[str]) -> tuple[int, int]:
    """Size and time of a file. Raises FileMissingError."""
    if not os.path.exists(file):
        raise FileMissingError(f"The external data file {file} of a model that was pickled is missing: put it there.")
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns
