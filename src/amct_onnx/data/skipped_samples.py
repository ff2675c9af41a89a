"""Counts what could not be read of data, where it is left out, and says so in the end."""

from __future__ import annotations

import logging

from amct_onnx.errors import DataError
from amct_onnx.values.skipped_data import NOTHING_SKIPPED, SkippedData

_NAMED = 3
_log = logging.getLogger("amct_onnx.Data")


class SkippedTally:
    """What has been left out so far."""

    def __init__(self) -> None:
        self.value = NOTHING_SKIPPED

    def add(self, more: SkippedData) -> None:
        self.value = self.value.merge(more)

    def taken(self) -> SkippedData:
        """What was left out since the last call."""
        value, self.value = self.value, NOTHING_SKIPPED
        return value


def tell_skipped(skipped: SkippedData, samples: int) -> None:
    """Warn of what was left out beside so many `samples`. Raises DataError where there are none."""
    if not skipped:
        return
    if not samples:
        raise nothing_left(skipped)
    much = ""
    if skipped.samples + skipped.beside > samples:
        much = " That is more than half of all: what is left may say nothing of them."
    _log.warning(
        "Left out of the data: %s, beside %d samples.%s The first: %s", skipped, samples, much, _first(skipped)
    )


def nothing_left(skipped: SkippedData) -> DataError:
    """All data are left out."""
    return DataError(f"none of the data can be read, all are left out: {skipped}; the first: {_first(skipped)}")


def _first(skipped: SkippedData) -> str:
    return "; ".join(one.why for one in skipped.first[:_NAMED])
