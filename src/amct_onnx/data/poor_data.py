"""Finds calibration data that cannot calibrate: all zero, constant, all alike, too few; a look at each feed as it goes.

Nothing is refused: a network may have an input that is the same for all samples, as a mask.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from amct_onnx.data.batches import BatchRule
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.words import either

ADVISED = 32  # samples, which most ranges need to settle
_FEW = 8  # samples: fewer leave the ranges to chance
_LOOKED = 64  # samples whose content is compared
_DECIDE = 48  # samples; a recipe looks at about so many, the first ones
_PICTURE = 4  # axes: an input of so many is no mask, and no state of zeros
_log = logging.getLogger("amct_onnx.Data")


def checked(feeds: Iterator[Feed], rule: BatchRule) -> Iterator[Feed]:
    """The same feeds; when the last one was taken, or no more are wanted, a warning for each thing that is wrong."""
    check = DataCheck(rule)
    try:
        for feed in feeds:
            check.look(feed)
            yield feed
    except GeneratorExit:
        check.tell()
        raise
    check.tell()


def sorted_by_class(classes: Sequence[str]) -> str:
    """A sentence where the first samples are of few of the classes, "" where they are not, or are all that there are.

    classes: that of each sample, in their order.
    """
    first, everything = set(classes[:_DECIDE]), set(classes)
    if len(classes) <= _DECIDE or len(first) > len(everything) // 2:
        return ""
    return (
        f"The images are sorted by class: the first {_DECIDE}, which decide what helps, are of {len(first)} of "
        f"{len(everything)} classes. {either('Give a shuffled list of their paths.', 'Mix their names in one folder.')}"
    )


class DataCheck:
    """Looks at feeds, of which `rule` says where the samples are, and says what is wrong with all of them together."""

    def __init__(self, rule: BatchRule) -> None:
        self._rule = rule
        self._constant: dict[str, set[float]] = {}  # the values of inputs that are constant within each sample
        self._varied: set[str] = set()
        self._shapes: dict[str, tuple[int, ...]] = {}  # of a sample of each input
        self._marks: list[int] = []  # checksums of samples
        self._samples = 0

    def look(self, feed: Feed) -> None:
        """At one feed."""
        batched = self._rule.names(feed)
        for name in feed.keys() - self._varied:
            array = np.asarray(feed[name])
            self._look_at(name, array if name in batched and array.ndim > 1 else array[None])
        for index in range(min(self._rule.count(feed), _LOOKED - len(self._marks))):
            self._marks.append(_checksum(self._rule.sample(feed, index)))
        self._samples += self._rule.rows(feed)

    def _look_at(self, name: str, rows: Array) -> None:
        self._shapes[name] = rows.shape
        if rows.dtype.kind not in "biuf" or not rows.size:
            self._varied.add(name)
            return
        flat = rows.reshape(len(rows), -1)
        least = flat.min(axis=1)
        if flat.shape[1] == 1 or not np.array_equal(least, flat.max(axis=1)):
            self._varied.add(name)
        elif len(self._constant.setdefault(name, set())) < _LOOKED:
            self._constant[name] |= {float(value) for value in least[:_LOOKED]}

    def tell(self) -> None:
        """Log what was found."""
        for text in self.warnings():
            _log.warning("%s", text)

    def warnings(self) -> list[str]:
        """What a user should know of the data, a sentence or two each."""
        if not self._samples:
            return []
        found = [self._about(name) for name in self._flat_inputs()]
        distinct, looked = len(set(self._marks)), len(self._marks)
        enough = f"Give {ADVISED} or more that are like those of the real work."
        if self._samples == 1:
            found.append(f"One sample calibrates, whose ranges are those of no other. {enough}")
        elif distinct == 1 and looked > 1 and not found:
            found.append(f"All samples are identical, so that they say no more than one. {enough}")
        elif self._samples < _FEW:
            found.append(f"Only {self._samples} samples calibrate, and leave the ranges to chance. {enough}")
        elif distinct <= looked // 2 and not found:
            found.append(f"Only {distinct} of the first {looked} samples differ, the others are copies. {enough}")
        return found

    def _flat_inputs(self) -> list[str]:
        """The inputs that hold nothing: pictures that do, and all the largest inputs where all of them do."""
        flat = [name for name in self._shapes if name not in self._varied]
        sizes = {name: int(np.prod(shape[1:])) for name, shape in self._shapes.items()}
        largest = [name for name, size in sizes.items() if size == max(sizes.values())]
        if set(largest) <= set(flat):
            return [name for name in flat if name in largest or len(self._shapes[name]) >= _PICTURE]
        return [name for name in flat if len(self._shapes[name]) >= _PICTURE]

    def _about(self, name: str) -> str:
        values = self._constant[name]
        what = "all zero" if values == {0.0} else f"constant, all {min(values):.4g}" if len(values) == 1 else ""
        what = what or "constant within each sample"
        return f"The data of input {name!r} are {what}: they calibrate nothing. Check how they are read and prepared."


def _checksum(sample: Feed) -> int:
    mark = 0
    for name in sorted(sample):
        array = np.asarray(sample[name])
        content = array.astype(str) if array.dtype.hasobject else array
        mark = zlib.crc32(np.ascontiguousarray(content).view(np.uint8).reshape(-1).data, mark)
    return mark
