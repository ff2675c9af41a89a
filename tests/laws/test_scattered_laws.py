"""Laws of work that is scattered over a cluster: whatever is lost, and when, the answer is that of one worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lossy_crew import LossyCrew

from amct_onnx.engine.scattered import map_scattered, merge_scattered

CREWS = st.builds(LossyCrew, seed=st.integers(0, 10**6), nodes=st.integers(1, 5), losses=st.integers(0, 12))


class Bags:
    """Makes of a number the bag that holds it: one that is lost or counted twice is seen in what they merge to."""

    @contextmanager
    def open(self) -> Iterator[Callable[[int], tuple[int, ...]]]:
        yield lambda number: (number,)


def merged(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(one + other))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up where many workers are lost with one item, as happens by chance."""
    monkeypatch.setattr("amct_onnx.engine.scattered._MOST_LOST", 99)


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CREWS, st.integers(0, 300))
def test_each_item_is_merged_once(crew: LossyCrew, count: int) -> None:
    assert merge_scattered(crew, Bags(), range(count), merged) == (tuple(range(count)) if count else None)


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CREWS, st.integers(0, 100))
def test_outcomes_come_in_order(crew: LossyCrew, count: int) -> None:
    assert list(map_scattered(crew, Bags(), range(count))) == [(number,) for number in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_the_driver_fetches_few_things(seed: int) -> None:
    crew = LossyCrew(seed, nodes=4, losses=0)
    assert merge_scattered(crew, Bags(), range(1000), merged) == tuple(range(1000))
    assert crew.done == 1000
    assert crew.fetched <= 1000 / 64 + 1
    assert crew.most_at_a_time <= 8


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_node_takes_little_with_it(seed: int) -> None:
    crew = LossyCrew(seed, nodes=4, losses=4)
    assert merge_scattered(crew, Bags(), range(1000), merged) == tuple(range(1000))
    assert crew.lost == 4
    assert crew.done <= 1000 + 4 * (2 * 64 + 2)
