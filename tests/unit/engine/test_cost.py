"""What a cluster costs, played through; and 64 shards on 64 nodes, some lost, merge to what one worker counts."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

import numpy as np
import pytest
from lossy_crew import LossyEngine

from amct_onnx.engine.cost import Cost, Measured, cost
from amct_onnx.numerics.statistics.histogram import DyadicHistogram
from amct_onnx.values.counts import Counts, merged_counts

SHARDS, SAMPLES = 64, 500
MEASURED = Measured(sample=0.02, start=5.0, merge=0.02, size=10 << 20, bandwidth=1e9)
MILLION = cost(MEASURED, samples=1_000_000, shard=248, nodes=64, workers=8)


def shard(number: int) -> dict[str, np.ndarray]:
    """What three tensors hold over a shard: ranges that grow from shard to shard, and a rare value."""
    draw = np.random.default_rng(number)
    values = draw.standard_normal(SAMPLES).astype(np.float32) * np.float32(1 + number % 7)
    return {"a": values, "b": np.maximum(values, 0), "c": np.append(values[:3], np.float32(1000 * (number == 13)))}


class Counting:
    """Counts what a shard holds."""

    @contextmanager
    def open(self) -> Iterator[Callable[[int], Counts]]:
        yield lambda number: counts(shard(number))


def counts(tensors: dict[str, np.ndarray]) -> Counts:
    return Counts(
        tensors={name: DyadicHistogram.of(array) for name, array in tensors.items()}, feeds=1, samples=SAMPLES
    )


@pytest.fixture(scope="module")
def one_worker() -> dict[str, DyadicHistogram]:
    every = [shard(number) for number in range(SHARDS)]
    return {name: DyadicHistogram.of(np.concatenate([one[name] for one in every])) for name in every[0]}


@pytest.mark.parametrize("seed", range(5))
def test_a_cluster_that_loses_nodes_counts_what_one_worker_counts(
    one_worker: dict[str, DyadicHistogram], seed: int
) -> None:
    engine = LossyEngine(seed, nodes=64, losses=25)
    found = engine.merge(Counting(), range(SHARDS), merged_counts)
    assert found is not None
    assert dict(found.tensors) == one_worker
    assert (found.feeds, found.samples) == (SHARDS, SHARDS * SAMPLES)
    assert engine.crew.lost > 15
    assert engine.crew.done > SHARDS  # some were counted again


@pytest.mark.parametrize("seed", range(5))
def test_any_tree_merges_to_what_one_worker_counts(one_worker: dict[str, DyadicHistogram], seed: int) -> None:
    draw = random.Random(seed)
    trees = [counts(shard(number)) for number in range(SHARDS)]
    while len(trees) > 1:
        one, other = (trees.pop(draw.randrange(len(trees))) for _ in range(2))
        trees.append(merged_counts(one, other))
    assert dict(trees[0].tensors) == one_worker


def test_a_million_samples_on_64_nodes() -> None:
    assert (MILLION.shards, MILLION.turns) == (4033, 8)
    assert MILLION.counting == pytest.approx(8 * 248 * 0.02)
    assert MILLION.seconds == pytest.approx(simulated(MILLION, nodes=64, workers=8), rel=0.05)
    assert MILLION.efficiency > 0.8


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (1, 8), (2, 1), (16, 4)])
def test_the_arithmetic_is_that_of_a_simulation(nodes: int, workers: int) -> None:
    found = cost(MEASURED, samples=100_000, shard=200, nodes=nodes, workers=workers)
    assert found.seconds == pytest.approx(simulated(found, nodes=nodes, workers=workers), rel=0.05)


def simulated(found: Cost, *, nodes: int, workers: int) -> float:
    """The time at which all is merged, by playing it through: who is free first takes the next shard."""
    free = [(MEASURED.start, worker, 0) for worker in range(nodes * workers)]
    for _ in range(found.shards):
        time, worker, done = heapq.heappop(free)
        heapq.heappush(free, (time + found.shard * MEASURED.sample + bool(done) * MEASURED.merge, worker, done + 1))
    send = MEASURED.size / MEASURED.bandwidth
    at_home = [[time for time, worker, done in free if worker % nodes == node and done] for node in range(nodes)]
    there = [tree(times, MEASURED.merge) for times in at_home if times]
    root = tree(there, MEASURED.merge + send)
    return root + min(found.fetched, -(-nodes * workers // 64)) * (MEASURED.merge + send)


def tree(times: list[float], seconds: float) -> float:
    """When all of them are merged in pairs, those that are there first before the others."""
    heapq.heapify(times)
    while len(times) > 1:
        heapq.heapreplace(times, max(heapq.heappop(times), times[0]) + seconds)
    return reduce(max, times)
