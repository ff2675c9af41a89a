"""The result of `quantize`: what was decided and measured, and the files that come of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from amct_onnx.errors import ArgumentError, OutputError, one_line
from amct_onnx.files.onnx_file import file_bytes, model_bytes
from amct_onnx.files.whole_files import check_writable
from amct_onnx.measure.accuracy import measure_accuracy
from amct_onnx.measure.kernel_report import RuntimeReport, inspect_model
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.settings import ActivationSolver, Settings
from amct_onnx.numerics.statistics.by_tensor import Statistics
from amct_onnx.ptq.request import make_request
from amct_onnx.ptq.saved_report import SavedReport, written_bytes
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.table import TARGETS, target_of
from amct_onnx.targets.target import Lowered
from amct_onnx.values.accuracy import Accuracy
from amct_onnx.values.findings import Step
from amct_onnx.values.layers import Decision, LayerRecord
from amct_onnx.values.mixed_precision import MixedPrecision
from amct_onnx.values.used_data import UsedData

_LATENCY_SECONDS = 0.15  # a dozen runs each of a MobileNetV2; more would be felt beside a calibration of two seconds


_log = logging.getLogger("amct_onnx.Quantize")
_KEEP: Any = object()  # the default of an argument of `to`: as it was


def check_results(files: Iterable[str], model: str | os.PathLike[str] | None) -> None:
    """Raise OutputError for files that cannot be written, and for one that is the float `model` itself."""
    for file in files:
        check_writable(file)
        if model is not None and os.path.exists(file) and os.path.samefile(file, model):
            raise OutputError(f"{file}: is the float model itself, which would be lost; give another path")


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """The files of `save`, and a summary of what they are worth, None where it was not asked for."""

    files: tuple[str, ...]
    report: SavedReport | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class QuantizedModel:
    """A model quantized for `target`, from the statistics of one calibration, which serve every target.

    `calibration`: what it was made from. `lowered`: what the target has made of it, all grids solved. `assumptions`:
    what was assumed of the calibration data. `data`: how much of it there was, and what was taken for a sample.
    `sample`: one of these, to measure with. Both are None where there was no data. `precision`: the search that chose
    which layers are quantized, None if there was none. `steps`: what a recipe tried. `accuracy`: what it is worth, None
    if that was not measured. `judges`: the samples to measure it with, `judges_held_out`: no step of the recipe has
    seen them. `effort`: what was spent on accuracy, "" where that is not known.
    """

    target: str
    calibration: Calibration
    lowered: Lowered
    assumptions: tuple[str, ...] = ()
    data: UsedData | None = None
    sample: Feed | None = None
    precision: MixedPrecision | None = None
    steps: tuple[Step, ...] = ()
    accuracy: Accuracy | None = None
    judges: tuple[Feed, ...] = ()
    judges_held_out: bool = False
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
        request = replace(request, searched=old.searched, wide=old.wide, full_int8=old.full_int8)
        calibration = replace(self.calibration, request=request, tuning=tuning)
        return replace(self.solved(calibration, target or self.target), precision=None)

    def solved(self, calibration: Calibration, target: str | None = None) -> QuantizedModel:
        """The same model made from another calibration."""
        name = self.target if target is None else target
        lowered = target_of(name).solve(calibration)
        return replace(self, target=name, calibration=calibration, lowered=lowered, accuracy=None)

    def measured(self, samples: Sequence[Feed] = ()) -> QuantizedModel:
        """The same model with its `accuracy`, on samples that were held out, or on `judges`; nothing else is run."""
        judges = tuple(samples) or self.judges
        if self.accuracy is not None and judges is self.judges:
            return self
        held_out = bool(samples) or self.judges_held_out
        users = self.calibration.source.source.model  # equalization behind a Clip changes the function of the fused one
        accuracy = measure_accuracy(users, self.lowered, judges, held_out=held_out)
        return replace(self, accuracy=accuracy, judges=judges, judges_held_out=held_out)

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

        A prefix that ends in .onnx is the file itself; for ascend the suffix is left out.

        Unless `inspect` is False there is a report: the accuracy, if there were samples, and for target onnxruntime the
        model is opened as the runtime optimises it, and measured beside the float model on this machine. What goes
        wrong there is a warning. Raises OutputError, before the
        work where it can be known, and where a file is that of the float model; each is written whole or not at all.
        """
        check_results(TARGETS[self.target].files(os.fspath(prefix)), self.calibration.source.source.path)
        files = self.lowered.save(os.fspath(prefix))
        return SavedModel(files=files, report=self._report(files[0]) if inspect else None)

    def _report(self, file: str) -> SavedReport:
        source = self.calibration.source.source
        runtime = self._inspect(file) if TARGETS[self.target].runs_here else None
        on_disk = source.path is not None and os.path.exists(source.path)
        before = file_bytes(source.model, source.path) if on_disk and source.path else model_bytes(source.model)
        return SavedReport(
            target=self.target,
            accuracy=self.measured().accuracy,
            decisions=self.decisions,
            bytes_before=before if runtime is None else runtime.bytes_before,
            bytes_after=written_bytes(file) if runtime is None else runtime.bytes_after,
            runtime=runtime,
        )

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
