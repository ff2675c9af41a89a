"""Keeps some samples of calibration data, or holds them out of it, while the data are read once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from amct_onnx.data.open_data import DataSource
from amct_onnx.numerics.arrays import Feed

_SHARE = 4  # one sample of so many is held out at most


class SampleKeeper:
    """The feeds of `source`, of which up to `most` samples are kept. When iteration has ended, they are in `kept`.

    They are spread over the data if its length is known. With `hold_out`, the samples that are kept are not among the
    feeds, and they are at most a quarter of all. Of fewer than four samples none is held out, and the first one is kept
    nevertheless. `rule` of the source says what a sample is: a feed of one row, or a whole feed.
    """

    def __init__(self, source: DataSource, *, most: int, hold_out: bool) -> None:
        self._source, self._most, self._hold_out = source, most, hold_out
        self._rule = source.rule
        self.kept: list[Feed] = []
        self.notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of feeds. Raises TypeError if it is unknown."""
        if self._source.total is None:
            raise TypeError("the length of the data is unknown")
        return self._source.total

    def __iter__(self) -> Iterator[Feed]:
        seen, first = 0, None
        for number, feed in enumerate(self._source, 1):
            rows = self._rule.count(feed)
            seen += rows
            total = self._source.total
            due = (number * self._most // total if total else self._most) - len(self.kept)
            due = min(due, self._most - len(self.kept), rows if total else 1)
            if self._hold_out:
                due = min(due, seen // _SHARE - len(self.kept))
                first = first or self._rule.sample(feed, 0)
            due = max(due, 0)
            self.kept += [self._rule.sample(feed, index) for index in range(due)]
            if not self._hold_out or due == 0:
                yield feed
            elif due < rows:
                yield self._rule.cut(feed, due, rows)
        if self._hold_out and self.kept:
            self.notes = (f"{len(self.kept)} of {seen} samples judge, and do not calibrate",)
        elif first is not None and not self.kept:
            self.kept.append(first)
            self.notes = ("there are too few samples to hold some out, so one of them judges its own calibration",)

    def spread(self, count: int) -> list[Feed]:
        """Up to `count` of the samples that were kept, at equal distances."""
        places = np.linspace(0, len(self.kept), min(count, len(self.kept)), endpoint=False).astype(int)
        return [self.kept[place] for place in places]
