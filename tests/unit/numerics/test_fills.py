"""When values of a tensor are a fill, and no data: they stand far away from all others."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx.numerics.statistics.fills import fill_value
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

DATA = np.random.default_rng(0).normal(0, 2, 4000).astype(np.float32)


def of(*parts: np.ndarray | list[float]) -> float | None:
    return fill_value(DyadicHistogram.of(np.concatenate([np.asarray(part, np.float32).ravel() for part in parts])))


@pytest.mark.parametrize("fill", [-600.0, -1e4, -65504.0, -1e9, -3.4e38, 1e9, 65504.0])
@pytest.mark.parametrize("count", [4, 4000])
def test_values_far_away_from_all_others_are_a_fill(fill: float, count: int) -> None:
    assert of(DATA, np.full(count, fill)) == np.float32(fill)


@pytest.mark.parametrize("fill", [-1e4, -65504.0])
def test_scores_may_have_been_added_to_a_fill(fill: float) -> None:
    assert of(DATA, DATA[:100] + fill) == np.float32((DATA[:100] + np.float32(fill)).min())


def test_a_fill_of_either_sign_may_have_its_negative_beside_it() -> None:
    assert of(DATA, [-1e9] * 9, [1e9] * 9) == 1e9


@pytest.mark.parametrize(
    "parts",
    [
        [DATA],
        [DATA * 1e6],
        [np.linspace(0, 1e9, 5000)],
        [np.exp(np.linspace(0, 20, 5000))],  # no gap
        [DATA, [-600.0], np.linspace(-500, 0, 300)],
        [np.full(10, -1e9)],  # nothing else
        [np.zeros(0)],
        [[0, 255.0] * 10],  # an image
        [np.tile(DATA, 5), [600.0]],  # an outlier, which a search for the range may clip
    ],
)
def test_data_are_no_fill(parts: list[np.ndarray]) -> None:
    assert of(*parts) is None


def test_a_rare_value_is_a_fill_only_where_nothing_is_left_of_the_rest() -> None:
    many = np.tile(DATA, 5)
    assert of(many, [600.0]) is None
    assert of(many, [1e9]) == 1e9


def test_what_holds_nan_has_no_fill() -> None:
    assert fill_value(DyadicHistogram.not_finite()) is None
