"""What a calibration on a cluster costs, by arithmetic: how long it takes, what is merged where, what a loss costs.

docs/scaling.md explains it with an example, and the tests hold it to a simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from amct_onnx.engine.scattered import MOST_ITEMS


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one worker takes, in seconds: `sample` to count one sample, `start` until it begins, `merge` to merge two
    outcomes. size: bytes of an outcome. bandwidth: bytes in a second between two nodes."""

    sample: float
    start: float
    merge: float
    size: int
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What it comes to. Times are in seconds.

    shards: of `shard` samples, but for the last. turns: of them for each worker. counting: without any merging.
    merging: by each worker while it counts. gathering: what is merged of the workers in the end, in a tree. fetched:
    outcomes that the driver fetches. driver: how long it fetches and merges, most of it while workers count. seconds:
    all of it. efficiency: what the workers would take without the rest, as a share of `seconds`. loss: how long the
    other workers take at most to count again what a node had, when it is lost.
    """

    shard: int
    shards: int
    turns: int
    counting: float
    merging: float
    gathering: float
    fetched: int
    driver: float
    seconds: float
    efficiency: float
    loss: float


def cost(measured: Measured, *, samples: int, shard: int, nodes: int, workers: int) -> Cost:
    """The cost of a calibration with `samples` samples in shards of `shard`, on `nodes` nodes of `workers` workers."""
    everyone = nodes * workers
    shards = math.ceil(samples / shard)
    turns = math.ceil(shards / everyone)
    counting = turns * shard * measured.sample
    merging = (turns - 1) * measured.merge
    at_home = math.ceil(math.log2(workers)) * measured.merge
    across = math.ceil(math.log2(nodes)) * (measured.merge + measured.size / measured.bandwidth)
    fetched = max(1, shards // MOST_ITEMS)
    fetch = measured.merge + measured.size / measured.bandwidth
    driver = fetched * fetch
    # The driver works while the others count, but for what comes in the end, when all have less than it fetches.
    last = min(fetched, math.ceil(everyone / MOST_ITEMS)) * fetch
    rest = max(last, driver - counting)
    seconds = measured.start + counting + merging + at_home + across + rest
    again = math.ceil(min(turns, MOST_ITEMS) * workers / max(workers, everyone - workers))
    return Cost(
        shard=shard,
        shards=shards,
        turns=turns,
        counting=counting,
        merging=merging,
        gathering=at_home + across,
        fetched=fetched,
        driver=driver,
        seconds=seconds,
        efficiency=samples * measured.sample / everyone / seconds,
        loss=again * shard * measured.sample,
    )
