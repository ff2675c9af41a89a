"""Samples that are kept while the data pass by."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.data.keep_samples import SampleKeeper
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.graph.inputs import ModelInput


def inputs(batch: int | None = None) -> tuple[ModelInput, ...]:
    return (ModelInput(name="x", dtype="float32", shape=(batch, 2), optional=False),)


def passed(
    count: int, *, size: int, most: int, hold_out: bool, batch: int | None = None
) -> tuple[list[int], list[int]]:
    """The samples that come out, and those that are kept; sample k holds the number k."""
    data = np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1)
    found = inputs(batch)
    samples = SampleKeeper(open_data(data, found, DataOptions(batch_size=size)), most=most, hold_out=hold_out)
    feeds = [int(row[0]) for feed in samples for row in feed["x"]]
    return feeds, [int(row[0]) for feed in samples.kept for row in feed["x"]]


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_what_is_held_out_does_not_calibrate(size: int) -> None:
    feeds, kept = passed(40, size=size, most=8, hold_out=True)
    assert sorted([*feeds, *kept]) == list(range(40))
    assert 0 < len(kept) <= 8
    if size < 8:
        assert max(kept) - min(kept) >= 20  # spread over the data


def test_at_most_a_quarter_is_held_out() -> None:
    assert len(passed(12, size=4, most=32, hold_out=True)[1]) == 3


@pytest.mark.parametrize("size", [1, 4])
def test_what_is_kept_may_calibrate_too(size: int) -> None:
    feeds, kept = passed(16, size=size, most=4, hold_out=False)
    assert feeds == list(range(16))
    assert len(kept) == 4


def test_a_batch_that_the_model_fixes_is_one_sample() -> None:
    feeds, kept = passed(16, size=2, most=2, hold_out=True, batch=2)
    assert sorted([*feeds, *kept]) == list(range(16))
    assert len(kept) == 4


def test_too_few_samples_judge_themselves() -> None:
    feeds, kept = passed(2, size=2, most=4, hold_out=True)
    assert (feeds, kept) == ([0, 1], [0])


def test_samples_of_unknown_length() -> None:
    found = inputs()
    data = (np.full((1, 2), number, np.float32) for number in range(30))
    samples = SampleKeeper(open_data(data, found, DataOptions()), most=5, hold_out=True)
    with pytest.raises(TypeError):
        len(samples)
    seen = [feed["x"][0, 0] for feed in samples]
    assert (len(seen), len(samples.kept)) == (25, 5)
