"""Calibration data in every form: the same samples, in the types, shapes and batches of the model."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import shared_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image

from amct_onnx.data.data_source import DataSource
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import AmctError, ArgumentError, ArgumentTypeError, DataError
from amct_onnx.graph.inputs import ModelInput, model_inputs

Feed = dict[str, np.ndarray]


def free(*sample: int | None, name: str = "x", dtype: str = "float32", optional: bool = False) -> ModelInput:
    """An input whose batch is symbolic."""
    return fixed(None, *sample, name=name, dtype=dtype, optional=optional)


def fixed(*shape: int | None, name: str = "x", dtype: str = "float32", optional: bool = False) -> ModelInput:
    return ModelInput(name=name, dtype=dtype, shape=shape, optional=optional)


TOKENS = (free(None, name="ids", dtype="int64"), free(None, name="mask", dtype="int64"))


def opened(data: object, inputs: Sequence[ModelInput], **options: Any) -> DataSource:
    return open_data(data, inputs, DataOptions(**options))


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def sizes(feeds: Sequence[Feed], name: str = "x") -> list[int]:
    return [len(feed[name]) for feed in feeds]


def joined(feeds: Sequence[Feed], name: str = "x") -> np.ndarray:
    return np.concatenate([feed[name] for feed in feeds])


class Tensor:
    """A tensor as torch has it: numpy cannot take one that is part of a graph or on another device."""

    def __init__(self, array: np.ndarray, steps: tuple[str, ...] = ()) -> None:
        self._array, self._steps = array, steps

    def detach(self) -> Tensor:
        return Tensor(self._array, (*self._steps, "detach"))

    def cpu(self) -> Tensor:
        return Tensor(self._array, (*self._steps, "cpu"))

    def numpy(self) -> np.ndarray:
        assert self._steps == ("detach", "cpu")
        return self._array


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """What users of ONNX Runtime's own quantization have."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


class Loader:
    """A DataLoader: it can be iterated over and has a length, and no more is used."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_folder(folder: Path, arrays: Sequence[np.ndarray], kind: str = "npy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, array in enumerate(arrays):
        path = folder / f"{index:03}.{kind}"
        if kind == "bin":
            array.tofile(path)
        elif kind == "npz without names":
            np.savez(path.with_suffix(".npz"), array)
        elif kind == "npz":
            write_npz(path, x=array)
        else:
            np.save(path, array)
    return folder


def parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


# Each form of the same 10 samples [10, 3, 4].
FORMS: dict[str, Callable[[np.ndarray, Path], object]] = {
    "array": lambda x, _: x,
    "fortran array": lambda x, _: np.asfortranarray(x),
    "tensor": lambda x, _: Tensor(x),
    "npy": lambda x, p: write_folder(p, [x]) / "000.npy",
    "npy as text": lambda x, p: str(write_folder(p, [x]) / "000.npy"),
    "fortran npy": lambda x, p: write_folder(p, [np.asfortranarray(x)]) / "000.npy",
    "npz": lambda x, p: write_npz(p / "a.npz", x=x),
    "npz of any name": lambda x, p: write_npz(p / "a.npz", other=x),
    "npz with labels": lambda x, p: write_npz(p / "a.npz", label=np.arange(10), x=x),
    "fortran npz": lambda x, p: write_npz(p / "a.npz", x=np.asfortranarray(x)),
    "compressed npz": lambda x, p: (np.savez_compressed(p / "c.npz", x=x), p / "c.npz")[1],
    "dict": lambda x, _: {"x": x},
    "dict of lists": lambda x, _: {"x": x.tolist()},
    "dict of a path": lambda x, p: {"x": write_folder(p, [x]) / "000.npy"},
    "folder of npy batches": lambda x, p: write_folder(p, parts(x, 4)),
    "folder of npy samples": lambda x, p: write_folder(p, list(x)),
    "list of files": lambda x, p: sorted(write_folder(p, parts(x, 4)).iterdir()),
    "folder of npz without names": lambda x, p: write_folder(p, parts(x, 4), "npz without names"),
    "folder of npz": lambda x, p: write_folder(p, parts(x, 4), "npz"),
    "folder of bin batches": lambda x, p: write_folder(p, parts(x, 4), "bin"),
    "folder by input": lambda x, p: write_folder(p / "x", parts(x, 4)).parent,
    "list of batches": lambda x, _: parts(x, 3),
    "list of samples": lambda x, _: list(x),
    "generator": lambda x, _: (part for part in parts(x, 3)),
    "tuples": lambda x, _: [(part,) for part in parts(x, 3)],
    "dicts of lists": lambda x, _: [{"x": part.tolist()} for part in parts(x, 3)],
    "dicts": lambda x, _: [{"x": part} for part in parts(x, 3)],
    "reader": lambda x, _: Reader([{"x": part} for part in parts(x, 3)]),
    "loader of pairs": lambda x, _: Loader([[Tensor(part), Tensor(np.zeros(len(part)))] for part in parts(x, 3)]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("batch", "wanted", "limit"),
    [
        (None, None, None),
        (None, None, 7),
        (None, 1, 30),
        (None, 4, None),
        (None, 11, 9),
        (1, None, None),
        (1, 4, 3),
        (2, None, 7),
        (2, None, 1),
        (4, 4, None),
    ],
)
def test_every_form_gives_all_samples_in_order(
    tmp_path: Path, form: str, batch: int | None, wanted: int | None, limit: int | None
) -> None:
    data = numbers(10, 3, 4)
    source_data = FORMS[form](data, tmp_path)
    count = min(10, limit or 10)
    if count < (batch or 1):
        with pytest.raises(DataError, match="have 1 samples, the model takes 2 at once; give at least 2"):
            opened(source_data, [fixed(batch, 3, 4)], batch_size=wanted, limit=limit)
        return
    source = opened(source_data, [fixed(batch, 3, 4)], batch_size=wanted, limit=limit)
    feeds = list(source)
    used = count - count % (batch or 1)
    np.testing.assert_array_equal(joined(feeds), data[:used], strict=True)
    assert source.total in (None, len(feeds))
    if batch or wanted:
        size = batch or wanted or 0
        assert all(one == size for one in sizes(feeds)[:-1])
        assert sizes(feeds)[-1] <= size
    assert any("at once" in text for text in source.assumptions) == (used < count)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 20)))
def test_batches_of_any_sizes_become_batches_of_one_size(rows: list[int], size: int, limit: int | None) -> None:
    data = numbers(sum(rows), 2)
    pieces = np.split(data, np.cumsum(rows)[:-1])
    count = min(len(data), limit or len(data))
    free_feeds = list(opened(pieces, [free(2)], batch_size=size, limit=limit))
    np.testing.assert_array_equal(joined(free_feeds), data[:count])
    assert sizes(free_feeds) == [len(part) for part in parts(data[:count], size)]
    if count >= size:
        fixed_feeds = list(opened(pieces, [fixed(size, 2)], limit=limit))
        np.testing.assert_array_equal(joined(fixed_feeds), data[: count - count % size])
        assert set(sizes(fixed_feeds)) == {size}


def test_ready_batches_stay_and_single_samples_are_joined() -> None:
    assert sizes(list(opened([numbers(2, 3), numbers(5, 3)], [free(3)]))) == [2, 5]
    assert sizes(list(opened(list(numbers(70, 3)), [free(3)]))) == [32, 32, 6]
    assert sizes(list(opened([numbers(3), numbers(4)], [free(None)]))) == [1, 1]  # lengths differ


@pytest.mark.parametrize(("sample", "size"), [((3, 224, 224), 4), ((3, 32, 32), 32), ((3, 640, 640), 1), ((64,), 32)])
def test_a_free_batch_is_of_a_few_samples(sample: tuple[int, ...], size: int) -> None:
    data = np.broadcast_to(np.float32(0), (40, *sample))
    assert len(next(iter(opened(data, [free(*sample)])))["x"]) == size


def test_the_length_is_known_where_it_can_be(tmp_path: Path) -> None:
    data = numbers(10, 3)

    def known(form: object, **options: Any) -> int | None:
        return opened(form, [free(3)], **options).total

    assert known(data, batch_size=4) == 3
    assert known(data, batch_size=4, limit=5) == 2
    assert known(parts(data, 4)) == 3
    assert known(Loader(parts(data, 4))) == 3
    assert known(write_folder(tmp_path, parts(data, 4))) == 3
    assert known(iter(parts(data, 4))) is None
    assert known(parts(data, 4), limit=9) is None


def test_a_second_pass_is_refused() -> None:
    source = opened(numbers(3, 2), [free(2)])
    assert isinstance(source, DataSource)
    assert len(list(source)) == 1
    with pytest.raises(DataError, match="read already, open them again"):
        iter(source)


def test_only_what_is_needed_is_asked_for() -> None:
    asked: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        for index in itertools.count():
            asked.append(index)
            yield numbers(2, 3)

    source = opened(endless(), [free(3)], limit=5)
    assert asked == [0]  # the first one is looked at before anything runs
    assert sizes(list(source)) == [2, 2, 1]
    assert asked == [0, 1, 2]


# Several inputs


def several(ids: np.ndarray, mask: np.ndarray, path: Path) -> dict[str, object]:
    np.save(path / "ids.npy", ids)
    np.save(path / "mask.npy", mask)
    pairs = list(zip(parts(ids, 2), parts(mask, 2), strict=True))
    return {
        "dict": {"ids": ids, "mask": path / "mask.npy"},
        "npz": write_npz(path / "a.npz", ids=ids, mask=mask, score=np.zeros(5)),
        "folder by name": path,
        "files in order": [path / "ids.npy", path / "mask.npy"],
        "tuples": pairs,
        "reader": Reader([{"mask": b, "ids": a} for a, b in pairs]),
        "folders": write_folder(path / "both" / "ids", parts(ids, 2)).parent
        if write_folder(path / "both" / "mask", parts(mask, 2))
        else None,
    }


@pytest.mark.parametrize("form", ["dict", "npz", "folder by name", "files in order", "tuples", "reader", "folders"])
def test_several_inputs_stay_together(tmp_path: Path, form: str) -> None:
    ids, mask = numbers(5, 7, dtype="int64"), numbers(5, 7, dtype="int64") % 2
    if form == "folder by name":
        several(ids, mask, tmp_path)
        (tmp_path / "a.npz").unlink()
        data: object = tmp_path
    else:
        data = several(ids, mask, tmp_path)[form]
    feeds = list(opened(data, TOKENS, batch_size=3))
    assert sizes(feeds, "ids") == [3, 2]
    np.testing.assert_array_equal(joined(feeds, "ids"), ids, strict=True)
    np.testing.assert_array_equal(joined(feeds, "mask"), mask, strict=True)


# One of these for each input: the same ten samples in batches of 4, 4 and 2, or one by one.
INPUT_FORMS: dict[str, Callable[[np.ndarray, Path], object]] = {
    "batches": lambda x, _: parts(x, 4),
    "tuple of batches": lambda x, _: tuple(parts(x, 4)),
    "tensors": lambda x, _: [Tensor(part) for part in parts(x, 4)],
    "generator": lambda x, _: (part for part in parts(x, 4)),
    "map": lambda x, _: map(np.copy, parts(x, 4)),
    "loader": lambda x, _: Loader(parts(x, 4)),
    "folder of batches": lambda x, p: write_folder(p, parts(x, 4)),
    "paths": lambda x, p: sorted(write_folder(p, parts(x, 4)).iterdir()),
    "samples": lambda x, _: list(x),
    "generator of samples": lambda x, _: iter(x),
    "array with an axis for the runs": lambda x, _: x[:, None],
    "nested lists of runs": lambda x, _: x[:, None].tolist(),
    "file with an axis for the runs": lambda x, p: write_folder(p, [x[:, None]]) / "000.npy",
}


@pytest.mark.parametrize("form", INPUT_FORMS)
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"limit": 7}, {"batch_size": 6, "limit": 7}])
def test_a_dict_with_an_iterable_for_each_input_is_as_a_list_of_dicts(
    tmp_path: Path, form: str, options: dict[str, int]
) -> None:
    ids, mask = numbers(10, 7, dtype="int64"), numbers(10, 7, dtype="int64") % 2
    data = {"ids": INPUT_FORMS[form](ids, tmp_path / "ids"), "mask": INPUT_FORMS[form](mask, tmp_path / "mask")}
    feeds = list(opened(data, TOKENS, **options))
    size = 4 if {"batches", "tensors"} & {*form.split()} else 1
    if "nested" not in form:
        listed = [{"ids": a, "mask": b} for a, b in zip(parts(ids, size), parts(mask, size), strict=True)]
        if "samples" in form:
            listed = [{"ids": a[0], "mask": b[0]} for a, b in zip(parts(ids, 1), parts(mask, 1), strict=True)]
        if not ({"generator", "map", "loader", "folder", "paths"} & {*form.split()}):
            assert sizes(feeds, "ids") == sizes(list(opened(listed, TOKENS, **options)), "ids")
    count = options.get("limit", 10)
    np.testing.assert_array_equal(joined(feeds, "ids"), ids[:count], strict=True)
    np.testing.assert_array_equal(joined(feeds, "mask"), mask[:count], strict=True)


@pytest.mark.parametrize("one", [name for name in INPUT_FORMS if "sample" not in name and "runs" not in name])
@pytest.mark.parametrize("two", ["batches", "generator", "folder of batches"])
def test_each_input_may_have_a_form_of_its_own(tmp_path: Path, one: str, two: str) -> None:
    ids, mask = numbers(10, 7, dtype="int64"), numbers(10, 7, dtype="int64") % 2
    data = {"ids": INPUT_FORMS[one](ids, tmp_path / "ids"), "mask": INPUT_FORMS[two](mask, tmp_path / "mask")}
    feeds = list(opened(data, TOKENS))
    assert sizes(feeds, "ids") == sizes(feeds, "mask") == [4, 4, 2]
    np.testing.assert_array_equal(joined(feeds, "ids"), ids, strict=True)
    np.testing.assert_array_equal(joined(feeds, "mask"), mask, strict=True)


def test_inputs_that_are_the_same_in_each_run_stand_beside_an_iterable() -> None:
    inputs = [free(3), fixed(2, name="size", dtype="int64"), fixed(name="ratio"), free(name="lengths", dtype="int64")]
    x = parts(numbers(6, 3), 2)
    data = {"x": x, "size": np.array([5, 6]), "ratio": [0.5, 1.0, 2.0], "lengths": np.array([7, 8, 9])}
    with pytest.raises(DataError, match="different numbers of samples: 'lengths' has 1, 'x' has 2"):
        list(opened(data, inputs))
    feeds = list(opened(data | {"x": numbers(3, 1, 3)}, inputs))
    assert [(feed["ratio"].item(), feed["lengths"].tolist()) for feed in feeds] == [(0.5, [7]), (1.0, [8]), (2.0, [9])]
    assert all(feed["size"].tolist() == [5, 6] and feed["ratio"].shape == () for feed in feeds)


@pytest.mark.parametrize("number", [2, 4])
def test_iterables_that_end_before_others_are_refused(number: int) -> None:
    x, y = [numbers(2, 3)] * 3, [numbers(2, 3)] * number
    inputs = [free(3), free(3, name="y")]
    with pytest.raises(DataError, match=f"'x' has 3, 'y' has {number}; each is for one run"):
        opened({"x": x, "y": y}, inputs)
    for data in ({"x": iter(x), "y": y}, {"x": x, "y": iter(y)}, {"x": iter(x), "y": iter(y)}):
        with pytest.raises(DataError, match=f"end after {min(3, number)}, those of .* go on; give as many"):
            list(opened(data, inputs))


@pytest.mark.parametrize("form", ["array", "list", "dict", "dicts", "npz"])
def test_texts_and_single_numbers(tmp_path: Path, form: str) -> None:
    inputs = [free(name="words", dtype="object"), fixed(name="k"), free(3)]
    words, x = ["a", "bc", "def", "g"], numbers(4, 3)
    if form == "npz":
        inputs, data = inputs[1:], write_npz(tmp_path / "a.npz", k=np.array(2.0), x=x)
    else:
        pairs = [{"words": words[i : i + 2], "k": 2.0, "x": x[i : i + 2]} for i in (0, 2)]
        arrays = {"words": np.array(words), "k": np.float64(2), "x": x}
        data = {"array": arrays, "list": [tuple(item.values()) for item in pairs], "dicts": pairs}.get(
            form, {"words": words, "k": 2, "x": x.tolist()}
        )
    feeds = list(opened(data, inputs))
    np.testing.assert_array_equal(joined(feeds), x)
    assert all(feed["k"] == 2 and feed["k"].shape == () for feed in feeds)
    if form != "npz":
        assert joined(feeds, "words").tolist() == words


def test_names_of_the_data_may_differ(tmp_path: Path) -> None:
    ids = numbers(5, 7, dtype="int64")
    names = {"ids": "a", "mask": "b"}
    arrays = {"a": ids, "b": ids + 1, "c": ids + 2}
    for data in (arrays, write_npz(tmp_path / "a.npz", **arrays), [arrays], Reader([arrays])):
        source = opened(data, TOKENS, names=names)
        feeds = list(source)
        np.testing.assert_array_equal(joined(feeds, "mask"), ids + 1)
        assert source.assumptions == ("not used, since no input has that name: 'c'",)


def test_inputs_without_a_batch_are_the_same_in_each_feed() -> None:
    inputs = [free(3), fixed(2, name="size", dtype="int64"), fixed(name="ratio")]
    size, ratio = np.array([5, 6]), np.float32(0.5)
    data = numbers(4, 3)
    for form in ([(part, size, ratio) for part in parts(data, 4)], [{"x": data, "size": size, "ratio": ratio}]):
        feeds = list(opened(form, inputs, batch_size=2))
        assert sizes(feeds) == [2, 2]
        assert all(np.array_equal(feed["size"], size) and feed["ratio"] == ratio for feed in feeds)
    feeds = list(opened({"x": data, "size": size, "ratio": ratio}, inputs, batch_size=3))
    assert feeds[1]["ratio"].shape == ()
    assert sizes(feeds) == [3, 1]
    np.testing.assert_array_equal(feeds[1]["size"], size)


def named(value: ModelInput, batch_name: str) -> ModelInput:
    return replace(value, batch_name=batch_name)


def test_dynamic_dimensions_of_another_name_may_be_no_batch() -> None:
    inputs = [
        named(free(4), "batch"),
        named(free(name="positions", dtype="int64"), "length"),
        named(free(name="y"), "n"),
    ]
    data, positions, y = numbers(5, 4), np.arange(9), numbers(5)
    for form in ({"x": data, "positions": positions, "y": y}, [(data, positions, y)]):
        feeds = list(opened(form, inputs, batch_size=2))
        assert sizes(feeds) == [2, 2, 1]
        assert all(np.array_equal(feed["positions"], positions) for feed in feeds)
        np.testing.assert_array_equal(joined(feeds, "y"), y)
        with pytest.raises(DataError, match="different numbers of samples: 'positions' has 9, 'x' has 5"):
            opened(form, [named(value, "batch") for value in inputs])


def test_first_dimensions_that_differ_are_no_batch() -> None:
    inputs = [fixed(5, 1, 3), fixed(2, 1, 4, name="state")]
    items = [(numbers(5, 1, 3), numbers(2, 1, 4)), (numbers(5, 1, 3), numbers(2, 1, 4))]
    assert len(list(opened(items, inputs))) == 2
    assert len(list(opened({"x": items[0][0], "state": items[0][1]}, inputs))) == 1


def test_inputs_with_a_default_need_no_data() -> None:
    inputs = [free(3), free(3, name="w", optional=True)]
    assert set(next(iter(opened(numbers(2, 3), inputs)))) == {"x"}
    assert set(next(iter(opened({"x": numbers(2, 3)}, inputs)))) == {"x"}
    assert set(next(iter(opened({"x": numbers(2, 3), "w": numbers(2, 3)}, inputs)))) == {"x", "w"}


# Types and shapes


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("int32", "int64"),
        ("int64", "int32"),
        ("float64", "float32"),
        ("float32", "float16"),
        ("float16", "float32"),
        ("uint8", "float32"),
        ("bool", "int64"),
        ("int64", "bool"),
        (">f4", "float32"),
        (">i2", "int64"),
    ],
)
def test_types_are_converted_where_nothing_is_lost(have: str, want: str) -> None:
    data = (numbers(3, 2) % 2).astype(have)
    source = opened(data, [free(2, dtype=want)])
    (feed,) = source
    np.testing.assert_array_equal(feed["x"], data.astype(want), strict=True)
    assert feed["x"].dtype.isnative
    name = np.dtype(have).newbyteorder("=").name
    assert any(f"the data are {name} and become {want}" in text for text in source.assumptions) == (name != want)


def test_pixels_as_floats_are_said_to_be_unscaled() -> None:
    source = opened(numbers(2, 2, dtype="uint8"), [free(2)])
    assert source.assumptions == (
        "input 'x': the data are uint8 and become float32, their values as they are: scale them before if the model "
        "expects 0..1",
    )


def test_a_missing_batch_dimension_is_added() -> None:
    for wanted in (free(2, 3), fixed(1, 2, 3)):
        source = opened(numbers(2, 3), [wanted])
        (feed,) = source
        assert feed["x"].shape == (1, 2, 3)
        assert source.assumptions == ("input 'x': the data come without the dimension of the batch, it is added",)


def test_unknown_ranks_and_types_take_anything() -> None:
    anything = ModelInput(name="x", dtype="", shape=None, optional=False)
    (feed,) = opened([numbers(2, 3, dtype="int16")], [anything])
    np.testing.assert_array_equal(feed["x"], numbers(2, 3, dtype="int16"), strict=True)
    assert [feed["x"].shape for feed in opened([np.float32(1), np.float32(2)], [anything], batch_size=2)] == [()] * 2


def nan_at(sample: int) -> np.ndarray:
    data = numbers(10, 3)
    data[sample, 1] = np.nan
    return data


X = [free(3)]


@pytest.mark.parametrize(
    ("data", "inputs", "text"),
    [
        (numbers(4, 5), X, "data, samples 0 to 3: input 'x': has the shape [4, 5], the model takes [?, 3]"),
        ([numbers(4, 5)], X, "feed 0: input 'x': has the shape [4, 5]"),
        (numbers(4, 8, 8, 3), [free(3, 8, 8)], "transpose the data from NHWC to NCHW: array.transpose(0, 3, 1, 2)"),
        (numbers(4, 3), [free(3, dtype="int64")], "the data are float32, the model takes int64; convert them before"),
        (np.full((1, 3), 300), [free(3, dtype="uint8")], "and 300 to 300 do not fit in it"),
        (np.full((1, 3), 1e39), X, "float64, the model takes float32, and some are too large"),
        (np.full((1, 3), "a"), X, "the data are str"),
        (nan_at(0), X, "input 'x', sample 0 of all: holds NaN"),
        (np.empty((0, 3), np.float32), X, "is empty, its shape is [0, 3]"),
        ([], X, "the data are empty"),
        ([np.empty((0, 3), np.float32)], X, "the data are empty"),
        (Reader([]), X, "the data are empty"),
        ([{"y": numbers(4, 3)}], X, "feed 0: has no data for input 'x', it holds 'y'; say which with names={'x': ...}"),
        ({"y": numbers(4, 3)}, X, "data: has no data for input 'x', it holds 'y'"),
        ([numbers(4, 3)], TOKENS, "feed 0: holds 1 array, the model takes 2: 'ids', 'mask'; give a tuple"),
        (numbers(4, 3), TOKENS, "an array is for a model of one input, this one takes 'ids', 'mask'"),
        (
            {"ids": numbers(4, 3, dtype="int64"), "mask": numbers(5, 3, dtype="int64")},
            TOKENS,
            "'ids' has 4, 'mask' has 5",
        ),
        ([["a"]], X, "feed 0: input 'x': is of type str, give an array or a tensor"),
        ([{"x": ["a"]}], X, "feed 0: input 'x': is of type list and holds no array of numbers"),
        ({"x": [[1.0, 2.0, 3.0], [4.0]]}, X, "data of input 'x': is of type list and holds no array of numbers"),
        ({"x": object()}, X, "data of input 'x': is of type object, give an array or a tensor"),
        (np.float32(1), X, "data: is a single number"),
        ("no/such/folder", X, "no/such/folder: the data do not exist, check the path"),
        (["a.npy", "b.npy"], X, "a.npy: the data do not exist"),
        (numbers(3, 3), [fixed(4, 3)], "the data have 3 samples, the model takes 4 at once"),
        (numbers(3, 3), [], "the model has no inputs"),
    ],
)
def test_data_that_do_not_fit_are_found_before_anything_runs(
    data: object, inputs: Sequence[ModelInput], text: str
) -> None:
    with pytest.raises(DataError) as caught:
        opened(data, inputs)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "inputs", "text"),
    [
        (nan_at(7), X, "data, samples 4 to 7: input 'x', sample 7 of all: holds NaN"),
        (parts(nan_at(7), 3), X, "feed 2: input 'x', sample 7 of all: holds NaN"),
        ([numbers(2, 3), numbers(2, 4)], X, "feed 1: input 'x': has the shape [2, 4]"),
        ([numbers(2, 3), None], X, "feed 1: input 'x': is of type NoneType, give an array or a tensor"),
        ([numbers(1, 3), numbers(2, 4)], [fixed(2, None)], "feed 1: has another shape than the samples before it"),
        (
            [(numbers(4, 3), numbers(4, 3)), (numbers(4, 3), numbers(5, 3))],
            [*X, free(3, name="y")],
            "'x' has 4, 'y' has 5",
        ),
    ],
)
def test_later_mistakes_name_the_sample(items: object, inputs: Sequence[ModelInput], text: str) -> None:
    with pytest.raises(DataError) as caught:
        list(opened(items, inputs, batch_size=4))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"batch_size": 0}, ArgumentError, "batch_size=0 is no number of samples"),
        ({"limit": -1}, ArgumentError, "limit=-1 is no number of samples"),
        ({"names": {"X": "a"}}, ArgumentError, "names: the model has no input 'X', did you mean 'x'?"),
        ({"shapes": {"x": (1, 4)}}, ArgumentError, r"shapes: 'x' has the shape \[1, 4\], the model takes \['\?', 3\]"),
        ({"images": "torch"}, ArgumentError, "images is for folders of images"),
        ({"dtypes": {"x": "int8"}}, ArgumentError, "dtypes is for .bin files"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, Any], kind: type[AmctError], text: str) -> None:
    with pytest.raises(kind, match=text):
        opened(numbers(4, 3), X, **options)


@pytest.mark.parametrize(
    ("data", "name"), [(5, "int"), (None, "NoneType"), (b"abc", "bytes"), (memoryview(b"a"), "mem")]
)
def test_other_objects_are_no_data(data: object, name: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"data: {name}.* cannot be read, give a folder of images"):
        opened(data, X)


# Files


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.npy", b"no array", "a.npy: is no readable .npy file"),
        ("a.npz", b"no archive", "a.npz: is no readable .npz file"),
        ("a.txt", b"1 2 3", "a.txt: data in such a file cannot be read, give one of .bmp"),
        ("a.bin", b"12345", "a.bin: has 5 bytes, but float32 [-1, 3] takes a multiple of 12"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        opened(tmp_path / name, X)
    assert text in str(caught.value)


def test_an_archive_that_ends_early_is_named(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", x=numbers(1000, 3))
    data = bytearray(path.read_bytes())
    data[6000:6100] = bytes(100)  # the checksum no longer fits
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: 'x': cannot be read \(Bad CRC"):
        list(opened(path, X))


def test_python_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match=r"a\.npy: is no readable \.npy file \(.*[Oo]bject"):
        opened(tmp_path / "a.npy", X)


def test_folders_must_hold_one_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder holds no data, put files into it"):
        opened(tmp_path, X)
    np.save(tmp_path / "a.npy", numbers(1, 3))
    numbers(1, 3).tofile(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"the folder mixes \.bin, \.npy files, leave one kind"):
        opened(tmp_path, X)


def test_files_of_several_inputs_must_be_as_many(tmp_path: Path) -> None:
    ids = write_folder(tmp_path / "ids", [numbers(1, 3, dtype="int64")] * 2)
    mask = write_folder(tmp_path / "mask", [numbers(1, 3, dtype="int64")] * 3)
    with pytest.raises(DataError, match="different numbers of files or arrays: 'ids' has 2, 'mask' has 3"):
        opened({"ids": ids, "mask": mask}, TOKENS)


def test_the_only_array_of_a_folder_is_cut_into_batches(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [numbers(70, 3)])
    assert sizes(list(opened(folder, X))) == [32, 32, 6]


def test_bin_files_of_any_shape_and_type(tmp_path: Path) -> None:
    data = numbers(4, 3, 2, dtype="int32")
    folder = write_folder(tmp_path, list(data), "bin")
    open_input = [free(None, None, dtype="int64")]
    with pytest.raises(DataError, match=r"leaves more than one dimension open.*shapes=\{'x': \.\.\.\}"):
        opened(folder, open_input)
    for shape in ((1, 3, 2), (3, 2), (-1, 2)):
        source = opened(folder, open_input, shapes={"x": shape}, dtypes={"x": "int32"})
        np.testing.assert_array_equal(joined(list(source)), data.astype(np.int64), strict=True)
    with pytest.raises(DataError, match=r"000\.bin: has 24 bytes, but int64"):
        opened(folder, open_input, shapes={"x": (3, 2)})


def test_large_files_are_read_in_parts(tmp_path: Path) -> None:
    """One batch is in memory at a time, whatever the file is."""
    import tracemalloc

    data = np.zeros((200, 3, 64, 64), np.float32)  # 9.8 MB; a batch has 1.6 MB
    np.save(tmp_path / "a.npy", data)
    np.savez_compressed(tmp_path / "a.npz", x=data)
    whole = data.nbytes
    del data
    for name in ("a.npy", "a.npz"):
        tracemalloc.start()
        rows = sum(len(feed["x"]) for feed in opened(tmp_path / name, [free(3, 64, 64)], batch_size=8))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == 200
        assert peak < whole / 4


# Images


def pictures(folder: Path, count: int, size: int = 32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (size, size, 3), np.uint8) for _ in range(count)]
    for index, array in enumerate(arrays):
        path = folder / f"class{index * 3 // count}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return [array.astype(np.float32).transpose(2, 0, 1) for array in arrays]


@pytest.mark.parametrize(("batch", "wanted"), [(None, None), (None, 4), (1, None), (5, None)])
def test_a_folder_of_images(tmp_path: Path, batch: int | None, wanted: int | None) -> None:
    arrays = pictures(tmp_path, 10)
    source = opened(tmp_path, [fixed(batch, 3, 32, 32)], images="raw", batch_size=wanted)
    feeds = list(source)
    np.testing.assert_array_equal(joined(feeds), np.stack(arrays), strict=True)
    assert (source.total, sum(sizes(feeds))) == (len(feeds), 10)
    assert sizes(feeds)[0] == (batch or wanted or 10)
    assert "preset 'raw'" in source.assumptions[-1]


def test_a_limit_takes_images_of_all_classes(tmp_path: Path) -> None:
    arrays = pictures(tmp_path, 10)
    source = opened(tmp_path, [free(3, 32, 32)], images="raw", limit=3)
    np.testing.assert_array_equal(joined(list(source)), np.stack([arrays[0], arrays[3], arrays[6]]))
    assert source.assumptions[0] == "3 of 10 images are used, at equal distances in the order of their paths"
    files = sorted(tmp_path.rglob("*.png"))
    source = opened(files, [free(3, 32, 32)], images="raw", limit=3)
    np.testing.assert_array_equal(joined(list(source)), np.stack(arrays[:3]))


def test_images_beside_other_data(tmp_path: Path) -> None:
    arrays = pictures(tmp_path, 6)
    inputs = [free(3, 32, 32), free(2, name="size", dtype="int64")]
    size = numbers(6, 2, dtype="int64")
    feeds = list(opened({"x": tmp_path, "size": size}, inputs, images="raw", batch_size=4))
    assert sizes(feeds) == [4, 2]
    np.testing.assert_array_equal(joined(feeds), np.stack(arrays))
    np.testing.assert_array_equal(joined(feeds, "size"), size)


def test_shapes_say_the_size_that_the_model_leaves_open(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    for shape in ((-1, 3, 48, 40), (1, 3, 48, 40), (3, 48, 40)):  # a batch of 1 is what people write
        (feed,) = opened(tmp_path, [free(3, None, None)], shapes={"x": shape})
        assert feed["x"].shape == (2, 3, 48, 40)


def test_a_broken_image_is_found_before_anything_runs(tmp_path: Path) -> None:
    pictures(tmp_path, 9)
    (tmp_path / "zzz.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"zzz\.jpg: the image cannot be read"):
        opened(tmp_path, [free(3, 32, 32)])


def test_no_thread_stays_behind(tmp_path: Path) -> None:
    pictures(tmp_path, 30)
    before = threading.active_count()
    for _ in opened(tmp_path, [free(3, 32, 32)], batch_size=1):
        break
    last = max(tmp_path.rglob("*.png"))
    last.write_bytes(last.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"{last.name}: the image cannot be read"):
        list(opened(tmp_path, [free(3, 32, 32)], batch_size=7))
    assert threading.active_count() == before


# Real models and their data


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        ("mobilenetv2_tv1.onnx", "images/imagenet1000", {"images": "torch"}),
        ("mobilenetv1_0.5_160.onnx", "images/imagenet1000", {"images": "tf"}),
        ("yolox_nano.onnx", "images/coco128", {"images": "yolox"}),
        ("super_resolution_10.onnx", "images/coco128", {}),
        ("resnet20_cifar10.onnx", "images/cifar10/calibration", {}),
        ("kws_dscnn_mlperftiny.onnx", "images/kws/kws01.npz", {"names": {"input": "x_nchw"}}),
        (
            "minilm_l6.onnx",
            "text/stsb/calibration.npz",
            {"names": {"input_ids": "ids_a", "attention_mask": "mask_a"}},
        ),
    ],
)
def test_real_models_run_with_their_data(
    test_data: Callable[..., Path], model: str, data: str, options: dict[str, Any]
) -> None:
    path = test_data("models", model)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    source = opened(test_data(*data.split("/")), model_inputs(ir.load(path)), limit=6, **options)
    feeds = list(source)
    assert len(feeds) == source.total
    assert sum(len(next(iter(feed.values()))) for feed in feeds) == 6
    for feed in feeds:
        assert all(np.isfinite(output).all() for output in session.run(None, feed))


def test_real_images_keep_the_accuracy_of_the_model(test_data: Callable[..., Path]) -> None:
    """The labels are sorted by path, as the images are: the float model is right about as often as its README says."""
    path = test_data("models", "resnet20_cifar10.onnx")
    folder = test_data("images", "cifar10", "test")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    labelled = sorted(shared_data.read_labels("cifar10/test/image_label.txt", folder.parents[2]), key=lambda i: i.path)
    images = labelled[::8]
    source = opened([image.path for image in images], model_inputs(ir.load(path)))
    classes = np.concatenate([session.run(None, feed)[0].argmax(axis=1) for feed in source])
    assert np.mean(classes == [image.label for image in images]) > 0.75
