"""How the data of a calibration were understood, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from amct_onnx.values.skipped_data import NOTHING_SKIPPED, SkippedData


@dataclass(frozen=True, kw_only=True)
class UsedData:
    """What calibrated: `feeds` runs of the network, in which there were so many `samples`.

    whole: why each feed is one sample, as a clause; "" where the samples of a feed lie along axis 0 of its inputs.
    skipped: what could not be read, and was left out because the user said so. `str()` gives a phrase.
    """

    samples: int
    feeds: int
    whole: str = ""
    skipped: SkippedData = NOTHING_SKIPPED

    def __str__(self) -> str:
        feeds = f"{self.feeds} feed" if self.feeds == 1 else f"{self.feeds} feeds"
        if self.whole:
            return f"{feeds}, {'' if self.feeds == 1 else 'each '}one sample as a whole, since {self.whole}"
        samples = f"{self.samples} sample" if self.samples == 1 else f"{self.samples} samples"
        return f"{samples} along axis 0 of the inputs, in {feeds}"
