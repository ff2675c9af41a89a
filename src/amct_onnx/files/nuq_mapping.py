"""Reads the mapping file of NUQ, the JSON that `atc --mode=1` prints of a compiled model (amct_formats.md: NUQ).

It lists the operators on the chip. The names of those, and of the original nodes that were fused into each (attribute
`_datadump_original_op_names`), are the names of layers that this module reads; everything else is ignored.

    {"graph": [{"op": [{"name": "Conv_0Relu_2", "type": "Conv2D", "attr": [
        {"key": "_datadump_original_op_names", "value": {"list": {"s": ["Conv_0", "Relu_2"]}}}]}]}]}
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amct_onnx.errors import ConfigError, FileMissingError
from amct_onnx.files.whole_files import Mistakes, read_json
from amct_onnx.values.layers import GraphFacts

_ORIGINAL_NAMES = "_datadump_original_op_names"
_ADVICE = "a mapping file is what atc --mode=1 makes of the .om file of the uniformly quantized model"
_NO_LAYERS = frozenset({"Const", "Data", "NetOutput"})  # nodes of a graph that compute nothing


def read_mapping(path: str | os.PathLike[str]) -> frozenset[str]:
    """The names of all operators of the file and of the nodes that they were made of.

    Raises FileMissingError, or ConfigError: with line and column if the file is no JSON, or else with the path of each
    mistake in the document.
    """
    document = read_json(path, what="mapping file", advice=_ADVICE)
    mistakes = Mistakes(path)
    names = frozenset(_names(document, mistakes))
    if not names and not mistakes:
        mistakes.add("graph", f"names no operator; {_ADVICE}")
    mistakes.raise_any(ConfigError)
    return names


def find_named_layers(
    path: str, folder: Path, facts: GraphFacts, where: str, mistakes: Mistakes
) -> frozenset[str] | None:
    """The names in the mapping file of a configuration in `folder`, or None after a mistake, which is noted at `where`.

    A relative path is looked for in the working folder, as AMCT does, and then in `folder`. It is a mistake if no
    convolution of the model is named.
    """
    beside = folder / path
    try:
        names = read_mapping(beside if path and not Path(path).exists() and beside.is_file() else path)
    except (ConfigError, FileMissingError) as error:
        mistakes.add(where, " ".join(str(error).split()))
        return None
    if not any(name in names for name, traits in facts.supported.items() if traits.op_type == "Conv"):
        mistakes.add(where, f"{path} names no Conv layer of the model; is it of another model?")
    return names


def _names(document: Any, mistakes: Mistakes) -> Iterator[str]:
    if not isinstance(document, dict):
        mistakes.add("", f"must be one JSON object, but is {type(document).__name__}; {_ADVICE}", is_type=True)
        return
    for graph, place in _objects(document, "graph", "", mistakes):
        for operator, where in _objects(graph, "op", place, mistakes):
            name, kind = operator.get("name"), operator.get("type")
            if not isinstance(name, str):
                mistakes.add(f"{where}.name", "must be the name of an operator", is_type=True)
            elif kind not in _NO_LAYERS:
                yield name
                yield from _originals(operator, where, mistakes)


def _objects(parent: dict[str, Any], key: str, where: str, mistakes: Mistakes) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects of the list `key` of `parent`, each with its path."""
    place = f"{where}.{key}" if where else key
    entries = parent.get(key)
    if not isinstance(entries, list):
        mistakes.add(place, "is missing" if entries is None else "must be a list", is_type=entries is not None)
        return
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            yield entry, f"{place}[{index}]"
        else:
            text = f"must be an object, but is {type(entry).__name__}"
            mistakes.add(f"{place}[{index}]", text, is_type=True)


def _originals(operator: dict[str, Any], where: str, mistakes: Mistakes) -> Iterator[str]:
    if "attr" not in operator:
        return
    for attribute, place in _objects(operator, "attr", where, mistakes):
        if attribute.get("key") != _ORIGINAL_NAMES:
            continue
        value = attribute.get("value")
        found = value.get("list") if isinstance(value, dict) else None
        names = found.get("s", []) if isinstance(found, dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            yield from names
        else:
            mistakes.add(f"{place}.value.list.s", "must be a list of names", is_type=True)
