"""Data that cannot calibrate are told of: all zero, constant, alike, few, sorted by class; and good data are not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flow import build, normal
from PIL import Image

import amct_onnx
from amct_onnx.data.batches import BatchRule
from amct_onnx.data.poor_data import DataCheck, checked, sorted_by_class
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed

IMAGE = (3, 6, 6)


def rule(**shapes: tuple[int | None, ...]) -> BatchRule:
    return BatchRule.of([ModelInput(name=n, dtype="float32", shape=s, optional=False) for n, s in shapes.items()])


def told(*feeds: Feed, of: BatchRule | None = None) -> str:
    check = DataCheck(of or rule(**{name: (None, *array.shape[1:]) for name, array in feeds[0].items()}))
    for feed in feeds:
        check.look(feed)
    return " ".join(check.warnings())


def full(value: float, count: int = 32) -> np.ndarray:
    return np.full((count, *IMAGE), value, np.float32)


def ids(count: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 50, (count, 9))


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ([{"x": full(0)}], "'x' are all zero"),
        ([{"x": full(0, 4)}] * 8, "'x' are all zero"),
        ([{"x": full(0.5)}], "constant, all 0.5"),
        ([{"x": np.zeros((32, 9), np.int64)}], "'x' are all zero"),
        ([{"x": full(0).astype(np.float16)}], "'x' are all zero"),
        ([{"x": full(1) * np.arange(32, dtype=np.float32)[:, None, None, None]}], "constant within each sample"),
        ([{"x": full(0), "z": normal(1, 32, 4)}], "'x' are all zero"),
        ([{"x": full(0), "z": normal(1, 32, 3, 6, 6)}], "'x' are all zero"),
        ([{"x": np.repeat(normal(1, 1, *IMAGE), 32, axis=0)}], "identical"),
        ([{"x": normal(1, 4, *IMAGE)}] * 8, "Only 4 of the first 32 samples differ"),
        ([{"x": normal(1, 1, *IMAGE)}], "One sample"),
        ([{"x": normal(1, 5, *IMAGE)}], "Only 5 samples"),
    ],
)
def test_poor_data_are_told_of(feeds: list[Feed], words: str) -> None:
    assert words in told(*feeds)


@pytest.mark.parametrize(
    "feeds",
    [
        [{"x": normal(1, 32, *IMAGE)}],
        [{"x": np.concatenate([full(0, 1), normal(1, 31, *IMAGE)])}],
        [{"x": ids(), "mask": np.ones((32, 9), np.int64), "type": np.zeros((32, 9), np.int64)}],
        [{"x": normal(1, 32, 40, 8), "state": np.zeros((32, 2, 4), np.float32)}],
        [{"x": np.arange(32, dtype=np.float32)[:, None]}],
    ],
)
def test_good_data_are_not(feeds: list[Feed]) -> None:
    assert told(*feeds) == ""


def test_samples_of_whole_feeds_are_feeds() -> None:
    whole = BatchRule.of_whole_feeds("so it is")
    assert told(*[{"x": normal(k, 5, 4)} for k in range(8)], of=whole) == ""
    assert "identical" in told(*[{"x": normal(1, 5, 4)}] * 8, of=whole)


def test_a_reader_that_stops_hears_it_and_an_error_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    feeds = iter([{"x": full(0)}] * 3)
    reading = checked(feeds, rule(x=(None, *IMAGE)))
    next(reading)
    reading.close()
    assert "all zero" in caplog.text
    caplog.clear()

    def broken() -> Iterator[Feed]:
        yield {"x": full(0)}
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(checked(broken(), rule(x=(None, *IMAGE))))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("classes", "told_of"),
    [
        (["a"] * 60 + ["b"] * 60, True),
        (["a"] * 40 + ["b"] * 40, False),
        (["a", "b"] * 60, False),
        (["a"] * 100, False),
        ([chr(97 + k // 20) for k in range(200)], True),
        ([chr(97 + k // 8) for k in range(48)], False),
    ],
)
def test_an_order_by_class_is_told_of(classes: list[str], told_of: bool) -> None:
    assert bool(sorted_by_class(classes)) == told_of


MODEL = """g (float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv (x, w) [relu] r = Relu (a) p = GlobalAveragePool (r) f = Flatten (p) y = Gemm (f, v) }"""


@pytest.mark.parametrize("named", ["folders", "files"])
def test_photos_that_are_sorted_by_class(tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str) -> None:
    model = build(MODEL, w=normal(1, 8, 3, 3, 3), v=normal(2, 8, 5))
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog", "emu", "fox"):
        (tmp_path / kind).mkdir()
        for number in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            file = f"{kind}/{number}.png" if named == "folders" else f"{kind}.{number:03}.png"
            Image.fromarray(pixels).save(tmp_path / file)
    amct_onnx.quantize(model, tmp_path, images="unit", effort="fast")
    assert "class" not in caplog.text
    amct_onnx.quantize(model, tmp_path, images="unit", limit=3, effort="fast")
    assert "Images of 3 of 4 classes are used" in caplog.text
    caplog.clear()
    for number in range(100):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"ape.{number:03}.png")
    amct_onnx.quantize(model, tmp_path, images="unit")
    assert "sorted by class: the first 48, which decide what helps, are of 1 of 5 classes" in caplog.text


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("target", ["onnxruntime", "ascend"])
def test_one_call_tells_whatever_the_effort(caplog: pytest.LogCaptureFixture, effort: str, target: str) -> None:
    model = build(MODEL, w=normal(1, 8, 3, 3, 3), v=normal(2, 8, 5))
    amct_onnx.quantize(model, iter(np.zeros((40, 1, 3, 8, 8), np.float32)), effort=effort, target=target)
    assert [r.levelname for r in caplog.records if "are all zero" in r.getMessage()] == ["WARNING"]
