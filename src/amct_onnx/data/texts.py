"""Reads lines of text as the tokens that a network takes, by a tokenizer.json; `tokenizers`, an extra, reads that."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amct_onnx.errors import DataError, one_line
from amct_onnx.files.whole_files import read_text
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed
from amct_onnx.words import either, given_for, named

TEXT_SUFFIX = ".txt"
_LONGEST = 512  # tokens of a line, where neither the model nor the tokenizer says it
# What an encoding gives to inputs, by a part of their names; every other input gets the ids.
_FIELDS: Mapping[str, str] = {"mask": "attention_mask", "type": "type_ids", "segment": "type_ids"}


def open_texts(path: Path, tokenizer: str | os.PathLike[str], inputs: Sequence[ModelInput]) -> list[tuple[str, Feed]]:
    """Each line of a UTF-8 file that is not empty as a feed of one row, with its place for errors.

    A model whose inputs have a fixed length gets lines that are cut or padded to it; else each has its own length.

    Raises DataError for a file that cannot be read, a tokenizer that is none, and inputs that take no tokens.
    """
    wanted = [value for value in inputs if not value.optional]
    lines = read_text(path, error=DataError, what="text file").split("\n")
    encoder = _tokenizer(os.fspath(tokenizer), _length(wanted))
    return list(_feeds(path, lines, encoder, wanted))


def _feeds(path: Path, lines: Sequence[str], encoder: Any, wanted: Sequence[ModelInput]) -> Iterator[tuple[str, Feed]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = encoder.encode(line)
        arrays = {}
        for value in wanted:
            numbers = getattr(found, _field(value.name))
            arrays[value.name] = np.asarray([numbers], np.dtype(value.dtype))
        yield f"{path}:{number}", arrays


def _field(name: str) -> str:
    return next((field for part, field in _FIELDS.items() if part in name.lower()), "ids")


def _length(wanted: Sequence[ModelInput]) -> int | None:
    """The length that the model fixes, None if it leaves it open. Raises DataError for inputs that take no tokens."""
    for value in wanted:
        if not value.dtype.startswith(("int", "uint")) or (value.shape is not None and len(value.shape) != 2):
            shape = "?" if value.shape is None else list(value.shape)
            raise DataError(
                f"input {value.name!r}: takes {value.dtype or 'numbers'} of the shape {shape}, and a text gives tokens "
                f"[N, length]; {either('give the data as arrays', 'give a .npz file')}"
            )
    if [_field(value.name) for value in wanted].count("ids") != 1:
        text = ", ".join(repr(value.name) for value in wanted)
        how = either("give arrays by input", f"give files by {given_for('data', 'NAME')}")
        raise DataError(f"which of the inputs {text} takes the tokens is not clear from their names; {how}")
    return next((value.shape[1] for value in wanted if value.shape is not None and value.shape[1] is not None), None)


def _tokenizer(path: str, length: int | None) -> Any:
    try:
        import tokenizers
    except ImportError:
        text = f'{named("tokenizer")} needs the package tokenizers: pip install "amct-onnx[text]"'
        raise DataError(text) from None
    if not os.path.isfile(path):
        raise DataError(f"{path}: the tokenizer does not exist, check the path of {named('tokenizer')}")
    try:
        found = tokenizers.Tokenizer.from_file(path)
    except Exception as reason:  # the library raises nothing finer
        raise DataError(f"{path}: is no tokenizer.json ({one_line(reason)})") from None
    if length is not None:
        found.enable_truncation(length)
        found.enable_padding(length=length)
    else:
        found.no_padding()
        if found.truncation is None:
            found.enable_truncation(_LONGEST)
    return found
