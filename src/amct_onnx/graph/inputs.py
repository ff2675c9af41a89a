"""The inputs of a model: the name, type and shape of the array that a feed has to have for each."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from amct_onnx.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """One graph input. `dtype` is numpy's name of its type, "" if unknown; `shape` is None if the rank is unknown.

    A dimension is None where it is dynamic. `optional`: it has a default value in the model. `batch_name`: the name of
    the first dimension where that is dynamic and has one, else "".
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    optional: bool
    batch_name: str = field(default="", compare=False)


def model_inputs(model: ir.Model) -> tuple[ModelInput, ...]:
    """The inputs of the main graph, in its order. Raises ModelError for one that has no name or is no tensor."""
    return tuple(_describe(value) for value in model.graph.inputs)


def _describe(value: ir.Value) -> ModelInput:
    if not value.name:
        raise ModelError("An input of the model has no name, so that no data can be given for it: name it.")
    if isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        kind = "a sequence" if isinstance(value.type, ir.SequenceType) else "optional"
        text = "calibration gives tensors only: export the model with tensors as inputs"
        raise ModelError(f"Input {value.name!r} of the model is {kind}, and {text}.")
    # Some exporters write an open dimension as -1.
    dims = None if value.shape is None else [d if isinstance(d, int) and d >= 0 else None for d in value.shape]
    dtype = "" if value.dtype is None else value.dtype.numpy().name
    first = value.shape[0] if value.shape else None
    batch_name = (first.value or "") if isinstance(first, ir.SymbolicDim) else ""
    return ModelInput(
        name=value.name,
        dtype=dtype,
        shape=None if dims is None else tuple(dims),
        optional=value.is_initializer(),
        batch_name=batch_name,
    )
