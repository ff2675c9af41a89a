"""Which samples behind the first ones are kept, to judge by them what all data have done: some at equal distances."""

from __future__ import annotations

from amct_onnx.data.batches import BatchRule
from amct_onnx.numerics.arrays import Feed

_MOST = 24


def most_kept(first: Feed, memory: int) -> int:
    """How many samples like the first one go into so many bytes, within 1 and 24."""
    return max(1, min(_MOST, memory // max(1, sum(array.nbytes for array in first.values()))))


def kept_places(count: int, most: int) -> range:
    """The places of up to `most` of `count` samples, at equal distances: a power of two."""
    distance = 1
    while -(-count // distance) > most:
        distance *= 2
    return range(0, count, distance)


class LaterSamples:
    """Keeps them while feeds go by, whose number nobody knows: those at the `kept_places` of all that have come.

    most: so many at most; none for 0.
    """

    def __init__(self, rule: BatchRule, most: int) -> None:
        self._rule, self.most, self._distance = rule, most, 1
        self.kept: list[Feed] = []

    def look(self, feed: Feed, place: int) -> None:
        """Keep what is due of a feed. place: that of its first sample, behind the first ones; below 0 it is in front
        of them."""
        for index in range(self._rule.count(feed)) if self.most else ():
            if place + index < 0 or (place + index) % self._distance:
                continue
            self.kept.append(self._rule.sample(feed, index))
            if len(self.kept) > self.most:
                self.kept, self._distance = self.kept[::2], 2 * self._distance
