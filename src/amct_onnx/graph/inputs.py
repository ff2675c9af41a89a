"""What a model wants to be fed."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """One graph input. `dtype` is numpy's name of its type, "" if unknown; `shape` is None if the rank is unknown.

    A dimension is None where it is dynamic. `optional`: it has a default value in the model.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    optional: bool


def model_inputs(model: ir.Model) -> tuple[ModelInput, ...]:
    """The inputs of the main graph, in its order."""
    return tuple(_describe(value) for value in model.graph.inputs)


def _describe(value: ir.Value) -> ModelInput:
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
    dtype = "" if value.dtype is None else value.dtype.numpy().name
    return ModelInput(name=value.name or "", dtype=dtype, shape=shape, optional=value.is_initializer())
