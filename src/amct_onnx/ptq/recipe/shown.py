"""What the first samples have shown of a network, as a value and as arrays, in which form state keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amct_onnx.files.statistics_file import histogram_arrays, read_histograms
from amct_onnx.numerics.arrays import Array, Feed, Floats
from amct_onnx.numerics.statistics.histogram import DyadicHistogram

Channels = tuple[str, int]  # a tensor, and the axis of its channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """exact: the outputs of the float network that are judged, for each sample that judges. order, calmest: the
    numbers of the samples to fit, the calmest first, and the histograms of the first groups of those; nothing where the
    samples stay as they came. The rest is as in `FirstLook`."""

    exact: Sequence[Feed]
    rows: int
    quick: Mapping[str, DyadicHistogram]
    counted: Mapping[str, DyadicHistogram] | None
    maxima: Mapping[Channels, Floats]
    order: tuple[int, ...]
    calmest: Mapping[str, DyadicHistogram]

    def arrays(self) -> dict[str, Array]:
        """The same as arrays by name."""
        found: dict[str, Array] = {"rows": np.array(self.rows), "samples": np.array(len(self.exact))}
        found["order"] = np.array(self.order, np.int64)
        calmest = self.calmest if self.order else None
        for part, tensors in (("quick", self.quick), ("counted", self.counted), ("calmest", calmest)):
            if tensors is not None:
                found |= {f"{part}/{name}": array for name, array in histogram_arrays(tensors).items()}
        for (name, axis), largest in self.maxima.items():
            found[f"maxima/{axis}/{name}"] = largest
        for number, outputs in enumerate(self.exact):
            found |= {f"exact/{number}/{name}": array for name, array in outputs.items()}
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Shown:
        """What `arrays` has made arrays of."""

        def part(name: str) -> dict[str, Array]:
            return {key[len(name) + 1 :]: array for key, array in arrays.items() if key.startswith(f"{name}/")}

        maxima = {}
        for key, largest in part("maxima").items():
            axis, _, name = key.partition("/")
            maxima[name, int(axis)] = largest
        counted = part("counted")
        return cls(
            exact=[part(f"exact/{number}") for number in range(int(arrays["samples"]))],
            rows=int(arrays["rows"]),
            quick=read_histograms(part("quick")),
            counted=read_histograms(counted) if counted else None,
            maxima=maxima,
            order=tuple(arrays["order"].tolist()),
            calmest=read_histograms(part("calmest")) if arrays["order"].size else {},
        )
