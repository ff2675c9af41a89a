"""What every target can do: `Target` solves a calibration, and `Lowered` is what comes of it.

Nothing outside this folder asks for the name of a target. What differs between two of them is an attribute or a method
here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from amct_onnx.numerics.grid import QParams
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.units import Units
from amct_onnx.values.layers import Decision, LayerRecord
from amct_onnx.values.request import Request
from amct_onnx.values.roundings import Change


@dataclass(frozen=True, kw_only=True, eq=False)
class RangeChoice:
    """Tensors with one grid whose range may be chosen by what it costs: see `Tuning.ranges`, of which `key` is one.

    low <= 0 and high >= 0 are the extremes of what the tensors held. now: their roundings as solved; within: those of
    another range.
    """

    key: tuple[str, ...]
    low: float
    high: float
    now: Change
    within: Callable[[float, float], Change]


class Lowered(Protocol):
    """A model quantized for one target. All its grids are solved; what is left is to write integers into a graph."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What happens to each node that the target could quantize, and why where it stays in float."""

    @property
    def activations(self) -> Mapping[str, QParams]:
        """Scale and zero point (signed integers) of each quantized tensor, by name; empty for Ascend."""

    @property
    def weights(self) -> Mapping[str, QParams]:
        """Scales of each weight, by node; for Ascend, of those weights whose grid is not AMCT's."""

    @property
    def rows(self) -> Mapping[str, QParams]:
        """The same grids as those of rows of output channels, as `Tuning` knows weights."""

    @property
    def records(self) -> Mapping[str, LayerRecord]:
        """The factors of each layer as record.txt has them; for Ascend only."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, as sentences."""

    def model(self) -> ir.Model:
        """A new quantized model."""

    def save(self, prefix: str) -> tuple[str, ...]:
        """Write the files of the target, each whole or not at all; their paths. Raises OutputError."""

    def session(self) -> Any:
        """An onnxruntime.InferenceSession of the model, as users open it."""

    def exact_session(self) -> Any:
        """A session whose integer products do not saturate, whatever this CPU has."""

    def units(self) -> Units:
        """The model as a float model and the roundings of each of its parts."""

    def range_choices(self) -> tuple[RangeChoice, ...]:
        """The tensors whose ranges may be chosen; none where the target leaves no choice."""


class Target(Protocol):
    """A kind of chip or runtime.

    adds_bias: a layer without a bias may get one. runs_here: ONNX Runtime runs its files on this machine as it will
    elsewhere, so they are measured. packs_weights: it has products whose weights alone are in few bits.
    """

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def adds_bias(self) -> bool: ...

    @property
    def runs_here(self) -> bool: ...

    @property
    def packs_weights(self) -> bool: ...

    def check(self, source: FusedModel, request: Request) -> None:
        """Raise ConfigError for settings that the target does not have, ModelError for a model that it cannot take."""

    def solve(self, calibration: Calibration) -> Lowered:
        """Decide what is quantized, and solve all grids.

        Raises what `check` raises, ModelError for weights without a grid, CalibrationError, and StatisticsError for a
        tensor that was not observed.
        """

    def observed(self, source: FusedModel) -> Iterable[str]:
        """The tensors whose statistics it may need, whatever is wanted of it."""

    def smoothable(self, source: FusedModel, request: Request) -> tuple[str, ...]:
        """The tensors that only products with a weight read as integers: outlier channels can be divided there."""

    def wide_layers(self, calibration: Calibration) -> frozenset[str]:
        """The quantized layers whose activations may have 16 bits."""
