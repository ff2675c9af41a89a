"""Statistics as files: what is written is read again, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amct_onnx.errors import FileMissingError, StatisticsError
from amct_onnx.files.statistics_file import load_statistics, save_statistics
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

values = arrays(np.float32, st.integers(0, 50), elements=st.floats(-1e6, 1e6, width=32))
statistics = st.builds(
    lambda parts, samples: Statistics(
        tensors={f"t{i}": part for i, part in enumerate(parts)}, samples=samples, digest="d"
    ),
    st.lists(st.one_of(values.map(DyadicHistogram.of), st.just(DyadicHistogram.not_finite())), max_size=4),
    st.integers(0, 1 << 40),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "s.npz"


@given(given=statistics)
def test_reading_undoes_writing(tmp_path_factory: pytest.TempPathFactory, given: Statistics) -> None:
    path = tmp_path_factory.mktemp("s") / "s.npz"
    save_statistics(given, path)
    assert load_statistics(path) == given


def test_equal_statistics_give_equal_bytes(tmp_path: Path, file: Path) -> None:
    save_statistics(some(), file)
    save_statistics(some(), tmp_path / "again.npz")
    assert file.read_bytes() == (tmp_path / "again.npz").read_bytes()


def some(digest: str = "d", seed: int = 0) -> Statistics:
    x = np.random.default_rng(seed).normal(size=1000).astype(np.float32)
    return Statistics(tensors={"a": DyadicHistogram.of(x), "b": DyadicHistogram.of(x**2)}, samples=10, digest=digest)


@given(a=values, b=values, c=values)
def test_merging_is_exact_in_any_order(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    parts = [Statistics(tensors={"t": DyadicHistogram.of(x)}, samples=x.size, digest="d") for x in (a, b, c)]
    whole = Statistics(
        tensors={"t": DyadicHistogram.of(np.concatenate([a, b, c]))}, samples=a.size + b.size + c.size, digest="d"
    )
    first, second, third = parts
    assert first.merge(second).merge(third) == whole
    assert third.merge(second.merge(first)) == whole


def test_statistics_of_other_models_or_tensors_do_not_merge() -> None:
    with pytest.raises(StatisticsError, match="two different models"):
        some().merge(some("other"))
    with pytest.raises(StatisticsError, match="different tensors"):
        some().merge(Statistics(tensors={}, samples=1, digest="d"))


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(FileMissingError, match="does not exist"):
        load_statistics(file)


@pytest.mark.parametrize("data", [b"", b"nothing", b"PK\x03\x04 broken"])
def test_a_file_that_is_no_archive(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(StatisticsError, match="damaged"):
        load_statistics(file)


def test_an_archive_of_something_else(file: Path) -> None:
    np.savez(file, x=np.zeros(3))
    with pytest.raises(StatisticsError, match="no file of statistics"):
        load_statistics(file)
    np.save(file.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(StatisticsError, match="no archive of statistics"):
        load_statistics(file.with_suffix(".npy"))


def test_a_later_layout(file: Path) -> None:
    save_statistics(some(), file)
    changed = dict(np.load(file)) | {"schema": np.array(2)}
    np.savez(file, **changed)
    with pytest.raises(StatisticsError, match="layout 2"):
        load_statistics(file)


@pytest.mark.parametrize(
    "change",
    [
        {"grids": np.zeros((1, 3), np.int64)},
        {"grids": np.zeros((2, 3), np.int64)},
        {"extremes": np.array([[0.0, 1.0], [np.nan, 1.0]])},
        {"extremes": np.array([[0.0, 1.0], [0.0, 1e30]])},
        {"counts": np.zeros(7, np.int64)},
        {"counts": np.zeros((2, 2), np.int64)},
        {"samples": np.array(-1)},
        {"samples": np.array("many")},
        {"names": np.array(["a", "a"])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_arrays_that_contradict_each_other(file: Path, change: dict[str, np.ndarray]) -> None:
    save_statistics(some(), file)
    np.savez(file, **(dict(np.load(file)) | change))
    with pytest.raises(StatisticsError, match="damaged"):
        load_statistics(file)


def test_negative_counts(file: Path) -> None:
    save_statistics(some(), file)
    found = dict(np.load(file))
    found["counts"][3] = -1
    np.savez(file, **found)
    with pytest.raises(StatisticsError, match="damaged"):
        load_statistics(file)


def test_damaged_bytes_are_refused_or_change_nothing(file: Path) -> None:
    save_statistics(some(), file)
    whole, rng = bytearray(file.read_bytes()), random.Random(0)
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        with contextlib.suppress(StatisticsError):
            assert load_statistics(file) == some()
