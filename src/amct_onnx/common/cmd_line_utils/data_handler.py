"""AMCT's `data_handler` (spec section 1.11): names only, the work is done in `data/raw_folders.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from amct_onnx.data.raw_folders import iterate_batches, read_array
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
    return iterate_batches(inputs, data_paths, data_types, num)


def load_bin_data(data_file_name: str, data_types: str, data_shapes: Sequence[int]) -> Array:
    """The array of type `data_types` and shape `data_shapes` in one file. Raises TypeError or ValueError."""
    return read_array(data_file_name, data_types, data_shapes)
