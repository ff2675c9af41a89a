"""Learned rounding of weights (AMCT's ada_quantize): what `quantize_model` prepares for it, and `save_model` learns.

The Gram matrices that calibration collects are solved in `save_model`, and not by the last batch: an operator that
works for minutes could show no progress and would not hear Ctrl-C.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import onnx_ir as ir

from amct_onnx.engine.processors import processors
from amct_onnx.errors import RecordError
from amct_onnx.files.moments_file import MomentsFile, moments_path, open_moments
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.instrument.observers import Observer
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.passes.float_weights import keep_float_weight, layer_columns, take_float_weights
from amct_onnx.graph.tensors import array_of, deferred
from amct_onnx.graph.weights import from_output_rows, output_rows, output_rows_shape, row_scales
from amct_onnx.numerics.arrays import Array, Int8s
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.numerics.rounding import dequantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.weights.adaround import LONGEST_BLOCK, learn_rounding
from amct_onnx.numerics.weights.second_order import Advance
from amct_onnx.progress import Progress
from amct_onnx.run.round_layers import RoundingJob, round_layers
from amct_onnx.values.layers import QuantizedLayer, QuantPlan

MEMORY_BUDGET = 512 << 20  # bytes of all Gram matrices of a calibration
_BYTES_OF_AN_ENTRY = 16  # two int64 sums, see numerics/statistics/moments.py
_SHORTEST_BLOCK = 16
_BYTES_TO_LEARN = 48  # of an entry while a layer's rounding is learned: float64 of the matrix, its digits, temporaries
_BYTES_OF_A_CHUNK = 32 << 20
_log = logging.getLogger("amct_onnx.AdaRound")


def prepare_rounding(model: ir.Model, plan: QuantPlan) -> dict[str, LayerColumns]:
    """Keep the float weights of the layers whose rounding will be learned, in place, and say what to observe at each.

    Columns are cut into blocks so short that the Gram matrices of all layers fit `MEMORY_BUDGET`.
    """
    chosen = {layer: entry.weight.solver for layer, entry in plan.settings.items()}
    learned = {layer: s for layer, s in chosen.items() if isinstance(s, AdaRound) and s.num_iteration}
    index, names = index_graph(model), ValueNames(model)
    layers = {name: index.layer(name) for name in learned}
    weights = {name: keep_float_weight(layer, names=names) for name, layer in layers.items()}
    width = LONGEST_BLOCK
    while True:
        tasks = {n: layer_columns(layers[n], weights[n], width, rounding) for n, rounding in learned.items()}
        needed = sum(_entries(layers[name], task) for name, task in tasks.items()) * _BYTES_OF_AN_ENTRY
        if needed <= MEMORY_BUDGET or width <= _SHORTEST_BLOCK:
            break
        width = width * 3 // 4
    if width < LONGEST_BLOCK:
        text = "Gram matrices of more than %d inputs are cut into blocks, so that all fit %d MiB."
        _log.info(text, width, MEMORY_BUDGET >> 20)
    return tasks


def _units(layer: Layer, task: LayerColumns) -> int:
    """Number of Gram matrices of a layer: blocks of all groups."""
    groups, _, inputs = output_rows_shape(layer.shape, layer.node)
    return groups * -(-inputs // task.block)


def _entries(layer: Layer, task: LayerColumns) -> int:
    """Number of entries of all Gram matrices of a layer."""
    return _units(layer, task) * task.block**2


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Expected squared error of a layer's output, summed over its channels; and whether it saw few columns.

    integers: what was learned, in the layout of `output_rows`.
    """

    layer: str
    integers: Int8s
    nearest: float
    learned: float
    few_columns: bool

    @property
    def lowered(self) -> float:
        """Per cent of the error of rounding to nearest that are gone."""
        return 100 * (1 - self.learned / self.nearest) if self.nearest else 0.0


def finish_rounding(
    model: ir.Model,
    observers: Sequence[Observer],
    layers: Sequence[QuantizedLayer],
    record_file: str,
    known: Mapping[str, Int8s] | None,
    progress: Progress,
) -> Mapping[str, Int8s]:
    """Give the layers that were observed for it weights of learned rounding, in place, and say what was learned.

    `known`: what this gave for the same calibration, so that nothing is learned again. The result has the integers of
    each layer in the layout of `output_rows`. The float weights that `quantize_model` kept are taken out.

    Raises RecordError when the file of moments beside the record is missing, damaged or of another calibration,
    ModelError when a float weight is missing.
    """
    tasks = {o.layers[0]: o.task for o in observers if isinstance(o.task, LayerColumns)}
    floats = take_float_weights(model, (task.weight for task in tasks.values()))
    if not tasks:
        return {}
    index, names = index_graph(model), ValueNames(model)
    grids = {layer.name: layer.weight for layer in layers if layer.name in tasks and layer.weight is not None}
    if known is None:
        jobs = [
            _Job(layer=index.layer(name), grid=grid, task=tasks[name], weight=floats[tasks[name].weight])
            for name, grid in grids.items()
        ]
        known = _learn(jobs, record_file, observers[0].calibration, progress)
    for name, grid in grids.items():
        _store(index.layer(name), grid, known[name], names)
    return known


def _store(layer: Layer, params: QParams, integers: Int8s, names: ValueNames) -> None:
    """Give a layer the weight of these integers."""
    node, shape = layer.node, layer.shape

    def compute() -> Array:
        channels = integers.reshape(-1, integers.shape[2])
        return from_output_rows(dequantize(channels, params).reshape(integers.shape), shape, node)

    layer.replace_weight(deferred(compute, layer.weight.dtype.numpy(), shape), names=names)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One layer's rounding: its grid, what was observed at it, and its float weight."""

    layer: Layer
    grid: QParams
    task: LayerColumns
    weight: ir.TensorProtocol

    @property
    def memory(self) -> int:
        """Bytes that learning takes."""
        return _entries(self.layer, self.task) * _BYTES_TO_LEARN + _BYTES_OF_A_CHUNK

    def learn(self, file: MomentsFile, advance: Advance) -> _Outcome:
        """Learn from the moments in the file."""
        rows, name = output_rows(array_of(self.weight), self.layer.node), self.layer.name
        moments = file.read(name, _units(self.layer, self.task), self.task.block)
        scales = row_scales(self.grid.scale, rows.shape)
        learned = learn_rounding(rows, scales, self.grid.spec, moments, self.task.rounding, advance)
        return _Outcome(
            layer=name,
            integers=learned.integers.astype(np.int8),
            nearest=float(learned.nearest.sum()),
            learned=float(learned.learned.sum()),
            few_columns=moments.columns < rows.shape[2],
        )


def _learn(jobs: Sequence[_Job], record_file: str, calibration: str, progress: Progress) -> dict[str, Int8s]:
    """Learn the rounding of all layers from the moments beside the record, and report on it.

    The largest layers come first, on as many threads as there are processors and memory for.
    """
    path = moments_path(record_file)
    with open_moments(path) as file:
        if file.calibration != calibration:
            raise RecordError(
                f"{path}: belongs to another quantize_model call than {record_file}: keep the two files of one "
                "calibration together, or run all batches of the calibration model again."
            )
        found = round_layers(
            [
                RoundingJob(layer=job.layer.name, solve=partial(job.learn, file), size=job.weight.size)
                for job in sorted(jobs, key=lambda job: -job.weight.size)
            ],
            total=sum(job.weight.size for job in jobs),
            workers=max(1, min(processors(), MEMORY_BUDGET // max(job.memory for job in jobs))),
            what="Learning rounding",
            progress=progress,
            ahead=len(jobs),  # moments are read when their layer's turn comes
        )
    outcomes = [found[job.layer.name] for job in jobs]
    _report(outcomes)
    return {outcome.layer: outcome.integers for outcome in outcomes}


def _report(outcomes: Sequence[_Outcome]) -> None:
    for outcome in outcomes:
        text = "%s: output error %.4g by rounding to nearest, %.4g learned (%.1f %% less)."
        _log.debug(text, outcome.layer, outcome.nearest, outcome.learned, outcome.lowered)
    wrong = [outcome for outcome in outcomes if outcome.nearest > 0]
    if not wrong:
        _log.info("%d layers: rounding to nearest makes no error on the calibration data.", len(outcomes))
        return
    least, most = (pick(wrong, key=lambda outcome: outcome.lowered) for pick in (min, max))
    _log.info(
        "%d layers: the output error of rounding to nearest is lowered by %.1f %% (median; least %.1f %%: %s, most "
        "%.1f %%: %s).",
        len(outcomes),
        median(outcome.lowered for outcome in wrong),
        least.lowered,
        least.layer,
        most.lowered,
        most.layer,
    )
    few = [outcome.layer for outcome in wrong if outcome.few_columns]
    if few:
        text = "%d layers (first: %s) saw fewer columns than they have weights per output: calibrate with more data."
        _log.warning(text, len(few), few[0])
