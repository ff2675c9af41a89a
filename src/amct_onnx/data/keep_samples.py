"""Keeps some samples of calibration data, or holds them out of it, while the data are read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.data.batches import Note, quiet
from amct_onnx.data.data_source import DataSource
from amct_onnx.data.feed_parts import FeedParts, NumberedFeed
from amct_onnx.numerics.arrays import Feed, Int64s

_SHARE = 4  # one sample of so many is held out at most
_LEAST, _MOST_BYTES = 16, 1 << 26  # so many are kept and held out in any case, and more within so many bytes


class SampleKeeper:
    """The feeds of `source`, of which samples are kept. When iteration has ended, up to `most` of those that calibrate
    are in `kept`, and up to `hold_out` others in `held_out`.

    They are spread over the data if its length is known. The samples that are held out are not among the feeds, and
    they are at most a quarter of all. Of fewer than four samples none is held out, and the first one stands for them
    nevertheless. Large samples are kept up to 64 MiB. `rule` of the source says what a sample is: a feed of one row, or
    a whole feed.

    `gather` takes the place of iterating to the end where others read the feeds, by `parts`, or nobody does.
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
        plan: _Plan | None = None
        for feed in self._source:
            plan = plan or self._plan(feed)
            rows = self._rule.count(feed)
            out, keep = plan.next(rows)
            self._take(feed, out, keep)
            if out == 0:
                yield feed
            elif out < rows:
                yield self._rule.cut(feed, out, rows)
        if plan is not None:
            self._tell(plan)

    def parts(self) -> FeedParts | None:
        """The feeds that iterating gives by number, for whoever sees the files; None where only this process can read
        them, or where what cannot be read would change which samples are held out."""
        whole = self._source.parts
        if whole is None or whole.skips:
            return None
        plan = self._plan(next(whole.read(0, 1)))
        rows = _rows(whole)
        out = np.array([plan.next(count)[0] for count in rows.tolist()], np.int64)
        used = np.flatnonzero(out < rows)
        places = np.concatenate([[0], np.cumsum((rows - out)[used])])
        return _WithoutHeldOut(
            total=used.size,
            inputs=whole.inputs,
            declared=whole.declared,
            rule=whole.rule,
            skips=False,
            whole=whole,
            used=used,
            out=out[used],
            places=places,
        )

    def gather(self) -> None:
        """Read the samples to keep and to hold out, where others read the feeds or nobody does: as far as these can be
        read by number, no others are."""
        whole = self._source.parts
        if whole is None or whole.skips:
            for _ in self:
                pass
            return
        self.kept, self.held_out = [], []
        plan = self._plan(next(whole.read(0, 1)))
        for number, rows in enumerate(_rows(whole).tolist()):
            out, keep = plan.next(rows)
            for feed in whole.read(number, number + 1) if out or keep else ():
                self._take(feed, out, keep)
        self._tell(plan)

    def _plan(self, feed: Feed) -> _Plan:
        first = self._rule.sample(feed, 0)
        cheap = max(_LEAST, _MOST_BYTES // max(1, sum(array.nbytes for array in first.values())))
        most, hold_out = min(self._most, cheap), min(self._hold_out, cheap)
        return _Plan(first=first, total=self._source.total, most=most, hold_out=hold_out)

    def _take(self, feed: Feed, out: int, keep: int) -> None:
        self.held_out += [self._rule.sample(feed, index) for index in range(out)]
        self.kept += [self._rule.sample(feed, index) for index in range(out, out + keep)]

    def _tell(self, plan: _Plan) -> None:
        if self._hold_out and self.held_out:
            self.notes = (f"{len(self.held_out)} of {plan.seen} samples judge, and do not calibrate",)
        elif self._hold_out:
            self.held_out.append(plan.first)
            self.notes = ("there are too few samples to hold some out, so one of them judges its own calibration",)

    def spread(self, count: int) -> list[Feed]:
        """Up to `count` of the samples that were kept, at equal distances."""
        places = np.linspace(0, len(self.kept), min(count, len(self.kept)), endpoint=False).astype(int)
        return [self.kept[place] for place in places]


@dataclass(kw_only=True)
class _Plan:
    """How many samples of one feed after the other are held out and kept; nothing but their numbers counts."""

    first: Feed
    total: int | None
    most: int
    hold_out: int
    feeds: int = 0
    seen: int = 0
    held_out: int = 0
    kept: int = 0

    def next(self, rows: int) -> tuple[int, int]:
        """Of the next feed: the first ones are held out, and the next ones kept."""
        self.feeds, self.seen = self.feeds + 1, self.seen + rows
        out = self._due(self.hold_out, self.held_out, rows)
        out = max(min(out, self.seen // _SHARE - self.held_out), 0)
        self.held_out += out
        keep = self._due(self.most, self.kept, rows - out)
        self.kept += keep
        return out, keep

    def _due(self, most: int, taken: int, rows: int) -> int:
        """So that `most` of them are spread over feeds of a known number."""
        due = self.feeds * most // self.total if self.total else most
        return max(min(due - taken, rows if self.total else min(1, rows)), 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _WithoutHeldOut(FeedParts):
    """The feeds of `whole` without the first `out` samples of each; `used` are the numbers of those of which something
    is left, and `places` how many samples are in front of each. int64 each."""

    whole: FeedParts
    used: Int64s
    out: Int64s
    places: Int64s

    def numbered(self, first: int, last: int, note: Note = quiet) -> Iterator[NumberedFeed]:
        start = first
        while start < last:
            stop = start + 1
            while stop < last and self.used[stop] == self.used[stop - 1] + 1:
                stop += 1
            run = self.whole.numbered(int(self.used[start]), int(self.used[stop - 1]) + 1, note)
            for number, made in enumerate(run, start):
                yield replace(made, number=number, feed=self._cut(made.feed, int(self.out[number])))
            start = stop

    def _cut(self, feed: Feed | None, out: int) -> Feed | None:
        return feed if feed is None or not out else self.rule.cut(feed, out, self.rule.rows(feed))

    def place(self, feed: int) -> int:
        return int(self.places[feed])


def _rows(parts: FeedParts) -> Int64s:
    """How many samples each feed has, int64[total]."""
    return np.diff([parts.place(number) for number in range(parts.total + 1)])
