"""Writes archives of arrays (.npz) whose bytes depend on the arrays alone."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from amct_onnx.files.whole_files import atomic_path
from amct_onnx.numerics.arrays import Array

Write = Callable[[str, Array], None]


@contextlib.contextmanager
def writing_archive(path: str | os.PathLike[str]) -> Iterator[Write]:
    """A function that adds an array, by name, to a new archive at `path`. Raises OutputError.

    The archive appears at `path` after the block.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:

        def write(name: str, array: Array) -> None:
            # A ZipInfo that is made here has no time of writing in it.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)

        yield write
