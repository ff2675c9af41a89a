"""Which first and last layers of a network may stay in float: it is hardly slower there than int8.

Kernels for few channels gain little from int8, and the first layers have few. They also make much of the noise, since
all others pass it on. What the last convolutions give is rounded once more, to numbers of which many are equal: a
segmentation takes the first of two classes then. Layers in the middle are not looked at: they would need a quantization
on either side.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from itertools import takewhile

import onnx_ir as ir

from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.targets.target import Lowered
from amct_onnx.words import named

_SHARE = 0.1  # of the time of the model: what layers in float may cost beside the fastest placement
_FEW = 0.05  # of the weights
_SHORT, _LONG = 3, 12  # layers
_FREE = f"and wins no time; {named('full_int8')} quantizes them"


@dataclass(frozen=True, kw_only=True)
class InFloat:
    """Layers that may stay in float. layers: those of them that are in int8 as yet. count: of all of them. name: of the
    step that leaves them in float. reason: why they stay there, as a clause."""

    layers: tuple[str, ...]
    count: int
    name: str
    reason: str


def first_layers(model: ir.Model, lowered: Lowered) -> list[InFloat]:
    """The first layers that cost little, and no time beside all in int8: up to three of them, up to twelve, and up to a
    quarter of all, as many as there may be, if not all of these are in float already.

    The fewest come again at the end without the last of them, for networks that the others do harm.
    """
    layers = _layers(model)
    first = [layer.name for layer in takewhile(lambda layer: layer.op_type == "Conv", layers)]  # products gain time
    longest = min(len(first), max(min(_LONG, len(layers) // 2), len(layers) // 4))
    new = [_first(first[:count], lowered) for count in range(1, longest + 1) if first[count - 1] in lowered.rows]
    # More layers never cost less, so that those that cost little are the first of all.
    cheap = new[: bisect_left(new, True, key=lambda one: not lowered.affords(one.layers, _SHARE))]

    def most(least: int, last: int) -> list[InFloat]:
        """The longest of more than `least` layers and up to `last`, if there is one."""
        return [one for one in cheap if least < one.count <= last][-1:]

    chosen: list[InFloat] = []
    for last in (_SHORT, _LONG, len(layers) // 4):
        chosen += most(chosen[-1].count if chosen else 0, last)
    return chosen + (most(0, chosen[0].count - 1) if chosen else [])


def last_layers(model: ir.Model, lowered: Lowered) -> list[InFloat]:
    """The convolutions behind which there are no more layers, if they are in int8, cost as little in float, and hold
    few of the weights."""
    layers = {layer.name: layer for layer in _layers(model)}
    in_front: set[ir.Node] = set()
    for node in reversed(model.graph):
        behind = (use.node for value in node.outputs for use in value.uses())
        if any(other in in_front or other.name in layers for other in behind):
            in_front.add(node)
    found = [layer for layer in layers.values() if layer.op_type == "Conv" and layer.node not in in_front]
    chosen = tuple(layer.name for layer in found if layer.name in lowered.rows)
    weights = sum(math.prod(layer.shape) for layer in found)
    is_large = weights > _FEW * sum(math.prod(layer.shape) for layer in layers.values())  # as a classifier is
    if not chosen or is_large or not lowered.affords(chosen, _SHARE):
        return []
    what = "layers" if len(found) > 1 else "layer"
    reason = f"int8 makes results of the last {what} equal, {_FREE}"
    name = f"the last {len(found)} layers in float" if len(found) > 1 else "the last layer in float"
    return [InFloat(layers=chosen, count=len(found), name=name, reason=reason)]


def _layers(model: ir.Model) -> list[Layer]:
    """The layers of the main graph, in the order in which they run."""
    return [layer for layer in map(as_layer, model.graph) if layer is not None]


def _first(names: list[str], lowered: Lowered) -> InFloat:
    count = len(names)
    return InFloat(
        layers=tuple(name for name in names if name in lowered.rows),
        count=count,
        name=f"the first {count} layers in float" if count > 1 else "the first layer in float",
        reason=f"int8 costs accuracy in the first layers {_FREE}",
    )
