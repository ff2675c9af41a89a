"""Samples get the shapes and types that a model wants, or an error that says what to do to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from amct_onnx.data.batches import BatchRule, Chunk, Note
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Array, Feed


def fit_chunks(
    chunks: Iterable[Chunk], inputs: Sequence[ModelInput], rule: BatchRule, note: Note, first: int = 0
) -> Iterator[Chunk]:
    """`chunks` in the shapes and types of the inputs. `note` is told what was changed. `first`: samples before these.

    Raises DataError for samples that do not fit, and for NaN.
    """
    for chunk in chunks:
        arrays = {}
        shaped = fit_shapes(chunk, inputs, rule, note)
        for value in inputs:
            if value.name not in shaped:
                continue
            where = _where(chunk, value)
            array = _fit_type(shaped[value.name], value, where, note)
            if array.dtype.kind == "f" and array.size and np.isnan(np.min(array)):
                sample = ""
                if value.name in rule.batched and array.ndim:
                    index = int(np.isnan(array).reshape(array.shape[0], -1).any(axis=1).argmax())
                    sample = f", sample {first + index} of all"
                raise DataError(f"{where}{sample}: holds NaN; repair it or leave it out")
            arrays[value.name] = array
        result = replace(chunk, arrays=arrays)
        first += rule.rows(result.arrays)
        yield result


def fit_shapes(chunk: Chunk, inputs: Sequence[ModelInput], rule: BatchRule, note: Note) -> Feed:
    """The arrays of a chunk in the shapes of the inputs. Raises DataError."""
    return {
        value.name: _fit_shape(chunk.arrays[value.name], value, rule, _where(chunk, value), note)
        for value in inputs
        if value.name in chunk.arrays
    }


def _where(chunk: Chunk, value: ModelInput) -> str:
    return f"{chunk.places.get(value.name, chunk.where)}: input {value.name!r}"


def _fit_shape(array: Array, value: ModelInput, rule: BatchRule, where: str, note: Note) -> Array:
    """`array` in the shape of the input. A missing dimension of the batch is added. Raises DataError."""
    if value.shape is None:
        return array
    batched = value.name in rule.batched | rule.loose
    wanted = (None, *value.shape[1:]) if batched else value.shape
    if shapes_agree(array.shape, wanted):
        return array
    if value.shape == () and array.shape == (1,):
        return array.reshape(())
    if value.shape and (batched or value.shape[0] == 1) and shapes_agree(array.shape, value.shape[1:]):
        note(f"input {value.name!r}: the data come without the dimension of the batch, it is added")
        return array[None]
    sizes = ", ".join("?" if dim is None else str(dim) for dim in value.shape)
    what = f"has the shape {list(array.shape)}, the model takes [{sizes}]"
    raise DataError(f"{where}: {what}; {_shape_hint(array.shape, wanted)}")


def shapes_agree(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether an array of `shape` fits an input of the shape `wanted`, in which None is a free dimension."""
    return len(shape) == len(wanted) and all(w in (None, s) for s, w in zip(shape, wanted, strict=True))


def _shape_hint(shape: tuple[int, ...], wanted: Sequence[int | None]) -> str:
    if len(shape) == len(wanted) == 4:
        for order, names in (((0, 3, 1, 2), "NHWC to NCHW"), ((0, 2, 3, 1), "NCHW to NHWC")):
            if shapes_agree([shape[axis] for axis in order], wanted):
                return f"transpose the data from {names}: array.transpose{order}"
    return "prepare the data as the model needs them"


def _fit_type(array: Array, value: ModelInput, where: str, note: Note) -> Array:
    """`array` in the type of the input. Raises DataError where a value would not survive."""
    have = array.dtype.newbyteorder("=")
    if value.dtype in ("", have.name) or (value.dtype == "object" and have.kind in "OUST"):
        return np.asarray(array, have)
    what = f"{where}: the data are {have.name}, the model takes {value.dtype}"
    try:
        want = np.dtype(value.dtype)
    except TypeError:
        raise DataError(f"{what}; give them in that type") from None
    if have.kind not in "biuf" or want.kind not in "biuf" or (have.kind == "f" and want.kind != "f"):
        raise DataError(f"{what}; convert them before, it depends on their meaning how")
    with np.errstate(over="ignore"):
        converted = array.astype(want)
    if want.kind == "f":
        if np.isinf(converted).any() and not np.isinf(array).any():
            raise DataError(f"{what}, and some are too large for it; scale the data")
    elif not np.array_equal(converted, array):
        raise DataError(f"{what}, and {array.min()} to {array.max()} do not fit in it")
    advice = ", their values as they are: scale them before if the model expects 0..1" if have.name == "uint8" else ""
    note(f"input {value.name!r}: the data are {have.name} and become {want.name}{advice if want.kind == 'f' else ''}")
    return converted
