"""Cross-layer equalization: divide the channels of tensors between layers by factors, and multiply weights behind them.

before: x -> Conv(W, b) -> Relu -> Conv(V) -> y
after:  x -> Conv(W / f, b / f) -> Relu -> Conv(V * f) -> y       f > 0: row o of W and b, input channel o of V

What stands between the layers must commute with a positive factor for each channel: Relu and its kin, poolings, sums of
tensors that are all divided alike, so that a whole chain of residual sums has one set of factors; and Clip from 0 to a
ceiling, if no factor is above 1. Behind a Clip, f < 1 lets less of a channel through than before: more than
`ceiling * f` of it is cut off. All else is the same function, up to rounding. A weight that is read elsewhere as well
would be two weights then: its layers are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import is_op, name_of, optional_input
from amct_onnx.graph.constants import ValueNames, constant_readers, constant_tensor
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import Layer, as_layer, layer_of
from amct_onnx.graph.qdq_grids import clip_bounds
from amct_onnx.graph.weights import scaled_by_input_channel
from amct_onnx.numerics.arrays import Array, Floats

_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_UNARY = ("Relu", "LeakyRelu", "PRelu", "Clip", "Identity", *_POOLS)  # PRelu: of constant slopes
_LAYERS = ("Conv", "Gemm")


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Tensors [N, channels, ...] that have to be divided alike, from all layers in front of them to all behind.

    `measured` are those that can be quantized: not what only a Relu or Clip reads. ceiling: the lowest upper bound of a
    Clip between them, inf without one.
    """

    tensors: tuple[str, ...]
    measured: tuple[str, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    ceiling: float

    @property
    def key(self) -> str:
        """The first of the tensors, which names the group."""
        return self.tensors[0]


def channel_groups(model: ir.Model) -> tuple[ChannelGroup, ...]:
    """The groups of the main graph, whose nodes are named; in the order of their first tensors."""
    found = _Groups(model)
    return tuple(group for members in found.members() if (group := found.group(members)) is not None)


@dataclass
class _Groups:
    model: ir.Model
    parents: dict[ir.Value, ir.Value] = field(default_factory=dict)
    bad: set[ir.Value] = field(default_factory=set)
    ceilings: dict[ir.Value, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bad |= {*self.model.graph.inputs, *self.model.graph.outputs}
        for node in self.model.graph:
            self._visit(node)

    def _root(self, value: ir.Value) -> ir.Value:
        while (parent := self.parents.setdefault(value, value)) is not value:
            value = parent
        return value

    def _visit(self, node: ir.Node) -> None:
        variables = [v for v in node.inputs if v is not None and constant_tensor(v) is None]
        reads_one = len(variables) == 1 and variables[0] is node.inputs[0]
        if reads_one and is_op(node, *_LAYERS) and _is_plain(node):
            self._root(node.outputs[0])
            return
        joins = is_op(node, "Add") and len(variables) == 2
        passes = reads_one and (
            is_op(node, *_UNARY) or (is_op(node, "Flatten") and node.attributes.get_int("axis", 1) == 1)
        )
        if passes and node.op_type == "Clip":
            low, high = clip_bounds(node) or (-np.inf, np.inf)
            passes = low == 0 and high > 0 and optional_input(node, 2) is not None
            self.ceilings[node.outputs[0]] = high
        if (joins or passes) and not any(value.uses() for value in node.outputs[1:]):
            for value in variables:
                self.parents[self._root(value)] = self._root(node.outputs[0])
        else:
            self.bad.update((*variables, *node.outputs))

    def members(self) -> list[list[ir.Value]]:
        """The tensors of each group, in graph order."""
        found: dict[ir.Value, list[ir.Value]] = {}
        for node in self.model.graph:
            for value in node.outputs:
                if value in self.parents:
                    found.setdefault(self._root(value), []).append(value)
        return list(found.values())

    def group(self, members: list[ir.Value]) -> ChannelGroup | None:
        """The group of these tensors, None where they cannot be divided."""
        uses = [use for value in members for use in value.uses()]
        if not self.bad.isdisjoint(members) or any(use.node.graph is not self.model.graph for use in uses):
            return None
        producers = [layer_of(node) for value in members if is_op(node := value.producer(), *_LAYERS)]
        consumers = [layer_of(use.node) for use in uses if is_op(use.node, *_LAYERS)]
        flat = any(is_op(value.producer(), "Flatten") for value in members)
        sums = any(is_op(value.producer(), "Add") for value in members)
        channels = {layer.output_channels for layer in producers}
        if len(channels) != 1 or not consumers or len({layer.op_type for layer in producers}) != 1 or (flat and sums):
            return None
        (count,) = channels
        if any(layer.input_channels % count if flat else layer.input_channels != count for layer in consumers):
            return None
        if any(_is_shared(layers) for layers in (producers, consumers)):
            return None
        measured = [v for v in members if any(not is_op(use.node, "Relu", "Clip") for use in v.uses())]
        return ChannelGroup(
            tensors=tuple(map(name_of, members)),
            measured=tuple(name_of(value) for value in measured if not is_op(value.producer(), "Flatten")),
            producers=tuple(layer.name for layer in producers),
            consumers=tuple(dict.fromkeys(layer.name for layer in consumers)),
            channels=count,
            ceiling=min((self.ceilings[value] for value in members if value in self.ceilings), default=np.inf),
        )


def _is_shared(layers: Sequence[Layer]) -> bool:
    """Whether others than `layers` read the weight of one of them."""
    own = {layer.node for layer in layers}
    return any(not constant_readers(layer.node.inputs[1]) <= own for layer in layers)


def _is_plain(node: ir.Node) -> bool:
    """Whether weight and bias of a Conv or Gemm can be scaled."""
    layer = as_layer(node)
    if layer is None or layer.weight.dtype != ir.DataType.FLOAT or node.attributes.get_int("transA", 0) != 0:
        return False
    count, bias = layer.output_channels, layer.bias
    return bias is None or (bias.dtype == np.float32 and bias.shape in ((count,), (1, count)))


def equalize_channels(model: ir.Model, factors: Mapping[str, Floats]) -> None:
    """Divide the tensors of groups, named by their keys, by `factors` float32[C] > 0; in place.

    Raises KeyError for a key that is none, ValueError for factors of another number of channels.
    """
    groups = {group.key: group for group in channel_groups(model)}
    index, names = index_graph(model), ValueNames(model)
    for key, wanted in factors.items():
        group = groups[key]
        if wanted.shape != (group.channels,):
            raise ValueError(f"{key} has {group.channels} channels, and factors of shape {wanted.shape}")
        for producer in dict.fromkeys(group.producers):
            _divide(index.layer(producer), wanted, names)
        for consumer in group.consumers:
            layer = index.layer(consumer)
            repeated = np.repeat(wanted, layer.input_channels // group.channels)
            layer.replace_weight(_multiplied(layer, repeated), names=names)


def _divide(layer: Layer, factors: Floats, names: ValueNames) -> None:
    weight, bias = layer.array(), layer.bias
    outputs_first = layer.op_type == "Conv" or layer.weight_is_turned
    shape = (-1, *([1] * (weight.ndim - 1))) if outputs_first else (1, -1)
    layer.replace_weight(weight / factors.reshape(shape), names=names)
    if bias is not None:
        layer.replace_bias(bias / factors, names=names)


def _multiplied(layer: Layer, factors: Floats) -> Array | ir.TensorProtocol:
    if layer.weight_is_turned:
        return np.asarray(layer.array() * factors)
    return scaled_by_input_channel(layer.weight, factors, layer.node)
