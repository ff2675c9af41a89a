"""AMCT's `arguments_handler` (amct_formats.md: Command line): names only, the work is done in `data/input_texts.py`."""

from __future__ import annotations

import os

from amct_onnx.data.input_texts import parse_shapes, split_list

__all__ = ["process_data_shape", "process_multi_data_path"]


def process_data_shape(values: str) -> dict[str, list[int]]:
    """`"name1:1,3,8,8;name2:0:4"` as `{"name1": [1, 3, 8, 8], "name2:0": [4]}`. Raises ValueError."""
    return parse_shapes(values)


def process_multi_data_path(values: str) -> list[str]:
    """`"dir1/;dir2/"` as a list of absolute paths."""
    return [os.path.realpath(path) for path in split_list(values)]
