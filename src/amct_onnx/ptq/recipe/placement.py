"""Which first layers of a network may stay in float for nothing: float is as fast there as int8.

Kernels for few channels gain nothing from int8, and the first layers have few. They also make much of the noise, since
all others pass it on. Only the layers in front are looked at: others in float would need a quantization on either side.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from amct_onnx.errors import StatisticsError
from amct_onnx.graph.access import input_of
from amct_onnx.graph.layer_view import Layer, as_layer
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.float_units import work_of
from amct_onnx.targets.target import Lowered
from amct_onnx.values.prices import Price, Prices
from amct_onnx.words import named

_FREE = 0.005  # of the time of all layers in int8: what a prefix may cost more
_SHORT, _LONG = 3, 12  # layers


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The first quantized layers of a network, and what they take in float beyond int8, as a share of all in int8."""

    layers: tuple[str, ...]
    slowdown: float

    @property
    def name(self) -> str:
        """The name of the step that leaves them in float."""
        count = len(self.layers)
        return f"the first {count} layers in float" if count > 1 else "the first layer in float"

    @property
    def reason(self) -> str:
        """Why they stay in float, as a clause."""
        return f"int8 costs accuracy in the first layers and wins no time; {named('full_int8')} quantizes them"


def float_prefixes(calibration: Calibration, lowered: Lowered, prices: Prices) -> list[Prefix]:
    """The prefixes that cost nothing: the longest one of up to three layers, one of up to twelve, and one of up to a
    quarter of all, as far as there are such.

    The first of them comes again at the end without its last layer, for networks that the others do harm.
    """
    layers = quantized_layers(calibration, lowered.rows)
    free = {len(p.layers): p for p in _prefixes(layers, calibration, prices) if p.slowdown <= _FREE}
    found: list[int] = []
    for most in (_SHORT, _LONG, len(layers) // 4):
        longest = max((length for length in free if length <= most), default=0)
        if longest > max(found, default=0):
            found.append(longest)
    shorter = [length for length in range(found[0] - 1, 0, -1) if length in free] if found else []
    return [free[length] for length in (*found, *shorter[:1])]


def _prefixes(layers: Sequence[Layer], calibration: Calibration, prices: Prices) -> Iterator[Prefix]:
    cost = {layer.name: priced(layer, calibration, prices) for layer in layers}
    whole = sum(price.in_int8 for price in cost.values())
    extra = 0.0
    names: list[str] = []
    first = takewhile(lambda layer: layer.op_type == "Conv", layers)  # products gain time from the first one on
    for layer in islice(first, max(min(_LONG, len(layers) // 2), len(layers) // 4)):
        names.append(layer.name)
        extra += cost[layer.name].in_float - cost[layer.name].in_int8
        yield Prefix(
            layers=tuple(names), slowdown=(extra + prices.cut * _outputs(layer, calibration)) / max(whole, 1e-9)
        )


def quantized_layers(calibration: Calibration, rows: Collection[str]) -> list[Layer]:
    """The layers of the main graph with quantized weights, in the order in which they run."""
    chosen = frozenset(rows)
    layers = (as_layer(node) for node in calibration.source.model.graph if node.name in chosen)
    return [layer for layer in layers if layer is not None]


def priced(layer: Layer, calibration: Calibration, prices: Prices) -> Price:
    """What a layer costs for one sample, with the operator that follows it."""
    work = work_of(layer, _outputs(layer, calibration))
    price = prices.of(work)
    following = [prices.elementwise[op] for op in _behind(layer) if op in prices.elementwise]
    return Price(
        in_float=price.in_float + work.outputs * sum(other.in_float for other in following),
        in_int8=price.in_int8 + work.outputs * sum(other.in_int8 for other in following),
    )


def _behind(layer: Layer) -> Iterator[str]:
    """The operators that a swish or a sum behind a layer is made of."""
    for use in layer.node.outputs[0].uses():
        yield use.node.op_type


def _outputs(layer: Layer, calibration: Calibration) -> float:
    """How many elements a layer makes of a sample, from the number of those that it has read."""
    samples = max(1, calibration.statistics.samples)
    try:
        elements = calibration.statistic([input_of(layer.node, 0)]).total
    except StatisticsError:  # nothing is known of its input
        elements = samples * layer.input_channels
    positions, steps = elements / samples / max(1, layer.input_channels), layer.node.attributes.get_ints("strides", ())
    turned = layer.op_type == "ConvTranspose"
    return positions * layer.output_channels * math.prod(steps) ** (1 if turned else -1)
