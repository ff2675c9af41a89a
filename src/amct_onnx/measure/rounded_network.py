"""Run a float network with some of its tensors and constants rounded, and compute again only what that changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from amct_onnx.engine.processors import processors
from amct_onnx.errors import ModelError
from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import ValueNames, constant_tensor, own_constant
from amct_onnx.graph.segments import Segment, cut_model, cut_tensors
from amct_onnx.numerics.arrays import Array, Feed
from amct_onnx.numerics.grid import QParams
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.run.session import open_session, quiet, run_feed
from amct_onnx.values.roundings import Roundings

Constants = Mapping[str, Mapping[int, Array]]
T = TypeVar("T")
R = TypeVar("R")
FLOAT_TYPES = ("tensor(float)", "tensor(double)", "tensor(float16)")
_MOST_WORKERS = 4  # runs side by side at most: each has tensors of its own


class RoundedNetwork:
    """A float model, cut where `change` touches it; every change that is run later must be a part of that one.

    `constants` has the quantized constants of `change.constants`, by node and index of the input. `shapes` has the
    shape of each tensor of the main graph for `feed`, and `outputs` the float outputs of the model. Sessions hold both
    kinds of constants. A tensor of `ends` can be compared alone.

    Raises ModelError if ONNX Runtime cannot run the model, DataError if it cannot with `feed`.
    """

    def __init__(
        self, model: ir.Model, change: Roundings, constants: Constants, feed: Feed, *, ends: Collection[str] = ()
    ) -> None:
        copy = model.clone()
        self.shapes = _learn_types(copy, feed)
        _own_constants(copy, constants)
        self.outputs = tuple(
            name_of(value)
            for value in copy.graph.outputs
            if value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16) and value.producer()
        )
        leads = change.constants | {node for node, _ in change.reads}
        self._segments = cut_model(copy, leads, frozenset((*change.tensors, *ends)))
        self._sessions = [_open(segment.model(copy)) for segment in self._segments]
        self._changed = {
            segment.lead: _open(segment.model(copy, constants[segment.lead]))
            for segment in self._segments
            if segment.lead in change.constants
        }
        self._last = {
            name: number
            for number, segment in enumerate(self._segments)
            for name in (*segment.inputs, *(edge.tensor for edge in segment.edges))
        }
        self._leads = {segment.lead: number for number, segment in enumerate(self._segments)}
        self._makers = {
            name_of(value): number for number, segment in enumerate(self._segments) for value in segment.outputs
        }

    def clean(self, feed: Feed) -> dict[str, Array]:
        """Every tensor that one segment gives to another, and the outputs, of the float model. Raises DataError."""
        tensors = dict(feed)
        for segment, session in zip(self._segments, self._sessions, strict=True):
            tensors.update(_run(session, segment, {edge.name: tensors[edge.tensor] for edge in segment.edges}, tensors))
        return tensors

    @property
    def parts(self) -> int:
        """How many sessions one run goes through."""
        return len(self._segments)

    def changed(
        self, clean: Feed, change: Roundings, *, until: str = "", keep: Collection[str] = ()
    ) -> dict[str, Array]:
        """The outputs that `change` reaches, or only the tensor `until` as others read it; `clean` is of `clean`.

        keep: tensors between segments that are wanted beside the outputs.
        """
        kept = {until} if until else {*self.outputs, *keep}
        tensors: dict[str, Array] = {}
        for number in range(self._first(change), len(self._segments)):
            segment = self._segments[number]
            found = self._step(number, clean, tensors, change)
            for name in map(name_of, segment.outputs):
                if name in change.tensors:
                    found[name] = _rounded(found.get(name, clean[name]), change.tensors[name])
            tensors.update(found)
            if until and until in found:
                break
            for name in [name for name in tensors if name not in kept and self._last.get(name, -1) <= number]:
                del tensors[name]
        return {name: array for name, array in tensors.items() if name in kept}

    def noise(self, clean: Feed, change: Roundings) -> list[float]:
        """Sum of squared differences of each of `outputs` to the clean ones; what is not finite counts as 0."""
        return self.distances(clean, self.changed(clean, change))

    def distances(self, clean: Feed, found: Feed) -> list[float]:
        """The same of outputs that `changed` has found."""
        return [distance(finite(found[name]), finite(clean[name])) if name in found else 0.0 for name in self.outputs]

    def noise_at(self, clean: Feed, change: Roundings, tensor: str) -> float:
        """The same of one tensor where one segment gives it to another."""
        found = self.changed(clean, change, until=tensor)
        return distance(finite(found[tensor]), finite(clean[tensor])) if tensor in found else 0.0

    def _first(self, change: Roundings) -> int:
        """The first segment that `change` touches; an input of the model is read by the first one of all."""
        nodes = {*change.constants, *(node for node, _ in change.reads)}
        touched = [self._leads[node] for node in nodes] + [self._makers.get(name, 0) for name in change.tensors]
        return min(touched, default=len(self._segments))

    def _step(self, number: int, clean: Feed, tensors: Feed, change: Roundings) -> dict[str, Array]:
        """The outputs of a segment where they differ from the clean ones."""
        segment, session = self._segments[number], self._sessions[number]
        touched = segment.lead in change.constants
        if touched:
            session = self._changed[segment.lead]
        touched |= any(name in tensors for name in segment.inputs)
        edges = {}
        for edge in segment.edges:
            edges[edge.name] = tensors.get(edge.tensor, clean[edge.tensor])
            grid = change.reads.get((segment.lead, edge.index))
            touched |= grid is not None or edge.tensor in tensors
            if grid is not None:
                edges[edge.name] = _rounded(edges[edge.name], grid)
        if not touched:
            return {}
        others = {name: tensors.get(name, clean[name]) for name in segment.inputs}
        return _run(session, segment, edges, others)


def _rounded(array: Array, grid: QParams) -> Array:
    return fake_quantize(array, grid).astype(array.dtype, copy=False)


def side_by_side(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`function` of each item, in order, on as many threads as there are processors, up to four."""
    with ThreadPoolExecutor(min(_MOST_WORKERS, processors()), thread_name_prefix="amct_onnx") as pool:
        return list(pool.map(function, items))


def _run(session: ort.InferenceSession, segment: Segment, edges: Feed, tensors: Feed) -> dict[str, Array]:
    feed = {**edges, **{name: tensors[name] for name in segment.inputs}}
    names = [name_of(value) for value in segment.outputs]
    return dict(zip(names, run_feed(session, feed, names), strict=True)) if names else {}


def _open(model: ir.Model, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    chosen = quiet(options, threads=1)
    chosen.enable_cpu_mem_arena = False  # hundreds of sessions would keep what each has ever needed
    return open_session(model, chosen, cannot="run a part of the model")


def _own_constants(model: ir.Model, constants: Constants) -> None:
    """Initializers of their own for the constants that change; a bias that is new begins as zeros."""
    names = ValueNames(model)
    for node in list(model.graph):
        for index, array in constants.get(name_of(node), {}).items():
            old = constant_tensor(node.inputs[index]) if index < len(node.inputs) else None
            tensor = np.zeros_like(array) if old is None else old
            own_constant(node, index, tensor, f"{name_of(node)}.constant{index}", names=names)


_ELEMENTS = re.compile(r"tensor\((\w+)\)")
_TYPES = {"float": ir.DataType.FLOAT, **{kind.name.lower(): kind for kind in ir.DataType if kind.name != "FLOAT"}}


def _learn_types(model: ir.Model, feed: Feed) -> dict[str, tuple[int, ...]]:
    """Give each tensor of the main graph its type, and rank without sizes; their shapes for `feed`."""
    values = {value.name: value for value in cut_tensors(model) if value.name}
    view = model.clone()
    known = {value.name for value in view.graph.outputs}
    view.graph.outputs.extend(value for value in cut_tensors(view) if value.name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(view, options)
    kinds = {argument.name: argument.type for argument in session.get_outputs()}
    found = dict(zip(values, run_feed(session, feed, list(values)), strict=True))
    for name, value in values.items():
        match = _ELEMENTS.fullmatch(kinds[name])
        if match is None or match[1] not in _TYPES:
            text = f"The tensor {name} is of type {kinds[name]}: its effect cannot be measured"
            raise ModelError(f"{text}, only models of plain tensors can be cut into parts.")
        value.type = ir.TensorType(_TYPES[match[1]])
        value.shape = ir.Shape([None] * found[name].ndim)
    return {name: array.shape for name, array in {**feed, **found}.items()}


def finite(array: Array) -> Array:
    """An array with 0 where it is NaN or infinite, as a masked score is: two such places are no noise."""
    found = np.isfinite(array)
    return array if found.all() else np.where(found, array, array.dtype.type(0))


def power(array: Array) -> float:
    """Sum of squares."""
    return float(np.square(array, dtype=np.float64).sum())


def distance(first: Array, second: Array) -> float:
    """Sum of squared differences. Where values decide a shape, as in a detector, it may be another one after rounding:
    an element that only one of the two has is compared with 0."""
    if first.shape == second.shape:
        return power(first.astype(np.float64) - second)
    if first.ndim != second.ndim:
        first, second = first.reshape(-1), second.reshape(-1)
    common = tuple(slice(min(one, two)) for one, two in zip(first.shape, second.shape, strict=True))
    shared, other = first[common].astype(np.float64), second[common].astype(np.float64)
    return power(shared - other) + power(first) - power(shared) + power(second) - power(other)
