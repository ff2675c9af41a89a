"""Gathers the data of a report from a result of `quantize`, its calibration and a few samples."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from importlib import metadata

import onnx_ir as ir

from amct_onnx.errors import AmctError, listed, one_line
from amct_onnx.files.onnx_file import model_bytes
from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layers import default_opset
from amct_onnx.measure.kernel_report import RuntimeReport
from amct_onnx.measure.kernel_times import kernel_times
from amct_onnx.measure.layer_errors import BUDGET, LayerErrors, measure_layers
from amct_onnx.numerics.arrays import Feed
from amct_onnx.numerics.sample_noise import decibel
from amct_onnx.progress import Progress, silent
from amct_onnx.ptq.quantized_model import QuantizedModel, SavedModel
from amct_onnx.report.advice import advise
from amct_onnx.report.layer_facts import LayerReader, Measured, Times, looked_at
from amct_onnx.report.network_map import network_map
from amct_onnx.report.run_data import SCHEMA, Accuracy, ModelFacts, RunData, Runtime, TriedStep
from amct_onnx.targets.float_units import Units
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.findings import Step

_SHOWN = 4
_MOST, _FEW = 8, 4  # samples
_log = logging.getLogger("amct_onnx.Report")


def gather(
    result: QuantizedModel,
    saved: SavedModel | None = None,
    *,
    samples: Sequence[Feed] | None = None,
    progress: Progress = silent,
) -> RunData:
    """The data of a report of `result`. What cannot be measured is left out, and the data say why.

    saved: what `result.save` gave, for sizes, kernels and times. samples: those to measure with, each a feed; None
    takes the few that the result has kept.
    """
    feeds = list(result.judges[:_MOST] if samples is None else samples) or ([result.sample] if result.sample else [])
    source = result.calibration.source
    measured, problem = _measure(result, saved, feeds, progress)
    drawn = network_map(source.model)
    reader = LayerReader(result, measured, drawn.places)
    layers = reader.layers()
    report = saved.report if saved is not None else None
    runtime = report.runtime if report is not None else None
    return RunData(
        schema=SCHEMA,
        version=metadata.version("amct_onnx"),
        target=result.target,
        model=_model_facts(result),
        data=str(result.data) if result.data is not None else "",
        assumptions=result.assumptions,
        accuracy=_accuracy(result, measured.errors, problem),
        bytes_before=report.bytes_before if report is not None else None,
        bytes_after=report.bytes_after if report is not None else None,
        runtime=None if runtime is None else _runtime(runtime),
        steps=tuple(map(_step, result.steps)),
        layers=layers,
        tensors=reader.tensors,
        nodes=drawn.nodes,
        edges=drawn.edges,
        blocks=drawn.blocks,
        advice=advise(result, measured, runtime, reader.tensors),
        notes=(*source.notes, *result.lowered.notes),
    )


def _measure(
    result: QuantizedModel, saved: SavedModel | None, feeds: Sequence[Feed], progress: Progress
) -> tuple[Measured, str]:
    """What can be measured, and why the errors of layers could not be."""
    units: Units | None = None
    errors: LayerErrors | None = None
    problem = "" if feeds else "there were no samples to look at"
    try:
        units = result.lowered.units()
        if feeds and units.units:
            # Who asked for little effort gets a quick look.
            few, budget = (feeds[:_FEW], BUDGET / 4) if result.effort == "fast" else (feeds, BUDGET)
            watched = looked_at(result, units.model)
            errors = measure_layers(units, few, others=watched, budget=budget, progress=progress)
    except AmctError as error:
        problem = one_line(error)
    before: Times = {}
    after: Times = {}
    if feeds and saved is not None and TARGETS[result.target].runs_here:
        try:
            before, after = (
                kernel_times(result.calibration.source.source.model, feeds[0]),
                kernel_times(saved.files[0], feeds[0]),
            )
        except AmctError as error:
            _log.warning("The kernels could not be timed: %s", error)
    return Measured(units=units, errors=errors, before=before, after=after), problem


def _model_facts(result: QuantizedModel) -> ModelFacts:
    float_model = result.calibration.source.source
    graph = float_model.model.graph
    read = [value for value in graph.inputs if not value.is_initializer()]
    weights = sum(
        value.const_value.size
        for value in graph.initializers.values()
        if value.const_value is not None and value.uses()
    )
    path = float_model.path
    return ModelFacts(
        name=os.path.basename(path) if path is not None else graph.name or "model in memory",
        inputs=tuple(map(_declared, read)),
        outputs=tuple(map(_declared, graph.outputs)),
        opset=default_opset(float_model.model),
        nodes=sum(any(constant_tensor(value) is None for value in node.outputs) for node in graph),
        weights=weights if model_bytes(float_model.model) else 0,
    )


def _declared(value: ir.Value) -> str:
    kind = value.dtype.name.lower() if value.dtype is not None else "unknown"
    shape = "" if value.shape is None else "[" + ", ".join(str(size) for size in value.shape) + "]"
    return f"{name_of(value)}: {kind}{shape}"


def _accuracy(result: QuantizedModel, errors: LayerErrors | None, problem: str) -> Accuracy:
    search = str(result.precision) if result.precision is not None else ""
    judged = result.accuracy
    return Accuracy(
        decibels=judged.decibels if judged is not None else None,
        same_top1=judged.same_top1 if judged is not None else None,
        judged=judged.samples if judged is not None else 0,
        held_out=judged is not None and judged.held_out,
        sqnr=decibel(errors.level) if errors is not None else None,
        by_sample=tuple(map(decibel, errors.by_sample)) if errors is not None else (),
        samples=errors.samples if errors is not None else 0,
        effect_samples=errors.effect_samples if errors is not None else 0,
        float_samples=errors.float_samples if errors is not None else 0,
        measured_layers=sum(unit.effect is not None and bool(unit.nodes) for unit in errors.units) if errors else 0,
        search=search,
        problem=problem,
    )


def _runtime(report: RuntimeReport) -> Runtime:
    kernels, latency = report.kernels, report.latency
    groups: dict[str, list[str]] = {}
    for node in kernels.stayed_float:
        groups.setdefault(node.reason.value, []).append(f"{node.name} ({node.op_type})")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return Runtime(
        version=report.version,
        seconds_before=None if latency is None else latency.before,
        seconds_after=None if latency is None else latency.after,
        speedup=None if latency is None else latency.speedup,
        runs=0 if latency is None else latency.runs,
        low=None if latency is None else latency.low,
        high=None if latency is None else latency.high,
        too_busy=latency is not None and latency.too_busy,
        integer=kernels.integer,
        floating=kernels.floating,
        conversions=sum(kernels.conversions.values()),
        inner_conversions=kernels.inner_conversions,
        stayed_float=tuple(f"{len(names)} {reason}: {listed(names, _SHOWN)}" for reason, names in ordered),
        slow_because=report.slow_because,
        saturates=report.saturates,
    )


def _step(step: Step) -> TriedStep:
    return TriedStep(
        name=step.name,
        before=step.before if math.isfinite(step.before) else None,
        after=step.after,
        error=step.error if math.isfinite(step.error) else 0.0,
        kept=step.kept,
        reason=step.reason,
        first=step.first,
    )
