"""Learned rounding (AdaRound): what `quantize_model` keeps and observes for it, and what `save_model` solves.

The Gram matrices that calibration collects are solved in `save_model`, and not by the last batch: an operator that
works for minutes could show no progress and would not hear Ctrl-C.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.errors import RecordError
from amct_onnx.files.moments_file import MomentsFile, moments_path, open_moments
from amct_onnx.graph.constants import ValueNames, constant_tensor, own_constant
from amct_onnx.graph.instrument.observers import Observer
from amct_onnx.graph.passes.float_weights import keep_float_weight, layer_columns, take_float_weights
from amct_onnx.graph.tensors import Array, array_of, deferred, shape_of
from amct_onnx.graph.weights import output_rows, output_rows_shape, output_rows_to_weight, rows_to_weight, weight_rows
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.numerics.rounding import dequantize
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.weights.adaround import LONGEST_BLOCK, learn_rounding
from amct_onnx.progress import Progress
from amct_onnx.run.threads import one_blas_thread, processors
from amct_onnx.values.layers import QuantizedLayer, QuantPlan

Integers = npt.NDArray[np.int8]

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
    nodes = {node.name: node for node in model.graph}
    chosen = {layer: entry.weight.solver for layer, entry in plan.settings.items()}
    learned = {layer: s for layer, s in chosen.items() if isinstance(s, AdaRound) and s.num_iteration}
    names = ValueNames(model)
    weights = {}
    for layer in learned:
        tensor = constant_tensor(nodes[layer].inputs[1])
        assert tensor is not None  # a planned layer's weight is constant
        weights[layer] = keep_float_weight(nodes[layer], tensor, names=names)
    width = LONGEST_BLOCK
    while True:
        tasks = {n: layer_columns(nodes[n], weights[n], width, rounding) for n, rounding in learned.items()}
        needed = sum(_entries(nodes[layer], task) for layer, task in tasks.items()) * _BYTES_OF_AN_ENTRY
        if needed <= MEMORY_BUDGET or width <= _SHORTEST_BLOCK:
            break
        width = width * 3 // 4
    if width < LONGEST_BLOCK:
        text = "Gram matrices of more than %d inputs are cut into blocks, so that all fit %d MiB."
        _log.info(text, width, MEMORY_BUDGET >> 20)
    return tasks


def _entries(node: ir.Node, task: LayerColumns) -> int:
    """Number of entries of all Gram matrices of a layer."""
    tensor = constant_tensor(node.inputs[1])
    assert tensor is not None  # a planned layer's weight is constant
    return _units(output_rows_shape(shape_of(tensor), node), task) * task.block**2


def _units(shape: tuple[int, int, int], task: LayerColumns) -> int:
    """Number of blocks of all groups, for weights of `shape` as output rows."""
    return shape[0] * -(-shape[2] // task.block)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Expected squared error of a layer's output, summed over its channels; and whether it saw few columns.

    integers: what was learned, in the layout of `output_rows`.
    """

    layer: str
    integers: Integers
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
    known: Mapping[str, Integers] | None,
    progress: Progress,
) -> Mapping[str, Integers]:
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
    nodes, names = {node.name: node for node in model.graph}, ValueNames(model)
    learned = known if known is not None else _learn(nodes, observers, layers, floats, record_file, progress)
    for layer in layers:
        if layer.name in tasks and layer.weight is not None:
            _store(nodes[layer.name], layer.weight, learned[layer.name], names)
    return learned


def _store(node: ir.Node, params: QParams, integers: Integers, names: ValueNames) -> None:
    """Give a layer the weight of these integers."""
    weight = constant_tensor(node.inputs[1])
    assert weight is not None  # a quantized layer's weight is constant
    shape, dtype = shape_of(weight), weight.dtype.numpy()

    def compute() -> Array:
        rows = weight_rows(output_rows_to_weight(integers, shape, node), node)
        return rows_to_weight(dequantize(rows, params), shape, node)

    own_constant(node, 1, deferred(compute, dtype, shape), f"{node.name}.weight", names=names)


def _learn(
    nodes: Mapping[str | None, ir.Node],
    observers: Sequence[Observer],
    layers: Sequence[QuantizedLayer],
    floats: Mapping[str, ir.TensorProtocol],
    record_file: str,
    progress: Progress,
) -> dict[str, Integers]:
    """Learn the rounding of all layers from the moments beside the record, and report on it."""
    tasks = {o.layers[0]: o.task for o in observers if isinstance(o.task, LayerColumns)}
    jobs = [
        _Job(nodes[layer.name], layer.weight, tasks[layer.name], floats[tasks[layer.name].weight])
        for layer in layers
        if layer.name in tasks and layer.weight is not None
    ]
    path = moments_path(record_file)
    with open_moments(path) as file:
        if file.calibration != observers[0].calibration:
            raise RecordError(
                f"{path}: belongs to another quantize_model call than {record_file}: keep the two files of one "
                "calibration together, or run all batches of the calibration model again."
            )
        outcomes = _run(jobs, file, progress)
    _report(outcomes)
    return {outcome.layer: outcome.integers for outcome in outcomes}


class _Job:
    """One layer's rounding."""

    def __init__(self, node: ir.Node, params: QParams, task: LayerColumns, weight: ir.TensorProtocol) -> None:
        self.node, self.size, self._weight = node, weight.size, weight
        self._params, self._task = params, task
        self.memory = _entries(node, task) * _BYTES_TO_LEARN + _BYTES_OF_A_CHUNK

    def run(self, file: MomentsFile, advance: Callable[[float], None]) -> _Outcome:
        """Learn."""
        rows = output_rows(array_of(self._weight), self.node)
        units = _units(output_rows_shape(shape_of(self._weight), self.node), self._task)
        moments = file.read(self.node.name or "", units, self._task.block)
        scale = self._params.scale  # of each channel, in the order of groups and outputs, or one for all
        scales = scale.reshape(rows.shape[:2]) if scale.size > 1 else np.broadcast_to(scale, rows.shape[:2])
        learned = learn_rounding(rows, scales, self._params.spec, moments, self._task.rounding, advance)
        return _Outcome(
            layer=self.node.name or "",
            integers=learned.integers.astype(np.int8),
            nearest=float(learned.nearest.sum()),
            learned=float(learned.learned.sum()),
            few_columns=moments.columns < rows.shape[2],
        )


def _run(jobs: Sequence[_Job], file: MomentsFile, progress: Progress) -> list[_Outcome]:
    """Run all jobs, the largest first, on as many threads as there are processors and memory for.

    Outcomes are in the order of `jobs`, and so do not depend on the number of threads.
    """
    total, lock, stop = sum(job.size for job in jobs), threading.Lock(), threading.Event()
    done, shown = 0.0, -1
    threads = max(1, min(processors(), MEMORY_BUDGET // max(job.memory for job in jobs)))

    def advance(job: _Job) -> Callable[[float], None]:
        def count(share: float) -> None:
            nonlocal done, shown
            if stop.is_set():
                raise InterruptedError
            with lock:
                done += share * job.size
                per_mille = min(int(1000 * done / total), 999)
                if per_mille > shown:
                    shown = per_mille
                    progress("Learning rounding", per_mille / 1000)

        return count

    def run(job: _Job) -> _Outcome:
        return job.run(file, advance(job))

    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        futures = {job: pool.submit(run, job) for job in sorted(jobs, key=lambda job: -job.size)}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:  # also on Ctrl-C: what runs ends within a step, what waits is dropped
            if not all(future.done() and future.exception() is None for future in futures.values()):
                stop.set()
                pool.shutdown(cancel_futures=True)
            progress("Learning rounding", 1.0)
    failed = [future.exception() for future in futures.values() if not future.cancelled() and future.exception()]
    for error in failed:
        if error is not None and not isinstance(error, InterruptedError):
            raise error
    return [futures[job].result() for job in jobs]


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
