"""Binary search over the layers that stay in float."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.amct.binary_search import BinarySearchStrategy


def search(ranking: dict[str, float], satisfies: Callable[[int], bool]) -> tuple[list[int], int]:
    """How many layers each trial rolled back, and how many the answer does; `satisfies` judges such a number."""
    strategy = BinarySearchStrategy()
    strategy.initialize(dict(ranking))
    order = sorted(ranking, key=lambda layer: ranking[layer])
    trials, verdict = [], False
    while True:
        answer = strategy.update_quant_config((verdict, 0.0))
        config = answer["roll_back_config"]
        assert list(config) == order
        count = list(config.values()).count(False)
        assert list(config.values()) == [False] * count + [True] * (len(order) - count)  # the most sensitive first
        if answer["stop_flag"]:
            return trials, count
        trials.append(count)
        verdict = satisfies(count)


@given(st.integers(1, 300), st.data())
def test_it_finds_the_fewest_layers_in_log2_trials(layers: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, layers))
    ranking = {f"l{i}": 1 - i / 1000 for i in range(layers)}
    trials, answer = search(ranking, lambda count: count >= needed)
    assert answer == needed
    assert len(trials) == len(set(trials)) <= layers.bit_length()
    assert answer in trials  # a configuration that was tried


@given(st.integers(1, 60), st.data())
def test_the_answer_of_any_verdicts_is_the_last_that_satisfied(layers: int, data: st.DataObject) -> None:
    verdicts = [data.draw(st.booleans()) for _ in range(layers)]
    trials, answer = search({f"l{i}": i / 100 for i in range(layers)}, lambda count: verdicts[count - 1])
    good = [count for count in trials if verdicts[count - 1]]
    assert answer == (good[-1] if good else layers)


def test_it_takes_amcts_steps() -> None:
    # left, right = 0, 9: mid 4 (5 layers); no: mid 7 (8 layers); yes: mid 5 (6 layers); no: mid 6 (7 layers); yes: stop
    trials, answer = search({f"l{i}": i / 10 for i in range(10)}, lambda count: count in (7, 8))
    assert trials == [5, 8, 6, 7]
    assert answer == 7


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_nothing_satisfies(layers: int) -> None:
    trials, answer = search({f"l{i}": float(i) for i in range(layers)}, lambda count: False)
    assert answer == layers
    assert trials[-1] == layers


def test_equal_sensitivities_keep_the_order_of_the_graph() -> None:
    strategy = BinarySearchStrategy()
    strategy.initialize({"b": 1.0, "a": 1.0, "c": 0.5})
    config = strategy.update_quant_config((False, 1.0))["roll_back_config"]
    assert config == OrderedDict(c=False, b=False, a=True)


def test_it_can_be_used_again() -> None:
    strategy = BinarySearchStrategy()
    for _ in range(2):
        strategy.initialize({"a": 0.1, "b": 0.2, "c": 0.3})
        assert list(strategy.update_quant_config((False, 1.0))["roll_back_config"].values()) == [False, False, True]
        answer = strategy.update_quant_config((True, 0.0))
        assert not answer["stop_flag"]
        assert strategy.update_quant_config((True, 0.0))["stop_flag"]


def test_all_layers_quantized_may_satisfy() -> None:
    strategy = BinarySearchStrategy()
    strategy.initialize({"a": 0.1, "b": 0.2})
    answer = strategy.update_quant_config((True, 0.0))
    assert answer == {"stop_flag": True, "roll_back_config": {"a": True, "b": True}}
