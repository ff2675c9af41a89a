"""Samples that are kept while the data pass by."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amct_onnx.data.keep_samples import SampleKeeper
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput


def inputs(batch: int | None = None) -> tuple[ModelInput, ...]:
    return (ModelInput(name="x", dtype="float32", shape=(batch, 2), optional=False),)


def passed(
    count: int, *, size: int, most: int = 0, hold_out: int = 0, batch: int | None = None
) -> tuple[list[int], list[int], list[int]]:
    """The samples that come out, those that are kept of them and those held out; sample k holds the number k."""
    data = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
    found = inputs(batch)
    samples = SampleKeeper(open_data(data, found, DataOptions(batch_size=size)), most=most, hold_out=hold_out)
    feeds = [int(row[0]) for feed in samples for row in feed["x"]]
    kept, out = ([int(row[0]) for feed in some for row in feed["x"]] for some in (samples.kept, samples.held_out))
    return feeds, kept, out


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_what_is_held_out_does_not_calibrate(size: int) -> None:
    feeds, kept, out = passed(40, size=size, most=6, hold_out=8)
    assert sorted([*feeds, *out]) == list(range(40))
    assert 0 < len(out) <= 8
    assert 0 < len(kept) <= 6
    assert set(kept) <= set(feeds)
    if size < 8:
        assert min(max(some) - min(some) for some in (kept, out)) >= 20  # spread over the data


def test_at_most_a_quarter_is_held_out() -> None:
    assert len(passed(12, size=4, hold_out=32)[2]) == 3


@pytest.mark.parametrize("size", [1, 4])
def test_what_is_kept_may_calibrate_too(size: int) -> None:
    feeds, kept, out = passed(16, size=size, most=4)
    assert feeds == list(range(16))
    assert (len(kept), out) == (4, [])


def test_a_batch_that_the_model_fixes_is_one_sample() -> None:
    feeds, _, out = passed(16, size=2, hold_out=2, batch=2)
    assert sorted([*feeds, *out]) == list(range(16))
    assert len(out) == 4


def test_too_few_samples_judge_themselves() -> None:
    feeds, _, out = passed(2, size=2, hold_out=4)
    assert (feeds, out) == ([0, 1], [0])


def test_samples_of_unknown_length() -> None:
    found = inputs()
    data = (np.full((1, 2), number, np.float32) for number in range(30))
    samples = SampleKeeper(open_data(data, found, DataOptions()), most=3, hold_out=5)
    with pytest.raises(TypeError):
        len(samples)
    seen = [feed["x"][0, 0] for feed in samples]
    assert (len(seen), len(samples.kept), len(samples.held_out)) == (25, 3, 5)


def test_large_samples_are_kept_within_a_bound_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amct_onnx.data.keep_samples._MOST_BYTES", 20 * 8)  # a sample has 8 bytes
    _, kept, out = passed(400, size=4, most=64, hold_out=64)
    assert (len(kept), len(out)) == (20, 20)
    monkeypatch.setattr("amct_onnx.data.keep_samples._MOST_BYTES", 1)
    assert len(passed(400, size=4, most=64)[1]) == 16


@pytest.mark.parametrize("batch", [None, 3])
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 8), st.integers(0, 8), st.integers(1, 5), st.booleans())
def test_whoever_reads_by_number_gets_the_same(
    tmp_path: Path, batch: int | None, count: int, size: int, most: int, hold_out: int, step: int, files: bool
) -> None:
    """The feeds, the samples that are kept and those that are held out; of an array, or of files of a batch each."""
    if files:
        data = Path(tempfile.mkdtemp(dir=tmp_path))
        numbers = np.repeat(np.arange(count * size, dtype=np.float32)[:, None], 2, axis=1)
        for number, rows in enumerate(np.split(numbers, count)):
            np.save(data / f"{number:03}.npy", rows)
    else:
        data = tmp_path / "x.npy"
        np.save(data, np.repeat(np.arange(count * (batch or 1), dtype=np.float32)[:, None], 2, axis=1))
    found = inputs(batch)
    options = DataOptions() if files or batch else DataOptions(batch_size=size)

    def keeper() -> SampleKeeper:
        return SampleKeeper(open_data(data, found, options), most=most, hold_out=hold_out)

    try:
        iterated = keeper()
    except DataError:  # too few samples for a batch of the model
        return
    feeds = list(iterated)
    gathered = keeper()
    parts = pickle.loads(pickle.dumps(gathered.parts()))
    read = [feed for first in range(0, parts.total, step) for feed in parts.read(first, min(first + step, parts.total))]
    gathered.gather()
    assert [feed["x"].tolist() for feed in read] == [feed["x"].tolist() for feed in feeds]
    for one, two in ((iterated.kept, gathered.kept), (iterated.held_out, gathered.held_out)):
        assert [feed["x"].tolist() for feed in one] == [feed["x"].tolist() for feed in two]
    assert iterated.notes == gathered.notes
    rule = gathered.parts().rule
    assert [parts.place(k + 1) - parts.place(k) for k in range(parts.total)] == [rule.count(feed) for feed in feeds]
