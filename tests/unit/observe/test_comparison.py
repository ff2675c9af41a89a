"""What comparisons of layers keep, and what they do with measures that fail."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest

from amct_onnx.errors import CalibrationError
from amct_onnx.observe.comparison import Comparisons, comparing, show


def joined(a: float, b: float) -> np.ndarray:
    return np.array([[a], [b]], np.float32)


def distance(data: np.ndarray, other: np.ndarray) -> Any:
    return np.abs(data - other).sum()


def test_the_value_of_a_layer_is_the_mean_over_its_batches() -> None:
    comparisons = Comparisons(distance, 3)
    for other in (1.0, 2.0, 6.0):
        comparisons.add("a", joined(0, other))
    comparisons.add("b", joined(5, 1))
    assert comparisons.means() == {"a": 3.0, "b": 4.0}
    assert (comparisons.batches("a"), comparisons.batches("b"), comparisons.batches("c")) == (3, 1, 0)


def test_batches_beyond_batch_num_are_ignored() -> None:
    comparisons = Comparisons(distance, 1)
    comparisons.add("a", joined(0, 1))
    comparisons.add("a", joined(0, 9))
    assert comparisons.means() == {"a": 1.0}


def test_the_order_of_batches_does_not_matter() -> None:
    values = [1e16, 1.0, -1e16, 3.0]
    means = []
    for order in (values, values[::-1]):
        comparisons = Comparisons(lambda data, _: float(data[0, 0]), len(values))
        for value in order:
            comparisons.add("a", joined(value, 0))
        means.append(comparisons.means()["a"])
    assert means[0] == means[1] == math.fsum(float(np.float32(v)) for v in values) / 4


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", r'layer "a" failed: TypeError: compare\(\) must return a number, got str'),
        (None, r"must return a number, got NoneType"),
        (np.zeros(2), r"must return a number, got ndarray"),
        (float("nan"), r"compare\(\) returned NaN"),
    ],
)
def test_a_measure_that_gives_no_number_is_an_error_with_the_layer(value: Any, message: str) -> None:
    comparisons = Comparisons(lambda *_: value, 2)
    comparisons.add("a", joined(0, 1))
    comparisons.add("b", joined(0, 1))
    with pytest.raises(CalibrationError, match=message):
        comparisons.means()


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.array([[0.5]]), np.array(0.5)])
def test_numbers_of_all_kinds_are_accepted(value: Any) -> None:
    comparisons = Comparisons(lambda *_: value, 1)
    comparisons.add("a", joined(0, 1))
    assert comparisons.means() == {"a": float(np.asarray(value).ravel()[0])}


def test_ctrl_c_inside_a_measure_is_passed_on_later() -> None:
    def interrupt(*_: Any) -> float:
        raise KeyboardInterrupt

    comparisons = Comparisons(interrupt, 1)
    comparisons.add("a", joined(0, 1))
    with pytest.raises(KeyboardInterrupt):
        comparisons.means()


def test_threads_lose_nothing() -> None:
    comparisons = Comparisons(distance, 400)
    threads = [
        threading.Thread(target=lambda: [comparisons.add("a", joined(0, 1)) for _ in range(100)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert comparisons.batches("a") == 400


def test_a_model_that_nobody_compares_does_nothing() -> None:
    attributes = {"record_file_path": "key", "object_layers": '["a"]'}
    with comparing("key", distance, 2) as comparisons:
        show(joined(0, 2), attributes)
        show(joined(0, 9), {**attributes, "record_file_path": "another"})
    show(joined(0, 9), attributes)
    assert comparisons.means() == {"a": 2.0}
