"""Reads and writes the statistics of a calibration, a numpy archive.

Its arrays, for N tensors with a histogram each:
- schema: the version of this layout; digest: that of the model; samples: their number; names: those of the tensors;
- grids, int64[N, 3]: exponent, lowest bin and number of bins of each histogram;
- extremes, float64[N, 2]: the least and the largest value of each tensor;
- counts, int64: the counts of all histograms, one after another;
- only if channels of the model were divided by factors: factor_names, the tensors; factor_sizes, how many factors each
  has; factors, float32: those of all tensors, one after another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from amct_onnx.errors import FileMissingError, StatisticsError
from amct_onnx.files.archive import writing_archive
from amct_onnx.numerics.arrays import Array, Floats, Int64s
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

SCHEMA = 1


def save_statistics(statistics: Statistics, path: str | os.PathLike[str]) -> None:
    """Write `statistics` to `path`, whole or not at all. Equal statistics give equal bytes. Raises OutputError."""
    with writing_archive(path) as write:
        write("schema", np.array(SCHEMA))
        write("digest", np.array(statistics.digest))
        write("samples", np.array(statistics.samples))
        for name, array in histogram_arrays(statistics.tensors).items():
            write(name, array)
        if statistics.factors:
            factors = list(statistics.factors.values())
            write("factor_names", np.array(list(statistics.factors), np.str_))
            write("factor_sizes", np.array([f.size for f in factors], np.int64))
            write("factors", np.concatenate(factors))


def histogram_arrays(tensors: Mapping[str, DyadicHistogram]) -> dict[str, Array]:
    """The arrays of histograms, from names to counts, as above."""
    histograms = list(tensors.values())
    return {
        "names": np.array(list(tensors), np.str_),
        "grids": np.array([(h.exponent, h.low, h.counts.size) for h in histograms], np.int64).reshape(-1, 3),
        "extremes": np.array([(h.minimum, h.maximum) for h in histograms], np.float64).reshape(-1, 2),
        "counts": np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms)]),
    }


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """The statistics in a file that `save_statistics` wrote.

    Raises FileMissingError, or StatisticsError for another file, a damaged one, or one of a later version.
    """
    name = os.fspath(path)
    try:
        archive = np.load(name, allow_pickle=False)
    except FileNotFoundError:
        raise FileMissingError(f"The statistics file {name} does not exist: check the path.") from None
    except Exception as error:  # damaged bytes make zipfile and numpy raise almost anything
        raise _damaged(name, error) from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise StatisticsError(f"{name} is no archive of statistics: give a file that save_statistics wrote.")
    with archive:
        try:
            arrays = {key: archive[key] for key in archive.files}
        except Exception as error:  # as above
            raise _damaged(name, error) from None
    if "schema" not in arrays:
        raise StatisticsError(f"{name} is no file of statistics: give a file that save_statistics wrote.")
    if arrays["schema"].shape != () or arrays["schema"] != SCHEMA:
        raise StatisticsError(
            f"{name} has the layout {arrays['schema']}, and this version of amct_onnx reads {SCHEMA}: calibrate again."
        )
    try:
        return _read(arrays)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(name, error) from None


def _read(arrays: dict[str, Array]) -> Statistics:
    """Raises ValueError or KeyError for arrays that `save_statistics` does not write."""
    samples = int(arrays["samples"])
    if samples < 0:
        raise ValueError("its numbers contradict each other")
    if arrays["counts"].dtype != np.int64:
        raise ValueError("its arrays have other types")
    factors = _read_factors(arrays) if "factor_names" in arrays else {}
    return Statistics(tensors=read_histograms(arrays), samples=samples, digest=str(arrays["digest"]), factors=factors)


def read_histograms(arrays: Mapping[str, Array]) -> dict[str, DyadicHistogram]:
    """The histograms by tensor. Raises ValueError or KeyError for arrays that `histogram_arrays` does not give."""
    names, grids, extremes, counts = (arrays[name] for name in ("names", "grids", "extremes", "counts"))
    if grids.shape != (names.size, 3) or extremes.shape != (names.size, 2) or counts.ndim != 1:
        raise ValueError("its arrays do not fit each other")
    if [a.dtype for a in (grids, extremes)] != [np.int64, np.float64] or counts.dtype.kind not in "iu":
        raise ValueError("its arrays have other types")
    sizes = grids[:, 2].astype(np.int64)
    if (sizes < 0).any() or sizes.sum() != counts.size or len(set(names.tolist())) != names.size:
        raise ValueError("its numbers contradict each other")
    tensors = {}
    parts = np.split(counts.astype(np.int64), np.cumsum(sizes))[:-1]
    for tensor, grid, (low, high), part in zip(names, grids.tolist(), extremes.tolist(), parts, strict=True):
        tensors[str(tensor)] = _histogram(grid, low, high, part)
    return tensors


def _read_factors(arrays: dict[str, Array]) -> dict[str, Floats]:
    names, sizes, factors = (arrays[name] for name in ("factor_names", "factor_sizes", "factors"))
    if factors.dtype != np.float32 or sizes.dtype != np.int64 or names.shape != sizes.shape or sizes.ndim != 1:
        raise ValueError("its factors have other types")
    values, counts = factors.astype(np.float32), sizes.astype(np.int64)
    if values.ndim != 1 or (counts < 1).any() or counts.sum() != values.size:
        raise ValueError("its factors do not fit each other")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("its factors are not positive numbers")
    parts = np.split(values, np.cumsum(counts))[:-1]
    return {str(name): part for name, part in zip(names, parts, strict=True)}


def _histogram(grid: list[int], low: float, high: float, counts: Int64s) -> DyadicHistogram:
    exponent, first, _ = grid
    histogram = DyadicHistogram(exponent=exponent, low=first, counts=counts, minimum=low, maximum=high)
    if not histogram.is_consistent():
        raise ValueError("a histogram does not fit its extremes")
    return histogram


def _damaged(name: str, error: Exception) -> StatisticsError:
    return StatisticsError(f"{name}: the file is damaged ({error or type(error).__name__}), calibrate again.")
