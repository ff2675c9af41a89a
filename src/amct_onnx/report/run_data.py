"""All that a reader wants to see of one run of `quantize`: frozen values, which a run file keeps and a page shows.

Numbers are as they were measured; a page rounds them. dB are 10 log10 of power over power of the error. What is None
was not measured.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The float model. inputs, outputs: name and declared type and shape, as text. weights: how many numbers."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    nodes: int
    weights: int


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How near the outputs are to those of the float network, in dB, where everything is rounded.

    decibels, same_top1: what `quantize` measured on `judged` samples, signal over noise and the share, 0 to 1, whose
    largest output is the same; held_out: no step of the recipe has seen these. The rest is of the report's own look.
    sqnr: of all samples together; by_sample: of each. samples: how many it looked at; effect_samples, float_samples: of
    these, for the effects of layers and for what float would bring. measured_layers: those whose effect was measured.
    search: what a search for mixed precision says. problem: why the errors were not measured, "" where they were.
    """

    decibels: float | None
    same_top1: float | None
    judged: int
    held_out: bool
    sqnr: float | None
    by_sample: tuple[float, ...]
    samples: int
    effect_samples: int
    float_samples: int
    measured_layers: int
    search: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What ONNX Runtime makes of the model on this machine. Times in seconds, kernels by type.

    low, high: between them lies the middle half of the speed-ups; too_busy: they are too far apart to say much.
    """

    version: str
    seconds_before: float | None
    seconds_after: float | None
    speedup: float | None
    runs: int
    low: float | None
    high: float | None
    too_busy: bool
    integer: Mapping[str, int]
    floating: Mapping[str, int]
    conversions: int
    inner_conversions: int
    stayed_float: tuple[str, ...]
    slow_because: tuple[str, ...]
    saturates: bool


@dataclass(frozen=True, kw_only=True)
class TriedStep:
    """A step of the recipe: dB before and after it on samples that it has not seen, and what became of it."""

    name: str
    before: float | None
    after: float | None
    error: float
    kept: bool
    reason: str
    first: bool


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """What a tensor held, and the range of its grid. counts: of bins of equal `width` from `start` on. clip: the lowest
    and the highest value that the grid has. saturated: the share of elements beyond them."""

    start: float
    width: float
    counts: tuple[int, ...]
    minimum: float
    maximum: float
    clip: tuple[float, float] | None
    saturated: float | None
    bits: int


@dataclass(frozen=True, kw_only=True)
class WeightRanges:
    """The weight of a layer. low, high: the extremes of each channel of the output, or of groups of neighbours where
    there are many. scales: how many the grid has. sqnr: of the rounded weight, in dB."""

    shape: tuple[int, ...]
    channels: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    scales: int
    bits: int
    sqnr: float | None


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """One node that the target could quantize. node: its number in `RunData.nodes`.

    source: the nodes of the user's model that it stands for. reads, makes: tensors of `RunData.tensors`. alone,
    together: dB of what it makes where it alone is rounded, and where everything is; with their cosines. effect: the
    power of the error over that of the outputs where it alone is rounded; share: its part of the sum over all layers.
    from_weight: the share of its own error that comes from constants. seconds: in the float and the quantized model.
    kernels: those that run for it in the quantized model. multiplications: of one sample.
    """

    name: str
    op_type: str
    node: int
    quantized: bool
    reason: str
    source: tuple[str, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    weight: WeightRanges | None
    alone: float | None
    alone_cosine: float | None
    together: float | None
    together_cosine: float | None
    effect: float | None
    share: float | None
    from_weight: float | None
    seconds_before: float | None
    seconds_after: float | None
    kernels: tuple[str, ...]
    multiplications: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """A node of the map. block: the number of the block that it is in, -1 for none."""

    name: str
    op_type: str
    block: int


@dataclass(frozen=True, kw_only=True)
class Block:
    """Neighbouring nodes of the map shown as one until somebody opens it. parent: the block around it or -1."""

    name: str
    parent: int


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something to do next. kind: "float", "effort", "data" or "speed". layers: those to leave in float. gain: dB of
    the outputs that it would bring, as measured. cost: how much longer the model would take, as a share of its time by
    the table of prices. option, argument: how the command and how Python are told."""

    kind: str
    title: str
    why: str
    option: str = ""
    argument: str = ""
    layers: tuple[str, ...] = ()
    gain: float | None = None
    cost: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run. bytes_before, bytes_after: of the float model and of what the target loads. edges: pairs of numbers of
    `nodes`. tensors: histograms by name. notes: what a user should know."""

    schema: int
    version: str
    target: str
    model: ModelFacts
    data: str
    assumptions: tuple[str, ...]
    accuracy: Accuracy
    bytes_before: int | None
    bytes_after: int | None
    runtime: Runtime | None
    steps: tuple[TriedStep, ...]
    layers: tuple[LayerFacts, ...]
    tensors: Mapping[str, Histogram]
    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[int, int], ...]
    blocks: tuple[Block, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]


_DIGITS = 6  # that are kept of a number


def to_document(value: Any) -> Any:
    """`value` as what JSON knows; numbers with six digits, and None for what is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_document(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_document(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_document(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def run_of(document: Any) -> RunData:
    """The run that `to_document` gave. Raises ValueError with the place and what is wrong there."""
    found: RunData = read_value(document, RunData, "the run")
    numbers = range(len(found.nodes))
    if any(one not in numbers or two not in numbers for one, two in found.edges):
        raise ValueError("an edge leads to a node that is not there")
    if any(layer.node not in range(-1, len(found.nodes)) for layer in found.layers):
        raise ValueError("a layer is a node that is not there")
    places = [node.block for node in found.nodes] + [block.parent for block in found.blocks]
    if any(place not in range(-1, len(found.blocks)) for place in places):
        raise ValueError("a block is not there")
    if any(block.parent >= number for number, block in enumerate(found.blocks)):
        raise ValueError("a block is inside of itself")
    return found


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def read_value(value: Any, kind: Any, where: str) -> Any:
    """What `to_document` made of a value of a type. where: what a message calls it. Raises ValueError."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else read_value(value, inner[0], where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise ValueError(f"{where} has {len(value)} entries in the place of {len(kinds)}")
        return tuple(
            read_value(item, one, f"{where}[{number}]")
            for number, (item, one) in enumerate(zip(value, kinds, strict=True))
        )
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        return {key: read_value(item, inner[1], f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        hints = _hints(kind)
        missing = [name for name in hints if name not in value]
        if missing:
            raise ValueError(f"{where} has no {missing[0]}")
        return kind(**{name: read_value(value[name], hint, f"{where}.{name}") for name, hint in hints.items()})
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} is no {kind.__name__}")
    return value
