"""What a recipe has found beyond ranges that follow from statistics, and what each of its steps was worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from amct_onnx.errors import ArgumentError, did_you_mean
from amct_onnx.numerics.arrays import Doubles, Floats, Int8s
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import quantize
from amct_onnx.numerics.settings import ActivationSolver
from amct_onnx.words import named

Effort = Literal["fast", "default", "best"]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "best")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightGrid:
    """The grid of a weight seen as rows of output channels.

    integers: int8[C, n], None where they are the nearest. correction: float64[C], what the bias gets so that the mean
    of the output stays.
    """

    params: QParams
    integers: Int8s | None = None
    correction: Doubles | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TableGrid:
    """The grid of a table that nodes look up in, in its own layout.

    tied: the layer that multiplies with the same table turned, and reads the same integers; "" for none. alone: nothing
    else reads it, so the table may be on the grid of the tensor that is looked up, if that is quantized.
    """

    params: QParams
    tied: str = ""
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the recipe: what was tried, the SQNR of the outputs in dB before and after it on samples that it has
    not seen, and whether it was kept. A step is kept where it gains more than `error`, about the standard error of the
    gain. Of a step that was not tried `after` is None, `before` infinite if nothing was measured, and `reason` says
    why.

    first: measured on a first quantization, which some of the samples calibrate: it tells how good the step is, and not
    how good the result. A calibration with all data is kept in any case.
    """

    name: str
    before: float
    after: float | None
    kept: bool
    reason: str = ""
    first: bool = False
    error: float = 0.0

    def __str__(self) -> str:
        if self.after is None:
            return f"{self.name}: not tried, {self.reason}"
        verdict = "kept" if self.kept else "rejected"
        where = " in a first quantization" if self.first else ""
        gain = f", {self.after - self.before:+.2f} with an error of {self.error:.2f}" if self.error else ""
        return f"{self.name}: {verdict}, {self.before:.2f} -> {self.after:.2f} dB{where}{gain}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """Ranges (low, high) of tensors and weights of layers that take the place of those that statistics give, and the
    layers that stay in float, with the reason as a clause. `algorithm` finds the ranges of all other tensors, if there
    is one and the user has named none.

    A range counts for a group of just those tensors, which it names; a weight only for channels whose scales are the
    same: other targets, settings and ranges may want others.
    """

    ranges: Mapping[tuple[str, ...], tuple[float, float]] = field(default_factory=dict)
    weights: Mapping[str, WeightGrid] = field(default_factory=dict)
    in_float: Mapping[str, str] = field(default_factory=dict)
    algorithm: ActivationSolver | None = None

    def weight(self, layer: str, params: QParams, rows: Callable[[], Floats] | None = None) -> WeightGrid | None:
        """The weight of a layer, if it was rounded on this grid.

        rows: gives the weight, float32[C, n] in the order of its integers; then those of its channels whose scales are
        others are rounded to nearest.
        """
        found = self.weights.get(layer)
        if found is None or found.params.spec != params.spec or found.params.scale.shape != params.scale.shape:
            return None
        same = found.params.scale == params.scale
        if same.all() or found.integers is None:
            return found if same.all() else None
        if rows is None or same.size != len(found.integers) or not same.any():
            return None
        integers = np.where(same[:, None], found.integers, quantize(rows(), params, np.int8))
        correction = None if found.correction is None else np.where(same, found.correction, 0.0)
        return WeightGrid(params=params, integers=integers, correction=correction)


def check_effort(effort: object) -> Effort:
    """`effort`, if it is one. Raises ArgumentError."""
    for known in EFFORTS:
        if effort == known:
            return known
    known_ones = f"use one of {', '.join(EFFORTS)}."
    raise ArgumentError(f"{named('effort')} {effort!r} is unknown: {did_you_mean(str(effort), EFFORTS, known_ones)}")
