"""Second moments of the inputs of layers, in bounded memory: what GPTQ, AdaRound and bias correction work on.

The Gram matrices of all layers of a large model do not fit into memory. So the model runs once for each chunk of
layers that does, and whoever asks solves the layers of a chunk before the next one is collected. A Gram matrix of n
columns needs but a few n samples, so only some output positions of a layer are read: others in each feed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.engine.processors import processors
from amct_onnx.errors import CalibrationError, DataError, ModelError
from amct_onnx.graph.access import name_of
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.graph.passes.float_weights import layer_columns
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.weights import output_rows_shape
from amct_onnx.numerics.arrays import Feed, Floats
from amct_onnx.numerics.exact_products import LONGEST_SUM
from amct_onnx.numerics.im2col import LayerColumns, sample_columns
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.numerics.statistics.gram_sum import WAITING, GramSum
from amct_onnx.numerics.statistics.moments import SecondMoments
from amct_onnx.observe.operators import MOST_WORKERS, run_showing
from amct_onnx.run.session import run_feed
from amct_onnx.run.threads import one_blas_thread

MEMORY = 160 << 20
# Columns that a layer of n inputs takes of all feeds.
_COLUMNS_OF_AN_INPUT, _LEAST_COLUMNS = 4, 256


def collect_moments(
    model: ir.Model,
    layers: Sequence[str],
    feeds: Collection[Feed],
    *,
    memory: int = MEMORY,
    longest: int = LONGEST_SUM,
) -> Iterator[tuple[str, SecondMoments]]:
    """The second moments of the columns that each layer multiplies its weight with, in the order of `layers`. A layer
    whose input is empty for all of `feeds`, or so large that products of its values leave float32, is left out.

    model: a fused float model, which is left as it is. layers: names of nodes of its main graph that are Conv,
    ConvTranspose, Gemm or MatMul with a constant weight. feeds: inputs of one run each; they are read once for each
    chunk of layers, so they must come in the same order again.

    Gives mean float64[U, B] = E[x] and gram float64[U, B, B] = E[x x^T]: entries are in the order of the rows of
    `graph/weights.kernel_rows`. U is the number of groups of a Conv or ConvTranspose, of matrices of a MatMul's weight,
    and B the number of a row's entries in one. Rows of more than `longest` entries (at most 4096) are cut into blocks
    of equal length, the last filled up with zeros; then U counts the blocks of all groups.

    memory: bytes of a chunk; a single layer may take more. The result depends on the order and the sizes of feeds, but
    not on the number of threads nor on `memory`.

    Raises ModelError for a name that is no such layer, CalibrationError where ONNX Runtime cannot run the model or a
    tensor holds NaN or Inf, and DataError for a feed that is refused, or if there is none.
    """
    if not feeds:
        raise DataError("There are no calibration data: give at least one batch.")
    copy = model.clone()
    normalize_layers(copy, frozenset(layers))
    nodes = index_graph(copy).nodes
    jobs = [_job(as_layer(nodes.get(name)), name, min(longest, LONGEST_SUM), len(feeds)) for name in layers]
    for chunk in _chunks(jobs, memory):
        totals = _collect(copy, chunk, feeds)
        for name in list(totals):
            if not (total := totals.pop(name)).is_empty and np.isfinite((moments := total.solve()).gram).all():
                yield name, moments


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What to read at a layer: `units` blocks of task.block entries, at most `limit` columns of each feed."""

    layer: str
    tensor: str
    task: LayerColumns
    units: int
    limit: int

    @property
    def memory(self) -> int:
        """Bytes of the matrices and of the columns that wait to be multiplied."""
        waiting = min(WAITING, _wanted(self.task.block))
        return self.units * self.task.block * 4 * (self.task.block + waiting)


def _wanted(width: int) -> int:
    return max(_LEAST_COLUMNS, _COLUMNS_OF_AN_INPUT * width)


def _job(layer: Layer | None, name: str, longest: int, feeds: int) -> _Job:
    if layer is None:
        raise ModelError(f'The model has no convolution or product "{name}" with a constant weight: check the name.')
    groups, _, length = output_rows_shape(layer.shape, layer.node)
    blocks = -(-length // longest)
    task = replace(layer_columns(layer, "", length, AdaRound()), block=-(-length // blocks))
    limit = -(-_wanted(task.block) // feeds)
    return _Job(layer=name, tensor=name_of(layer.input), task=task, units=groups * blocks, limit=limit)


def _chunks(jobs: Sequence[_Job], memory: int) -> Iterator[list[_Job]]:
    chunk: list[_Job] = []
    for job in jobs:
        if chunk and sum(other.memory for other in chunk) + job.memory > memory:
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


@dataclass(kw_only=True)
class _Run:
    """What a run of the model has shown so far: pieces of columns by layer, or why there are none."""

    number: int
    found: dict[str, list[Floats]] = field(default_factory=dict)
    failed: tuple[str, BaseException] | None = None


class _Reader:
    """Takes the columns of all layers that read one tensor, for the run of the thread that shows it."""

    def __init__(self, jobs: Sequence[_Job], current: threading.local) -> None:
        self._jobs, self._current = jobs, current

    def add(self, x: Floats) -> None:
        run: _Run = self._current.run
        for job in self._jobs if x.size else ():
            try:
                pieces = sample_columns(x, job.task, job.limit, start=run.number * job.limit, channels_last=True)
                run.found[job.layer] = list(pieces)
            except BaseException as error:  # one that leaves an operator ends the process
                run.failed = run.failed or (job.layer, error)


def _collect(model: ir.Model, jobs: Sequence[_Job], feeds: Collection[Feed]) -> dict[str, GramSum]:
    """Run the model once and sum up what the layers of `jobs` read."""
    workers = min(len(feeds), processors(), MOST_WORKERS)
    totals = {job.layer: GramSum(job.units, job.task.block) for job in jobs}
    current = threading.local()
    tensors = {job.tensor: [other for other in jobs if other.tensor == job.tensor] for job in jobs}
    readers = {tensor: _Reader(some, current) for tensor, some in tensors.items()}
    with one_blas_thread():
        with closing(run_showing(model, readers, partial(_run, current), enumerate(feeds), workers)) as runs:
            for _, shown in runs:
                _add(totals, shown)
        with ThreadPoolExecutor(processors()) as pool:
            list(pool.map(GramSum.multiply, totals.values()))
    return totals


def _run(current: threading.local, session: ort.InferenceSession, item: tuple[int, Feed]) -> _Run:
    number, feed = item
    current.run = shown = _Run(number=number)
    run_feed(session, feed, where=f"Batch {number + 1}: ", what="the model with it")
    return shown


def _add(totals: Mapping[str, GramSum], run: _Run) -> None:
    layer, error = run.failed or ("", None)
    try:
        if error is not None:
            raise error
        for layer, pieces in run.found.items():
            for columns in pieces:
                totals[layer].add(columns)
    except ValueError as wrong:
        raise CalibrationError(f'Layer "{layer}", batch {run.number + 1}: {wrong}') from wrong
