"""Keeps some samples of calibration data, or holds them out of it, while the data are read once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from amct_onnx.data.data_source import DataSource
from amct_onnx.numerics.arrays import Feed

_SHARE = 4  # one sample of so many is held out at most
_LEAST, _MOST_BYTES = 16, 1 << 26  # so many are kept and held out in any case, and more within so many bytes


class SampleKeeper:
    """The feeds of `source`, of which samples are kept. When iteration has ended, up to `most` of those that calibrate
    are in `kept`, and up to `hold_out` others in `held_out`.

    They are spread over the data if its length is known. The samples that are held out are not among the feeds, and
    they are at most a quarter of all. Of fewer than four samples none is held out, and the first one stands for them
    nevertheless. Large samples are kept up to 64 MiB. `rule` of the source says what a sample is: a feed of one row, or
    a whole feed.
    """

    def __init__(self, source: DataSource, *, most: int, hold_out: int = 0) -> None:
        self._source, self._most, self._hold_out = source, most, hold_out
        self._rule = source.rule
        self.kept: list[Feed] = []
        self.held_out: list[Feed] = []
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
            if first is None:
                first = self._rule.sample(feed, 0)
                cheap = max(_LEAST, _MOST_BYTES // max(1, sum(array.nbytes for array in first.values())))
                self._most, self._hold_out = min(self._most, cheap), min(self._hold_out, cheap)
            out = self._due(number, self._hold_out, len(self.held_out), rows)
            out = max(min(out, seen // _SHARE - len(self.held_out)), 0)
            self.held_out += [self._rule.sample(feed, index) for index in range(out)]
            keep = self._due(number, self._most, len(self.kept), rows - out)
            self.kept += [self._rule.sample(feed, index) for index in range(out, out + keep)]
            if out == 0:
                yield feed
            elif out < rows:
                yield self._rule.cut(feed, out, rows)
        if self._hold_out and self.held_out:
            self.notes = (f"{len(self.held_out)} of {seen} samples judge, and do not calibrate",)
        elif self._hold_out and first is not None:
            self.held_out.append(first)
            self.notes = ("there are too few samples to hold some out, so one of them judges its own calibration",)

    def _due(self, number: int, most: int, taken: int, rows: int) -> int:
        """How many samples of a feed are taken, so that `most` of them are spread over feeds of a known number."""
        total = self._source.total
        due = number * most // total if total else most
        return max(min(due - taken, rows if total else min(1, rows)), 0)

    def spread(self, count: int) -> list[Feed]:
        """Up to `count` of the samples that were kept, at equal distances."""
        places = np.linspace(0, len(self.kept), min(count, len(self.kept)), endpoint=False).astype(int)
        return [self.kept[place] for place in places]
