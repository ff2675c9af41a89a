"""What an effort tries, and the first samples of the data, on which it tries it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from amct_onnx.data.batches import BatchRule, joined
from amct_onnx.numerics.arrays import Feed
from amct_onnx.ptq.recipe.rounding import Method
from amct_onnx.values.findings import Effort

_SMALL = 1 << 16  # bytes: smaller samples are cheap, and say less
_MORE, _MORE_QUICK = 2, 4  # so many times as many of them are kept, and serve for what few would
_SHARE, _ENOUGH = 3, 16  # one sample of three judges, and as many as that if half of all are
_TOKEN = 1 << 10  # bytes that an integer of 32 or 64 bits counts as: it stands for a vector
_MOST_ROWS, _BATCH = 8, 1 << 18  # of the samples that are kept, so many run at once, of at most so many bytes


@dataclass(frozen=True, kw_only=True)
class EffortPlan:
    """What an effort tries.

    samples: so many are kept, of at most `memory` bytes together; without any, nothing is tried. quick: of those to
    fit, so many are for a first quantization, a multiple of `group`, in which the calmest are looked for. strengths: of
    equalization without and with a Clip. smooth: strengths of SmoothQuant. thorough: all of them are tried, and not
    those until one helps or the promising ones. rounding: methods. ranges: on so many samples it is measured what
    ranges cost.
    """

    samples: int
    memory: int
    quick: int
    group: int
    strengths: tuple[tuple[float, float], ...]
    smooth: tuple[float, ...]
    thorough: bool
    rounding: tuple[Method, ...]
    ranges: int

    def for_samples_of(self, size: int) -> EffortPlan:
        """The plan for samples of so many bytes: more of them if they are small."""
        if size > _SMALL:
            return self
        more = _MORE_QUICK
        return replace(
            self,
            samples=self.samples * _MORE,
            quick=self.quick * more,
            group=self.group * more,
            ranges=self.ranges * more,
        )


PLANS: Mapping[Effort, EffortPlan] = {
    "fast": EffortPlan(
        samples=0, memory=0, quick=0, group=0, strengths=(), smooth=(), thorough=False, rounding=(), ranges=0
    ),
    "default": EffortPlan(
        samples=48,
        memory=96 << 20,
        quick=8,
        group=4,
        strengths=((0.5, 0.25),),
        smooth=(0.5, 0.7),
        thorough=False,
        rounding=("gptq",),
        ranges=0,
    ),
    "best": EffortPlan(
        samples=96,
        memory=96 << 20,
        quick=32,
        group=4,
        strengths=((0.5, 0.25), (0.7, 0.25), (0.7, 0.4)),
        smooth=(0.5, 0.7, 0.85),
        thorough=True,
        rounding=("gptq", "adaround"),
        ranges=24,
    ),
}


class FirstSamples:
    """The first samples of `feeds`. Either of `all` and `others` gives feeds, once.

    `rule` says what a sample is: a feed of one row, or a whole feed. `plan` is that for their size, and `rows` of them
    make a batch that costs little. `whole` of the feeds that were `read` have all their samples here; `left` is the
    rest of the last one, if there is one.
    """

    def __init__(self, feeds: Iterator[Feed], rule: BatchRule, plan: EffortPlan) -> None:
        self._rule = rule
        self.samples: list[Feed] = []
        self.plan, self.rows = plan, 1
        self.left: list[Feed] = []
        read: list[Feed] = []
        size = 0
        while len(self.samples) < self.plan.samples and size < plan.memory and (feed := next(feeds, None)) is not None:
            count = rule.count(feed)
            if not read:
                bytes_of_one = sum(array.nbytes for array in feed.values()) // max(1, count)
                tokens = sum(array.size for array in feed.values() if array.dtype in (np.int32, np.int64)) // max(
                    1, count
                )
                self.plan = plan.for_samples_of(bytes_of_one + _TOKEN * tokens)
                self.rows = max(1, min(_MOST_ROWS, _BATCH // max(1, bytes_of_one + _TOKEN * tokens)))
            read.append(feed)
            taken = min(count, self.plan.samples - len(self.samples))
            for index in range(taken):
                self.samples.append(rule.sample(feed, index))
                size += sum(array.nbytes for array in self.samples[-1].values())
            if taken < count:
                self.left.append(rule.cut(feed, taken, count))
        self.read, self.whole = len(read), len(read) - len(self.left)
        self._read, self._behind = read, feeds

    def all(self) -> Iterator[Feed]:
        """All feeds as they came."""
        return chain(self._read, self._behind)

    def others(self) -> Iterator[Feed]:
        """What is behind the samples: the rest of the feed in which the last of them was, and the feeds behind it."""
        self._read = []  # the memory is free
        return chain(self.left, self._behind)

    def close(self) -> None:
        """Read no more: neither `all` nor `others` is asked for any more."""
        self._read = []
        if isinstance(self._behind, Generator):
            self._behind.close()

    def count(self) -> int:
        """How many rows the samples have: more than there are of them if the model fixes the batch."""
        return sum(map(self._rule.rows, self.samples))

    def judges(self) -> range:
        """Which of the samples judge: a third at least, at equal distances. The others are to fit."""
        count = len(self.samples)
        return range(0, count, max(1, count // max(count // _SHARE, min(_ENOUGH, count // 2), 1)))

    def batches(self, samples: Sequence[Feed], rows: int) -> list[Feed]:
        """Some of `samples` in batches of so many, whatever the batches were that they came in."""
        return joined(samples, self._rule, rows)
