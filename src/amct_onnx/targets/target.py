"""What every target can do: `Target` solves a calibration, and `Lowered` is what comes of it.

Nothing outside this folder asks for the name of a target. What differs between two of them is an attribute or a method
here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from amct_onnx.errors import listed
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.graph.access import all_nodes, is_op
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.settings import ActivationSolver
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.run.saturation import open_exact_session
from amct_onnx.run.session import open_session
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.float_units import Units
from amct_onnx.values.layers import Decision, LayerRecord
from amct_onnx.values.prices import Prices
from amct_onnx.values.request import Request
from amct_onnx.values.roundings import Roundings


@dataclass(frozen=True, kw_only=True, eq=False)
class RangeChoice:
    """Tensors with one grid whose range may be chosen by what it costs: see `Tuning.ranges`, of which `key` is one.

    low <= 0 and high >= 0 are the extremes of what the tensors held. now: their roundings as solved; within: those of
    another range.
    """

    key: tuple[str, ...]
    low: float
    high: float
    now: Roundings
    within: Callable[[float, float], Roundings]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowered(HoldsGraphs, ABC):
    """A model quantized for one target: all its grids are solved.

    decisions: what happens to each node that the target could quantize, and why where it stays in float. activations:
    scale and zero point (signed integers) of each quantized tensor, by name. weights: scales of each weight, by node;
    for Ascend, of those weights whose grid is not AMCT's. rows: the same grids as those of rows of output channels, as
    `Tuning` knows weights. records: the factors of each layer as record.txt has them, for Ascend only. notes: what a
    user should know, as sentences.
    """

    decisions: tuple[Decision, ...]
    activations: Mapping[str, QParams] = field(default_factory=dict)
    weights: Mapping[str, QParams] = field(default_factory=dict)
    rows: Mapping[str, QParams] = field(default_factory=dict)
    records: Mapping[str, LayerRecord] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @abstractmethod
    def model(self) -> ir.Model:
        """The quantized model. Others read it too: a copy is changed, never the model itself."""

    @abstractmethod
    def save(self, prefix: str) -> tuple[str, ...]:
        """Write the files of the target, each whole or not at all; their paths. Raises OutputError."""

    @abstractmethod
    def units(self) -> Units:
        """The model as a float model and the roundings of each of its parts."""

    def session(self) -> Any:
        """An onnxruntime.InferenceSession of the model, as users open it."""
        return open_session(self.model(), None)

    def exact_session(self, model: ir.Model | None = None) -> Any:
        """A session whose integer products do not saturate, whatever this CPU has.

        model: a copy of `model()` that shows more outputs, which is used up.
        """
        return open_exact_session(self.model() if model is None else model, own_model=model is not None)

    def affords(self, in_float: Collection[str], share: float) -> bool:
        """Whether these nodes cost at most a share of the model's time where they are in float as well, and no more
        than with all in integers, or all in float; by the table of prices, False where the target has none."""
        return False

    def spans(self) -> Mapping[tuple[str, ...], tuple[float, float]]:
        """The ranges of the grids of tensors, as `Tuning.ranges` has them; none where it does not count."""
        return {}

    def range_choices(self) -> tuple[RangeChoice, ...]:
        """The tensors whose ranges may be chosen; none where the target leaves no choice."""
        return ()


class Target(ABC):
    """A kind of chip or runtime.

    name: what users call it. adds_bias: a layer without a bias may get one. runs_here: ONNX Runtime runs its files on
    this machine as it will elsewhere, so they are measured. packs_weights: it has products whose weights alone are in
    few bits. dynamic: it has products that quantize activations as they come. prices: what layers cost in float and in
    int8, None where nobody has measured that. usual: how its own tool finds ranges, which the recipe tries as well.
    """

    name: str
    adds_bias = False
    runs_here = False
    packs_weights = False
    prices: Prices | None = None
    usual: ActivationSolver | None = None
    dynamic = False

    def files(self, prefix: str) -> tuple[str, ...]:
        """The files that saving a result at `prefix` writes."""
        return (model_file(prefix, self.name),)

    @abstractmethod
    def check(self, source: FusedModel, request: Request) -> None:
        """Raise ConfigError for settings that the target does not have, ModelError for a model that it cannot take."""

    @abstractmethod
    def solve(self, calibration: Calibration) -> Lowered:
        """Decide what is quantized, and solve all grids.

        Raises what `check` raises, ModelError for weights without a grid, CalibrationError, and StatisticsError for a
        tensor that was not observed.
        """

    @abstractmethod
    def decisions(self, source: FusedModel, request: Request) -> tuple[Decision, ...]:
        """What happens to each layer, as `solve` decides it. Raises what `check` raises."""

    @abstractmethod
    def observed(self, source: FusedModel) -> Iterable[str]:
        """The tensors whose statistics it may need, whatever is wanted of it."""

    def smoothable(self, source: FusedModel, request: Request) -> tuple[str, ...]:
        """The tensors that only products with a weight read as integers: outlier channels can be divided there."""
        return ()

    def wide_layers(self, calibration: Calibration) -> frozenset[str]:
        """The quantized layers whose activations may have 16 bits."""
        return frozenset()


def all_in_float(source: FusedModel, target: str, decisions: Iterable[Decision]) -> str:
    """What to tell of a model of which `decisions` quantize nothing for a target: each reason that its layers have."""
    layers, reasons = source.facts.layers, dict[str, list[str]]()
    for decision in decisions:
        if decision.layer in layers:
            reasons.setdefault(decision.reason, []).append(f"{layers[decision.layer].op_type} {decision.layer}")
    if not reasons and any(is_op(node, *WEIGHT_OPS) for node in all_nodes(source.model)):
        text = "has layers inside model functions only, which stay in float: inline them first"
        return f"{source.name} {text} (onnx.inliner.inline_local_functions)."
    if not reasons:
        return f"{source.name} has no layer that can be quantized: it needs convolutions or products in float."
    said = [f"{listed(names, 2)}: {reason}" for reason, names in reasons.items()]
    return f"{source.name} has layers that target {target} leaves all in float: {listed(said, 3, '; ')}."


def without_suffix(prefix: str) -> str:
    """A prefix of files without the .onnx that a user may have written behind it."""
    stem, suffix = os.path.splitext(prefix)
    return stem if suffix.lower() == ".onnx" else prefix


def model_file(prefix: str, target: str) -> str:
    """`<prefix>_<target>.onnx`, or `<target>.onnx` where the prefix is a folder; a prefix in .onnx is the file."""
    if without_suffix(prefix) != prefix:
        return prefix
    folder, stem = os.path.split(prefix)
    return os.path.join(folder, f"{stem}_{target}.onnx" if stem else f"{target}.onnx")


def save_model_of(lowered: Lowered, prefix: str, target: str) -> tuple[str, ...]:
    """Write the `model_file`, and return its path alone."""
    file = model_file(prefix, target)
    save_model_file(lowered.model(), file)
    return (file,)
