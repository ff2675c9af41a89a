"""Reads and writes the second moments of a calibration, a numpy archive `<record>.moments.npz` beside its record.

Matrices are float32, means float64. The moments of a layer are read from the disk only when they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from amct_onnx.errors import RecordError
from amct_onnx.files.archive import writing_archive
from amct_onnx.numerics.statistics.moments import SecondMoments

_ADVICE = "run all batches of the calibration model again"


def moments_path(record: str | os.PathLike[str]) -> str:
    """The path of the moments that belong to a record."""
    return f"{os.fspath(record)}.moments.npz"


def write_moments(path: str, calibration: str, moments: Mapping[str, SecondMoments]) -> None:
    """Write the moments of each layer and the id of their calibration. Raises OutputError."""
    with writing_archive(path) as write:
        write("calibration", np.array(calibration))
        write("layers", np.array(list(moments)))
        for index, found in enumerate(moments.values()):
            write(f"columns_{index}", np.array(found.columns))
            write(f"mean_{index}", found.mean)
            write(f"gram_{index}", found.gram.astype(np.float32))


class MomentsFile:
    """An open file of moments. Several threads may read it."""

    def __init__(self, path: str, archive: Mapping[str, np.ndarray]) -> None:
        self._path, self._archive, self._lock = path, archive, threading.Lock()
        self.calibration = str(self._read("calibration"))
        self._places = {str(name): index for index, name in enumerate(self._read("layers"))}

    def read(self, layer: str, units: int, block: int) -> SecondMoments:
        """The moments of a layer whose columns are `units` blocks of `block` entries.

        Raises RecordError if they are missing or do not fit.
        """
        if layer not in self._places:
            raise RecordError(f"{self._path}: layer {layer} is missing; {_ADVICE}.")
        index = self._places[layer]
        columns, mean, gram = (self._read(f"{name}_{index}") for name in ("columns", "mean", "gram"))
        shapes, kinds = [a.shape for a in (columns, mean, gram)], [a.dtype.kind for a in (columns, mean, gram)]
        fits = shapes == [(), (units, block), (units, block, block)] and kinds == ["i", "f", "f"]
        if not (fits and columns > 0 and np.isfinite(mean).all() and np.isfinite(gram).all()):
            raise RecordError(f"{self._path}: the moments of layer {layer} do not fit the layer; {_ADVICE}.")
        return SecondMoments(columns=int(columns), mean=mean.astype(np.float64), gram=gram.astype(np.float64))

    def _read(self, name: str) -> np.ndarray:
        try:
            with self._lock:
                return self._archive[name]
        except Exception as error:
            raise _damaged(self._path, error) from None


def _damaged(path: str, error: Exception) -> RecordError:
    """Damaged bytes make zipfile and numpy raise almost anything."""
    return RecordError(f"{path}: the file is damaged ({error or type(error).__name__}); {_ADVICE}.")


@contextlib.contextmanager
def open_moments(path: str) -> Iterator[MomentsFile]:
    """The file of moments at `path`, while the block runs. Raises RecordError if it is missing or is no such file."""
    try:
        archive = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise RecordError(
            f"{path}: the file is missing, and layers with ada_quantize need it. Calibration writes it beside its "
            f"record file: keep the two together, or {_ADVICE}."
        ) from None
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise RecordError(f"{path}: is no archive of moments; {_ADVICE}.")
    with archive:
        yield MomentsFile(path, archive)
