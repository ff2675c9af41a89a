"""AMCT's `data_handler` (amct_formats.md: Data handlers): readers of files without a header for scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from amct_onnx.data.input_texts import InputFolder, check_data_type
from amct_onnx.data.raw_folders import find_batches, read_array
from amct_onnx.errors import DataError
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.numerics.arrays import Array

__all__ = ["load_bin_data", "load_data"]


def load_data(
    inputs: Mapping[str, Sequence[int]], data_paths: Sequence[str], data_types: Sequence[str], num: int | None = None
) -> Iterator[dict[str, Array]]:
    """Yield `num` batches (None: as many as the first folder has), each a dictionary of arrays by input name.

    inputs: the shape of each input. data_paths, data_types: the folder and the type of each, in the same order. The
    files of a folder are taken by name; each is one batch of the full shape.

    Raises RuntimeError (too few files), TypeError (an unknown type), ValueError (a file of another size), each before
    the first batch.
    """
    for dtype in data_types:
        check_data_type(dtype)
    if not len(inputs) == len(data_paths) == len(data_types):
        got = f"got {len(data_paths)} and {len(data_types)}"
        raise DataError(f"{len(inputs)} inputs need as many folders and types, {got}")
    folders = [
        InputFolder(name=name, shape=tuple(shape), dtype=dtype, folder=os.fspath(folder))
        for (name, shape), folder, dtype in zip(inputs.items(), data_paths, data_types, strict=True)
    ]
    mistakes = Mistakes(None)
    batches = find_batches(folders, num, mistakes)
    mistakes.raise_any(DataError)
    for index in range(len(batches.files)):
        yield batches.read(index)


def load_bin_data(data_file_name: str, data_types: str, data_shapes: Sequence[int]) -> Array:
    """The array of type `data_types` and shape `data_shapes` in one file. Raises TypeError or ValueError."""
    return read_array(data_file_name, data_types, data_shapes)
