"""Opens files that hold many samples each: tar files and parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from amct_onnx.data.array_files import ArrayFiles, BlobArrays
from amct_onnx.data.arrays import SampleArray
from amct_onnx.data.batches import Note
from amct_onnx.data.blobs import Blobs
from amct_onnx.data.images import IMAGE_SUFFIXES, image_options, open_images
from amct_onnx.data.options import DataOptions
from amct_onnx.data.parquet_shards import PARQUET_SUFFIX, open_parquet
from amct_onnx.data.raw_folders import list_files
from amct_onnx.data.tar_shards import COMPRESSED, TAR_SUFFIX, open_tars
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.graph.outputs import Purpose
from amct_onnx.values.skipped_data import SkippedData

SHARDS = (TAR_SUFFIX, PARQUET_SUFFIX)
_OTHERS = (".npy", ".npz", ".bin")


def shard_kind(files: Sequence[Path]) -> str | None:
    """The suffix of tar files or of parquet files; None for other files, and for none.

    Raises DataError for compressed tar files, and for several kinds.
    """
    kinds = {file.suffix.lower() for file in files}
    compressed = next((file for file in files if file.name.lower().endswith(COMPRESSED)), None)
    if compressed is not None:
        raise DataError(
            f"{compressed}: is compressed, so that no part of it can be read alone; unpack it to a .tar file"
        )
    if not kinds & set(SHARDS):
        return None
    if len(kinds) > 1:
        raise DataError(f"{files[0]}: the data mix {', '.join(sorted(kinds))} files, leave one kind of them")
    return kinds.pop()


def shards_in(place: Path) -> list[Path]:
    """The tar or parquet files that a place is or holds. Raises DataError for several kinds of files."""
    if not place.is_dir():
        return [place] if shard_kind([place]) else []
    files = list_files(place)
    shards = [file for file in files if file.suffix.lower() in SHARDS]
    others = {file.suffix.lower() for file in files} & {*IMAGE_SUFFIXES, *_OTHERS} if shards else set()
    if others:
        kinds = ", ".join(sorted({file.suffix.lower() for file in shards} | others))
        raise DataError(f"{place}: the folder mixes {kinds} files, leave one kind in it")
    shard_kind(shards or files)
    return shards


def open_shards(
    files: Sequence[Path],
    inputs: Sequence[ModelInput],
    options: DataOptions,
    note: Note,
    purpose: Purpose | None,
    lost: Callable[[SkippedData], None] | None,
) -> dict[str, SampleArray | ArrayFiles]:
    """The samples of each of these inputs in tar or parquet files. `lost`: is told of files that cannot be read, where
    these are skipped. Raises DataError."""
    named = frozenset(options.names or ()) & {value.name for value in inputs}

    def images(value: ModelInput, encoded: Blobs) -> SampleArray:
        how = image_options(value, options.images, note, purpose)
        return open_images(encoded, how, value.dtype or "float32", str(files[0].parent))

    if shard_kind(files) == TAR_SUFFIX:
        keys = {value.name: options.key(value.name) for value in inputs}
        found = open_tars(files, keys, named, options.limit, lost)
        return {
            value.name: images(value, found[value.name][0])
            if found[value.name][1]
            else BlobArrays(blobs=found[value.name][0])
            for value in inputs
        }
    opened: dict[str, SampleArray | ArrayFiles] = {}
    for value in inputs:
        key = options.key(value.name) if len(inputs) > 1 or value.name in named else None
        opened[value.name] = images(value, open_parquet(files, value.name, key, options.limit, lost))
        lost = None if lost is None else _quiet  # the same files again
    return opened


def _quiet(_: SkippedData) -> None:
    """It was told before."""
