"""Cross-layer equalization: divide the channels of tensors between layers by factors, and multiply weights behind them.

before: x -> Conv(W, b) -> Relu -> Conv(V) -> y
after:  x -> Conv(W / f, b / f) -> Relu -> Conv(V * f) -> y       f > 0: row o of W and b, input channel o of V

What stands between the layers must commute with a positive factor for each channel: Relu and its kin, poolings, sums of
tensors that are all divided alike, so that a whole chain of residual sums has one set of factors; and Clip from 0 to a
ceiling, if no factor is above 1. Behind a Clip, f < 1 lets less of a channel through than before: more than
`ceiling * f` of it is cut off. All else is the same function, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.constants import ValueNames, constant_tensor, constant_value, own_constant
from amct_onnx.graph.layers import int_attribute
from amct_onnx.graph.passes.fusion import is_op
from amct_onnx.graph.tensors import Array, shape_of
from amct_onnx.graph.weights import group_of, scaled_by_input_channel

Floats = npt.NDArray[np.float32]

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
        if is_op(node, *_LAYERS) and len(variables) == 1 and variables[0] is node.inputs[0] and _is_plain(node):
            self._root(node.outputs[0])
            return
        joins = is_op(node, "Add") and len(variables) == 2
        passes = (len(variables) == 1 and variables[0] is node.inputs[0]) and (
            is_op(node, *_UNARY) or (is_op(node, "Flatten") and int_attribute(node, "axis", 1) == 1)
        )
        if passes and node.op_type == "Clip":
            ceiling = _ceiling(node)
            passes = ceiling is not None
            self.ceilings[node.outputs[0]] = ceiling or 0.0
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
        producers = [node for value in members if (node := value.producer()) is not None and is_op(node, *_LAYERS)]
        consumers = [use.node for use in uses if is_op(use.node, *_LAYERS)]
        flat = any(is_op(value.producer(), "Flatten") for value in members)
        sums = any(is_op(value.producer(), "Add") for value in members)
        channels = {output_channels(node) for node in producers}
        if len(channels) != 1 or not consumers or len({node.op_type for node in producers}) != 1 or (flat and sums):
            return None
        (count,) = channels
        if any(_input_channels(node) % count if flat else _input_channels(node) != count for node in consumers):
            return None
        measured = [v for v in members if any(not is_op(use.node, "Relu", "Clip") for use in v.uses())]
        return ChannelGroup(
            tensors=tuple(value.name or "" for value in members),
            measured=tuple(value.name or "" for value in measured if not is_op(value.producer(), "Flatten")),
            producers=tuple(node.name or "" for node in producers),
            consumers=tuple(dict.fromkeys(node.name or "" for node in consumers)),
            channels=count,
            ceiling=min((self.ceilings[value] for value in members if value in self.ceilings), default=np.inf),
        )


def _is_plain(layer: ir.Node) -> bool:
    """Whether weight and bias of a Conv or Gemm can be scaled; the caller has seen that they are constant."""
    tensors = [constant_tensor(value) for value in layer.inputs[1:] if value is not None]
    if not tensors or any(tensor is None or tensor.dtype != ir.DataType.FLOAT for tensor in tensors):
        return False
    if layer.op_type == "Gemm" and int_attribute(layer, "transA", 0):
        return False
    shapes = [shape_of(tensor) for tensor in tensors if tensor is not None]
    count = output_channels(layer)
    return all(shape in ((count,), (1, count)) for shape in shapes[1:])


def output_channels(layer: ir.Node) -> int:
    """Of a Conv or Gemm whose weight is constant."""
    tensor = constant_tensor(layer.inputs[1])
    assert tensor is not None  # the caller has looked
    shape = shape_of(tensor)
    return shape[0] if layer.op_type == "Conv" or int_attribute(layer, "transB", 0) else shape[1]


def _input_channels(layer: ir.Node) -> int:
    tensor = constant_tensor(layer.inputs[1])
    assert tensor is not None  # the caller has looked
    shape = shape_of(tensor)
    if layer.op_type == "Conv":
        return shape[1] * group_of(layer)
    return shape[1] if int_attribute(layer, "transB", 0) else shape[0]


def _ceiling(clip: ir.Node) -> float | None:
    """The upper bound of a Clip from 0 on, None for another Clip."""
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value = clip.inputs[index] if index < len(clip.inputs) else None
        array = constant_value(value)
        attribute = clip.attributes.get(name)
        if value is not None and (array is None or array.size != 1):
            return None
        bounds.append(float(array.item()) if array is not None else attribute.as_float() if attribute else None)
    low, high = bounds
    return high if low == 0.0 and high is not None and high > 0 else None


def equalize_channels(model: ir.Model, factors: Mapping[str, Floats]) -> None:
    """Divide the tensors of groups, named by their keys, by `factors` float32[C] > 0; in place.

    Raises KeyError for a key that is none, ValueError for factors of another number of channels.
    """
    groups = {group.key: group for group in channel_groups(model)}
    nodes = {node.name or "": node for node in model.graph}
    names = ValueNames(model)
    for key, wanted in factors.items():
        group = groups[key]
        if wanted.shape != (group.channels,):
            raise ValueError(f"{key} has {group.channels} channels, and factors of shape {wanted.shape}")
        for producer in dict.fromkeys(group.producers):
            _divide(nodes[producer], wanted, names)
        for consumer in group.consumers:
            node = nodes[consumer]
            weight = constant_tensor(node.inputs[1])
            assert weight is not None  # `channel_groups` has looked
            repeated = np.repeat(wanted, _input_channels(node) // group.channels)
            own_constant(node, 1, _scaled(node, weight, repeated), f"{consumer}.weight", names=names)


def _divide(layer: ir.Node, factors: Floats, names: ValueNames) -> None:
    weight = constant_value(layer.inputs[1])
    assert weight is not None  # `channel_groups` has looked
    first = layer.op_type == "Conv" or int_attribute(layer, "transB", 0)
    shape = (-1, *([1] * (weight.ndim - 1))) if first else (1, -1)
    own_constant(layer, 1, weight / factors.reshape(shape), f"{layer.name}.weight", names=names)
    bias = constant_value(layer.inputs[2]) if len(layer.inputs) > 2 else None
    if bias is not None:
        divided: Array = bias / factors
        own_constant(layer, 2, divided, f"{layer.name}.bias", names=names)


def _scaled(layer: ir.Node, weight: ir.TensorProtocol, factors: Floats) -> Array | ir.TensorProtocol:
    if layer.op_type == "Gemm" and int_attribute(layer, "transB", 0):
        return np.asarray(weight.numpy() * factors)
    return scaled_by_input_channel(weight, factors, layer)
