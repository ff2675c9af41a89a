"""The second moments of a calibration, beside its record: `<record>.moments.npz`, a numpy archive.

Matrices are float32, means float64. Whoever reads one layer's reads no other from the disk.
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
    """Where the moments of a record are."""
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
    """An open file of moments; may be read from several threads."""

    def __init__(self, path: str, archive: Mapping[str, np.ndarray]) -> None:
        self._path, self._archive, self._lock = path, archive, threading.Lock()
        self.calibration = str(self._read("calibration"))
        self._places = {str(name): index for index, name in enumerate(self._read("layers"))}

    def read(self, layer: str, units: int, block: int) -> SecondMoments:
        """The moments of a layer with `units` blocks of `block` entries. Raises RecordError."""
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
    """Raises RecordError when the file is missing or none of `write_moments`."""
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
