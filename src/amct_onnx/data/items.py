"""Items of an iterable, whatever they are, as arrays by the name of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amct_onnx.data.batches import Feed, Note, Piece, fed_by_position
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput


def named_items(
    items: Iterable[tuple[str, object]], inputs: Sequence[ModelInput], names: Mapping[str, str], note: Note
) -> Iterator[Piece]:
    """Pairs of a place and an item (an array; arrays in the order of the inputs; a mapping) as pieces.

    Raises DataError for an item that is none of these, or that lacks an input.
    """
    for where, item in items:
        if isinstance(item, Mapping):
            yield Piece(where=where, arrays=_by_name(item, where, inputs, names, note))
        else:
            parts = item if isinstance(item, (tuple, list)) else (item,)
            yield Piece(where=where, arrays=_by_position(parts, where, inputs, note))


def _by_name(
    item: Mapping[Any, Any], where: str, inputs: Sequence[ModelInput], names: Mapping[str, str], note: Note
) -> Feed:
    keys = {value.name: names.get(value.name, value.name) for value in inputs}
    arrays = {}
    for value in inputs:
        key = keys[value.name]
        if key in item:
            arrays[value.name] = to_array(item[key], f"{where}: input {value.name!r}")
        elif not value.optional:
            raise DataError(f"{where}: {missing_text(value.name, key, item)}")
    note_unused([str(key) for key in item if key not in keys.values()], note)
    return arrays


def _by_position(parts: Sequence[Any], where: str, inputs: Sequence[ModelInput], note: Note) -> Feed:
    wanted = fed_by_position(inputs)
    if len(parts) < len(wanted):
        text = ", ".join(repr(value.name) for value in wanted)
        what = f"holds {len(parts)} array{'s' * (len(parts) != 1)}, the model takes {len(wanted)}: {text}"
        raise DataError(f"{where}: {what}; give a tuple in this order or a dict")
    if len(parts) > len(wanted):
        text = ", ".join(repr(value.name) for value in wanted)
        note(f"of the {len(parts)} parts of each item of the data the first {len(wanted)} are used, as {text}")
    pairs = zip(wanted, parts, strict=False)
    return {value.name: to_array(part, f"{where}: input {value.name!r}") for value, part in pairs}


def missing_text(name: str, key: str, available: Iterable[object]) -> str:
    """Why input `name` has no data, and what to do."""
    has = ", ".join(repr(str(other)) for other in available) or "nothing"
    as_key = "" if name == key else f" under the name {key!r}"
    return f"has no data for input {name!r}{as_key}, it holds {has}; say which with names={{{name!r}: ...}}"


def note_unused(keys: Sequence[str], note: Note) -> None:
    if keys:
        note(f"not used, since no input has that name: {', '.join(map(repr, keys))}")


def is_array(value: object) -> bool:
    """Whether `to_array` takes it: an array, a tensor of torch, an OrtValue, or what offers `__array__`."""
    return any(callable(getattr(value, name, None)) for name in ("__array__", "detach", "numpy"))


def to_array(value: Any, where: str) -> npt.NDArray[Any]:
    """`value`, which may be nested lists of numbers, as an array. No library is imported for it. Raises DataError."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (bool, int, float, list, tuple)):
        return _numbers(value, where)
    if not is_array(value):
        raise DataError(f"{where}: is of type {type(value).__name__}, give an array or a tensor")
    try:
        if callable(getattr(value, "detach", None)):
            value = value.detach().cpu()
        if callable(getattr(value, "numpy", None)):
            value = value.numpy()
        return np.asarray(value)
    except Exception as reason:  # e.g. a bfloat16 tensor, which numpy does not know
        text = " ".join(str(reason).split())[:200]
        raise DataError(f"{where}: a {type(value).__name__} that cannot become an array ({text})") from None


def _numbers(value: Any, where: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: is of type {type(value).__name__} and holds no array of numbers")
    return array
