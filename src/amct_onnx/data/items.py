"""The items of an iterable of data (arrays, tuples, dicts) become arrays by the name of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from amct_onnx.data.arrays import TEXTS, to_array
from amct_onnx.data.batches import Chunk, Note, fed_by_position
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.words import either, given_for


def named_items(
    items: Iterable[tuple[str, object]], inputs: Sequence[ModelInput], options: DataOptions, note: Note
) -> Iterator[Chunk]:
    """The samples in `items`, which are pairs of a place for errors and an item.

    An item is an array, a tuple or list of arrays in the order of the inputs, or a mapping. Raises DataError for an
    item that is none of these, or that lacks an input.
    """
    texts = {value.name for value in inputs if value.dtype == TEXTS}
    for where, item in items:
        if isinstance(item, Mapping):
            keys = select_keys(item, inputs, options, where, note)
            parts = {name: item[key] for name, key in keys.items()}
        else:
            parts = _by_position(item if isinstance(item, (tuple, list)) else (item,), where, inputs, note)
        arrays = {name: to_array(part, f"{where}: input {name!r}", texts=name in texts) for name, part in parts.items()}
        yield Chunk(where=where, arrays=arrays)


def _by_position(parts: Sequence[Any], where: str, inputs: Sequence[ModelInput], note: Note) -> dict[str, Any]:
    wanted = fed_by_position(inputs)
    text = ", ".join(repr(value.name) for value in wanted)
    if len(parts) < len(wanted):
        what = f"holds {len(parts)} array{'s' * (len(parts) != 1)}, the model takes {len(wanted)}: {text}"
        raise DataError(
            f"{where}: {what}; {either('give a tuple in this order or a dict', 'give a .npz file for each')}"
        )
    if len(parts) > len(wanted):
        note(f"of the {len(parts)} parts of each item of the data the first {len(wanted)} are used, as {text}")
    return {value.name: part for value, part in zip(wanted, parts, strict=False)}


def select_keys(
    data: Mapping[Any, Any], inputs: Sequence[ModelInput], options: DataOptions, where: str, note: Note
) -> dict[str, str]:
    """For each input that has data, its key in `data`. Tells `note` of keys that no input uses.

    Raises DataError if an input has no data and no default.
    """
    keys = {value.name: options.key(value.name) for value in inputs}
    for value in inputs:
        if keys[value.name] not in data and not value.optional:
            raise DataError(f"{where}: {missing_text(value.name, keys[value.name], data)}")
    note_unused([str(key) for key in data if key not in keys.values()], note)
    return {name: key for name, key in keys.items() if key in data}


def missing_text(name: str, key: str, available: Iterable[object]) -> str:
    """Why input `name`, which has the name `key` in the data, has no data, and what to do."""
    has = ", ".join(repr(str(other)) for other in available) or "nothing"
    as_key = "" if name == key else f" under the name {key!r}"
    return f"has no data for input {name!r}{as_key}, it holds {has}; say which with {given_for('names', name)}"


def note_unused(keys: Sequence[str], note: Note) -> None:
    """Tell `note` that the data have `keys`, which no input uses."""
    if keys:
        note(f"not used, since no input has that name: {', '.join(map(repr, keys))}")
