"""Data that cannot be read: they end the run with their name, or are left out, counted and told."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import classifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import amct_onnx
from amct_onnx.data.data_source import DataSource
from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import ArgumentError, DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.values.skipped_data import NOTHING_SKIPPED, SkippedData, Unreadable

Feed = dict[str, np.ndarray]
FREE, TWO = (None, 3, 8, 8), (2, 3, 8, 8)


def opened(data: object, shape: tuple[int | None, ...] = FREE, **options: Any) -> DataSource:
    value = ModelInput(name="x", dtype="float32", shape=shape, optional=False)
    return open_data(data, [value], DataOptions(on_bad_data="skip", **options))


def images(folder: Path, count: int, bad: set[int]) -> Path:
    """Images, each of one shade, some of which are cut off in the middle."""
    folder.mkdir()
    for number in range(count):
        file = folder / f"{number:03}.png"
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        noise[0, 0] = number
        Image.fromarray(noise).save(file)
        if number in bad:
            file.write_bytes(file.read_bytes()[:60])
    return folder


def first_pixels(feeds: list[Feed]) -> list[list[int]]:
    return [[round(float(row[0, 0, 0])) for row in feed["x"]] for feed in feeds]


def parts_of(source: DataSource) -> FeedParts:
    assert source.parts is not None
    copy: FeedParts = pickle.loads(pickle.dumps(source.parts))
    return copy


def test_the_others_of_a_batch_stay_where_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = opened(images(tmp_path / "i", 8, {1, 2, 3}), images="raw", batch_size=2)
    assert first_pixels(list(source)) == [[0], [4, 5], [6, 7]]
    assert (source.skipped.samples, source.skipped.feeds, source.skipped.beside) == (3, 1, 0)
    assert [one.number for one in source.skipped.first] == [1, 2, 3]
    assert "001.png" in source.skipped.first[0].why
    told = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert len(told) == 1
    assert "3 samples that cannot be read, beside 5 samples. The first:" in told[0]
    assert "001.png" in told[0]
    assert "half" not in told[0]


def test_a_feed_of_a_fixed_batch_is_left_out_as_a_whole(tmp_path: Path) -> None:
    source = opened(images(tmp_path / "i", 8, {1, 4, 5}), TWO, images="raw")
    assert first_pixels(list(source)) == [[2, 3], [6, 7]]
    assert source.skipped == SkippedData(samples=3, beside=1, feeds=2, first=source.skipped.first)


def test_more_than_half_is_told_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(opened(images(tmp_path / "i", 8, {0, 1, 2, 3, 4}), images="raw"))
    assert "more than half of all" in caplog.text


@pytest.mark.parametrize("shape", [FREE, TWO])
def test_nothing_that_is_left_is_an_error(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    bad = set(range(8)) if shape == FREE else {0, 2, 4, 6}
    with pytest.raises(DataError, match=r"none of the data can be read, all are left out: \d samples.*000\.png"):
        list(opened(images(tmp_path / "i", 8, bad), shape, images="raw", batch_size=2))


def test_without_a_word_a_bad_image_ends_the_run(tmp_path: Path) -> None:
    value = ModelInput(name="x", dtype="float32", shape=FREE, optional=False)
    source = open_data(images(tmp_path / "i", 4, {2}), [value], DataOptions(images="raw"))
    with pytest.raises(DataError, match=r"002\.png: the image cannot be read"):
        list(source)


def test_the_first_images_may_all_be_bad(tmp_path: Path) -> None:
    source = opened(images(tmp_path / "i", 8, {0, 1, 2}), images="raw", batch_size=2)
    assert first_pixels(list(source)) == [[3], [4, 5], [6, 7]]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bad=st.sets(st.integers(0, 10), max_size=6),
    shape=st.sampled_from([FREE, TWO]),
    cuts=st.lists(st.integers(0, 6), max_size=3),
    form=st.sampled_from(["images", "npy files", "npz files", "joined npy files"]),
)
def test_any_partition_gives_and_counts_the_same(
    bad: set[int], shape: tuple[int | None, ...], cuts: list[int], form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data") / "d"
    if form == "images":
        source = opened(images(folder, 11, bad), shape, images="raw", batch_size=2)
    else:
        folder.mkdir()
        for number in range(11):
            array = np.full((3, 8, 8) if "joined" in form else (2, 3, 8, 8), number, np.float32)
            file = folder / f"{number:03}.{'npz' if 'npz' in form else 'npy'}"
            if "npz" in form:
                np.savez_compressed(file, x=array)
            else:
                np.save(file, array)
            if number in bad:  # with a header in every second one
                file.write_bytes(file.read_bytes()[: 200 if number % 2 else 20])
        source = opened(folder, shape, batch_size=2 if "joined" in form else None)
    parts = parts_of(source)
    borders = [0, *sorted(min(cut, parts.total) for cut in cuts), parts.total]
    found: list[Feed] = []
    skipped = parts.lost
    for first, last in itertools.pairwise(borders):
        for made in parts.numbered(first, last):
            skipped = skipped.merge(made.skipped)
            if made.feed is not None:
                found.append(made.feed)
                assert parts.place(made.number) + parts.rule.count(made.feed) <= parts.place(made.number + 1)
    try:
        wanted = list(source.unchecked())
    except DataError:
        assert not found
        return
    assert first_pixels(found) == first_pixels(wanted)
    assert skipped == source.skipped
    behind = [parts.behind(count) for count in range(len(found) + 1)]
    assert behind[0] == (0, parts.lost)
    numbers = [made.number for made in parts.numbered(0, parts.total) if made.feed is not None]
    assert [number for number, _ in behind[1:]] == [number + 1 for number in numbers]


def test_merging_skipped_data_does_not_depend_on_the_order() -> None:
    many = [SkippedData.of_samples([Unreadable(number=number, why=f"{number}")]) for number in range(8)]
    for order in (many, many[::-1], many[4:] + many[:4]):
        merged = NOTHING_SKIPPED
        for one in order:
            merged = merged.merge(one)
        assert merged.samples == 8
        assert [one.number for one in merged.first] == [0, 1, 2, 3, 4]
    assert SkippedData.of_dict(merged.to_dict()) == merged
    assert not NOTHING_SKIPPED


def test_the_option_is_one_of_two() -> None:
    with pytest.raises(ArgumentError, match="on_bad_data='ignore' is unknown"):
        DataOptions(on_bad_data="ignore")  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> str:
    onnx.save(classifier(), tmp_path / "model.onnx")
    return str(tmp_path / "model.onnx")


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_every_engine_leaves_out_the_same(
    model: str, effort: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = images(tmp_path / "i", 160, {0, 3, 8, 9, 10, 11, 77, 120, 121, 122, 123})
    results = {}
    for engine, state in (("local", None), ("processes:2", None), ("local", tmp_path / "state")):
        caplog.clear()
        results[engine, state] = result = amct_onnx.quantize(
            model, folder, images="unit", batch_size=4, on_bad_data="skip", effort=effort, engine=engine, state=state
        )
        assert result.data is not None
        assert result.data.samples == 149
        assert result.data.skipped.samples == 11
        assert result.data.skipped.feeds == 2
        assert result.data.feeds == 38
        assert [one.number for one in result.data.skipped.first] == [0, 3, 8, 9, 10]
        assert caplog.text.count("Left out of the data: 11 samples") == 1
    models = {ir.to_proto(result.model()).SerializeToString() for result in results.values()}
    assert len(models) == 1


def test_a_bad_image_fails_every_engine(model: str, tmp_path: Path) -> None:
    folder = images(tmp_path / "i", 8, {5})
    for engine in ("local", "processes:1"):
        with pytest.raises(DataError, match=r"005\.png"):
            amct_onnx.quantize(model, folder, images="unit", batch_size=2, effort="fast", engine=engine)
