"""Where samples lie, by a trial: networks are functions of arrays here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.data.batches import BatchRule
from amct_onnx.data.data_source import DataSource
from amct_onnx.data.open_data import open_data
from amct_onnx.data.options import DataOptions
from amct_onnx.data.sample_axis import decide
from amct_onnx.errors import DataError
from amct_onnx.graph.inputs import ModelInput
from amct_onnx.numerics.arrays import Feed


class Function:
    """A network that is a function; a ValueError of it is what ONNX Runtime would refuse."""

    def __init__(self, compute: Callable[..., Any], *, rowwise: bool = False) -> None:
        self._compute, self._rowwise = compute, rowwise
        self.runs = 0
        self.closed = False

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        self.runs += 1
        try:
            return {"y": np.asarray(self._compute(**feed))}
        except ValueError as error:
            raise DataError(f"refused: {error}") from error

    def is_rowwise(self, inputs: Collection[str]) -> bool:
        return self._rowwise

    def close(self) -> None:
        self.closed = True


def free(*sample: int | None, name: str = "x", batch_name: str = "", dtype: str = "float32") -> ModelInput:
    return ModelInput(name=name, dtype=dtype, shape=(None, *sample), optional=False, batch_name=batch_name)


def rows(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *(shape or (3,)))).astype(np.float32)


def batch_of(size: int) -> Callable[..., np.ndarray]:
    """A network with a Reshape that holds its batch."""
    return lambda x: x.reshape(size, 3) * 2


X, WEIGHT = (free(3),), rows(3, 2)
ROWWISE: dict[str, Callable[..., Any]] = {
    "product": lambda x: x @ WEIGHT,
    "comparison": lambda x: x > 0,
    "constant": lambda x: WEIGHT,
    "nothing finite": lambda x: np.where(x > 0, np.inf, np.nan),
    "found": lambda x: x[x[:, 0] > 0],
}
WHOLE: dict[str, Callable[..., Any]] = {
    "mean": lambda x: x.mean(axis=0, keepdims=True),
    "less the mean": lambda x: x - x.mean(axis=0),
    "sum so far": lambda x: np.cumsum(x, axis=0),
    "turned": lambda x: x.T,
    "number": lambda x: x.sum(),
    "size": lambda x: x.shape[0],
    "reversed": lambda x: x[::-1],
}


def opened(data: object, compute: Callable[..., Any], inputs: Sequence[ModelInput] = X, **options: Any) -> DataSource:
    return open_data(data, inputs, DataOptions(**options), Function(compute))


@pytest.mark.parametrize("name", [*ROWWISE, *WHOLE])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_rows_are_samples_where_the_network_makes_of_each_what_it_makes_of_all(name: str, count: int) -> None:
    compute = {**ROWWISE, **WHOLE}[name]
    source = opened([rows(count, seed=seed) for seed in range(4)], compute)
    assert bool(source.rule.whole) == (name in WHOLE)
    assert [len(feed["x"]) for feed in source] == [count] * 4
    if name in WHOLE:
        assert source.rule.count({"x": rows(count)}) == 1
        assert f"each feed is one sample, since {source.rule.whole}" in source.assumptions
    else:
        assert source.rule.count({"x": rows(count)}) == count


def test_float_kernels_may_round_otherwise_for_another_number_of_rows() -> None:
    def compute(x: np.ndarray) -> np.ndarray:
        return x * np.float32(1 + 1e-5 * len(x))

    assert not opened([rows(5)], compute).rule.whole
    assert opened([rows(5)], lambda x: x * np.float32(1 + 0.01 * len(x))).rule.whole


@given(st.integers(1, 40), st.integers(1, 6), st.sampled_from(["array", "batches", "doubled", "samples"]))
def test_a_network_with_a_batch_inside_gets_batches_of_that_size(size: int, count: int, form: str) -> None:
    usual = size <= 8 or size in (16, 32)
    x = rows(size * 2 * count)
    data = {"array": x, "batches": np.split(x, 2 * count), "doubled": np.split(x, count), "samples": list(x)}[form]
    source = opened(data, batch_of(size))
    feeds = [feed["x"] for feed in source]
    np.testing.assert_array_equal(np.concatenate(feeds), x)
    if usual or form == "batches":
        assert {len(feed) for feed in feeds} == {size}


def test_no_trial_is_made_where_operators_or_shapes_show_it() -> None:
    for inputs, network in (
        (X, Function(ROWWISE["product"], rowwise=True)),
        ((ModelInput(name="x", dtype="float32", shape=(2, 3), optional=False),), Function(batch_of(2))),
    ):
        assert not open_data([rows(4)] * 2, inputs, DataOptions(), network).rule.whole
        assert network.runs == 0
        assert network.closed


def test_inputs_of_different_length_are_one_sample_if_the_network_takes_them() -> None:
    inputs = (free(3), free(2, name="z"))
    data = [(rows(n + 2), rows(n, 2)) for n in range(1, 5)]
    source = opened(data, lambda x, z: x.sum() + z.sum(), inputs)
    assert source.rule.whole == "its inputs differ in the length of axis 0: 'x' has 3, 'z' has 1"
    assert len(list(source)) == 4
    arrays = {"x": rows(9), "z": rows(4, 2)}
    (feed,) = opened(arrays, lambda x, z: x.sum() + z.sum(), inputs)
    assert feed["x"].shape == (9, 3)
    for form in (data, arrays):
        with pytest.raises(DataError, match="different numbers of samples: 'x' has"):
            opened(form, lambda x, z: np.concatenate([x, z], axis=1), inputs)


def test_a_later_item_of_different_lengths_is_one_sample_if_the_network_takes_it() -> None:
    inputs = (free(3), free(3, name="z"))
    items = [(rows(4), rows(4)), (rows(4), rows(1)), (rows(4), rows(4))]
    source = opened(items, lambda x, z: x + z, inputs)
    assert [source.rule.count(feed) for feed in source] == [4, 1, 4]
    with pytest.raises(DataError, match="feed 1: the inputs have different numbers of samples: 'x' has 4, 'z' has 3"):
        list(opened([(rows(4), rows(4)), (rows(4), rows(3))], lambda x, z: x + z, inputs))


def test_an_input_that_only_looks_like_the_batch_is_not_cut_with_it() -> None:
    """It has a name of its own, and is as long as the batch in a later feed."""
    inputs = (free(3, batch_name="N"), free(name="places", batch_name="L"))
    source = opened([(rows(n), rows(5, 1)[:, 0]) for n in (2, 5)], lambda x, places: x * places.sum(), inputs)
    _, second = source
    assert source.rule.sample(second, 0)["places"].shape == (5,)


def test_items_without_a_sample_are_left_out_and_one_that_shows_more_is_tried() -> None:
    source = opened([rows(0), rows(4), rows(0), rows(3)], ROWWISE["product"])
    assert [len(feed["x"]) for feed in source] == [4, 3]
    assert "items without a sample are not used" in source.assumptions
    inputs = (free(3, name="nodes"), ModelInput(name="edges", dtype="int64", shape=(2, None), optional=False))

    def graph(nodes: np.ndarray, edges: np.ndarray) -> np.ndarray:
        if edges.size and edges.max() >= len(nodes):
            raise ValueError("no such node")
        return nodes

    edges = np.array([[0, 3], [2, 1]])
    data = [{"nodes": rows(4), "edges": edges[:, :0]}, {"nodes": rows(4), "edges": edges}]
    source = opened(data, graph, inputs)
    assert source.rule.whole
    assert [feed["edges"].shape for feed in source] == [(2, 0), (2, 2)]


def test_a_long_array_of_whole_feeds_is_cut_where_that_is_asked_for() -> None:
    x = rows(100)
    assert [len(feed["x"]) for feed in opened(x, WHOLE["sum so far"])] == [100]
    source = opened(x, WHOLE["sum so far"], batch_size=30, limit=3)
    assert (source.total, [len(feed["x"]) for feed in source]) == (3, [30, 30, 30])
    assert source.rule.whole


def test_what_the_network_never_takes_is_left_to_the_run_that_tells() -> None:
    rule = BatchRule.of(X)
    assert decide(rule, {"x": rows(4)}, None, Function(batch_of(7)), "feed 0") is None
    assert opened([rows(4)], batch_of(7)).rule == rule


def test_a_network_that_cannot_be_run_is_believed_what_its_shapes_say() -> None:
    """It may end in a plugin of the target, which nothing that is quantized needs."""

    def refuse(x: np.ndarray) -> np.ndarray:
        raise ValueError("no such operator")

    for data in (rows(40), [rows(4)] * 10, list(rows(40))):
        source = opened(data, refuse)
        assert source.rule == BatchRule.of(X)
        assert sum(len(feed["x"]) for feed in source) == 40
