"""The result of `quantize`: what was decided and measured, and the files that come of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from amct_onnx.errors import ArgumentError, one_line
from amct_onnx.measure.kernel_report import RuntimeReport, inspect_model
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.settings import ActivationSolver, Settings
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.ptq.request import make_request
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.table import TARGETS, target_of
from amct_onnx.targets.target import Lowered
from amct_onnx.values.findings import Step
from amct_onnx.values.layers import Decision, LayerRecord
from amct_onnx.values.mixed_precision import MixedPrecision
from amct_onnx.values.used_data import UsedData

_LATENCY_SECONDS = 0.15  # a dozen runs each of a MobileNetV2; more would be felt beside a calibration of two seconds


_log = logging.getLogger("amct_onnx.Quantize")
_KEEP: Any = object()  # the default of an argument of `to`: as it was


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """The files of `save`, and what ONNX Runtime makes of the model: None for other targets, or where not asked."""

    files: tuple[str, ...]
    report: RuntimeReport | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class QuantizedModel:
    """A model quantized for `target`, from the statistics of one calibration, which serve every target.

    `calibration`: what it was made from. `lowered`: what the target has made of it, all grids solved. `assumptions`:
    what was assumed of the calibration data. `data`: how much of it there was, and what was taken for a sample.
    `sample`: one of these, to measure with; both are None where there was no data. `samples`: a few from all over the
    data. `precision`: the search that chose which layers are quantized, None if there was none. `steps`: what a recipe
    tried. `effort`: what was spent on accuracy, "" where that is not known.
    """

    target: str
    calibration: Calibration
    lowered: Lowered
    assumptions: tuple[str, ...] = ()
    data: UsedData | None = None
    sample: Feed | None = None
    samples: tuple[Feed, ...] = ()
    precision: MixedPrecision | None = None
    steps: tuple[Step, ...] = ()
    effort: str = ""

    def __repr__(self) -> str:
        quantized = sum(decision.quantized for decision in self.decisions)
        return f"<QuantizedModel for {self.target}: {quantized} of {len(self.decisions)} nodes quantized>"

    def to(
        self,
        target: str | None = None,
        *,
        settings: Settings | str | os.PathLike[str] | None = _KEEP,
        algorithm: str | ActivationSolver | None = _KEEP,
        skip_layers: Collection[str] = _KEEP,
        reduce_range: bool = _KEEP,
    ) -> QuantizedModel:
        """The same calibration for another target, or with other settings; no data is run. What is not given stays.

        Raises ArgumentError, ConfigError, and StatisticsError where the new settings need a tensor that was not
        observed.
        """
        old, facts = self.calibration.request, self.calibration.source.facts
        request = make_request(
            facts,
            old.settings if settings is _KEEP else settings,
            old.algorithm if algorithm is _KEEP else algorithm,
            old.skip_layers if skip_layers is _KEEP else skip_layers,
            old.reduce_range if reduce_range is _KEEP else reduce_range,
        )
        tuning = self.calibration.tuning
        if (request.settings, request.algorithm) != (old.settings, old.algorithm):
            tuning = replace(tuning, ranges={}, algorithm=None)  # they were better than those of the old settings
        if target not in (None, self.target):
            tuning = replace(tuning, in_float={}, algorithm=None)  # float has another price there, noise other causes
        request = replace(request, wide=old.wide, full_int8=old.full_int8)
        calibration = replace(self.calibration, request=request, tuning=tuning)
        return replace(self.solved(calibration, target or self.target), precision=None)

    def solved(self, calibration: Calibration, target: str | None = None) -> QuantizedModel:
        """The same model made from another calibration."""
        name = self.target if target is None else target
        return replace(self, target=name, calibration=calibration, lowered=target_of(name).solve(calibration))

    @property
    def statistics(self) -> Statistics:
        """What the tensors held; it can be saved, and serves other targets and settings."""
        return self.calibration.statistics

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What happens to each node that the target could quantize, and why where it stays in float."""
        return self.lowered.decisions

    @property
    def activations(self) -> Mapping[str, QParams]:
        """Scale and zero point (signed integers) of each quantized tensor of a Q/DQ target."""
        return self.lowered.activations

    @property
    def weights(self) -> Mapping[str, QParams]:
        """Scales of each weight, by node; of target ascend, of those weights whose grid is not AMCT's."""
        return self.lowered.weights

    @property
    def records(self) -> Mapping[str, LayerRecord]:
        """The factors of each layer as record.txt has them; for target ascend only."""
        return self.lowered.records

    def model(self) -> ir.Model:
        """A new quantized model: Q/DQ nodes, or the deploy model of target ascend."""
        return self.lowered.model().clone()

    def save(self, prefix: str | os.PathLike[str], *, inspect: bool = True) -> SavedModel:
        """Write the files of the target: `<prefix>_<target>.onnx`, or those of AMCT's save_model for ascend.

        For target onnxruntime the model is then opened as the runtime optimises it, and measured beside the float model
        on this machine, unless `inspect` is False. What goes wrong there is a warning. Raises OutputError; each file is
        written whole or not at all.
        """
        files = self.lowered.save(os.fspath(prefix))
        report = self._inspect(files[0]) if inspect and TARGETS[self.target].runs_here else None
        return SavedModel(files=files, report=report)

    def _inspect(self, file: str) -> RuntimeReport | None:
        """The report of a file that is written: nothing that fails here may take it away."""
        failed = ""
        report: RuntimeReport | None = None
        for feed in (self.sample, None):
            try:
                source = self._float_file()
                opened = None if isinstance(source, bytes) else self.calibration.source.source.model
                report = inspect_model(source, file, feed, budget=_LATENCY_SECONDS, opened=opened)
                break
            except Exception as error:
                failed = failed or one_line(error)
                if feed is None:
                    break
        if failed:
            what = "there is no report of it" if report is None else "its latency could not be measured"
            _log.warning("%s is written, but %s: %s", file, what, failed)
        return report

    def _float_file(self) -> bytes | str:
        """The path of the float model, or the bytes of one that was in memory."""
        source = self.calibration.source.source
        if source.path is None or not os.path.exists(source.path):
            return bytes(ir.to_proto(source.model).SerializeToString())
        return source.path


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class WeightOnlyModel(QuantizedModel):
    """A model whose weights alone are in few bits, for which there is one target."""

    def to(self, *args: Any, **kwargs: Any) -> QuantizedModel:
        """Raises ArgumentError."""
        raise ArgumentError("A model of weight_only has no other target: call quantize without weight_only.")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DynamicModel(QuantizedModel):
    """A model that quantizes its activations as they come, for which there is one target."""

    def to(self, *args: Any, **kwargs: Any) -> QuantizedModel:
        """Raises ArgumentError."""
        raise ArgumentError("A dynamic model has no other target: call quantize with data, and without dynamic.")
