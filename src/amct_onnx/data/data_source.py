"""Calibration data as the feeds of a model, and what is known of them: `DataSource`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property

from amct_onnx.data.batches import BatchRule, Note
from amct_onnx.data.feed_parts import FeedParts
from amct_onnx.data.poor_data import checked
from amct_onnx.data.skipped_samples import SkippedTally, tell_skipped
from amct_onnx.errors import DataError
from amct_onnx.numerics.arrays import Feed
from amct_onnx.progress import Progress, say_before
from amct_onnx.values.skipped_data import SkippedData

_log = logging.getLogger("amct_onnx.Quantize")


class DataSource:
    """Feeds `{input: array}` in the types and shapes of a model. It can be iterated over once.

    `total` is the number of feeds, None if only the end of the data shows it. `rule` says where their samples are.
    `sorted_by_class`: a sentence where the first samples show only some of the classes that all of them do; else "".
    """

    def __init__(
        self,
        feeds: Iterator[Feed],
        *,
        total: int | None,
        rule: BatchRule,
        notes: dict[str, None],
        sorted_by_class: str = "",
        parts: Callable[[], FeedParts | None] = lambda: None,
        tally: SkippedTally | None = None,
    ) -> None:
        self._feeds: Iterator[Feed] | None = feeds
        self.total, self.rule, self.sorted_by_class = total, rule, sorted_by_class
        self._notes, self._parts = notes, parts
        self._tally, self._told = tally, False

    @cached_property
    def parts(self) -> FeedParts | None:
        """The same feeds by number, for whoever sees the files; None for what only this iterator can read, as arrays in
        memory and iterables. Feeds that were taken do not count. Raises DataError for files that cannot be read."""
        return self._parts()

    @property
    def skips(self) -> bool:
        """Whether what cannot be read is left out."""
        return self._tally is not None

    @property
    def skipped(self) -> SkippedData:
        """What could not be read of the feeds so far, and was left out."""
        return SkippedData() if self._tally is None else self._tally.value

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed or changed because the user did not say it, a sentence each. Iterating may add to them."""
        return tuple(self._notes)

    def __iter__(self) -> Iterator[Feed]:
        """The feeds. Raises DataError, with the file or the number of the sample, for data that do not fit.

        In the end a warning is logged for what they cannot calibrate: data that are constant, alike, or few.
        """
        return checked(self.unchecked(), self.rule)

    def unchecked(self) -> Iterator[Feed]:
        """The feeds, for work that calibrates nothing: few or equal samples are fine then.

        A warning tells in the end what was left out. Raises DataError where that is all.
        """
        return self._taken() if self._tally is None else self._telling(self._taken())

    def _telling(self, feeds: Iterator[Feed]) -> Iterator[Feed]:
        samples = 0
        try:
            for feed in feeds:
                samples += self.rule.rows(feed)
                yield feed
        except GeneratorExit:
            if samples and "parts" not in self.__dict__:  # else whoever reads those tells
                self.tell(self.skipped, samples)
            raise
        self.tell(self.skipped, samples)

    def tell(self, skipped: SkippedData, samples: int) -> None:
        """Warn of what was left out beside so many samples, unless that was told. Raises DataError where there are
        none."""
        if not self._told:
            self._told = bool(skipped)
            tell_skipped(skipped, samples)

    def _taken(self) -> Iterator[Feed]:
        feeds, self._feeds = self._feeds, None
        if feeds is None:
            raise DataError("the calibration data were read already, open them again for a second pass")
        return feeds


def announcer(progress: Progress) -> Note:
    """What says an assumption as soon as it is made, before the data are read that it is about."""

    def announce(assumption: str) -> None:
        _log.info("Assumed: %s.", assumption)
        say_before(progress, f"Assumed: {assumption}.")

    return announce
