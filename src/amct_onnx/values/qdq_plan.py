"""What is quantized of a model for a Q/DQ target: the nodes, and the tensors with the grids that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amct_onnx.frozen import FrozenDict
from amct_onnx.values.layers import Decision


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """Tensors that have one grid. `sources` are those whose values decide about it: the others hold a part of them, or
    also what nothing on integers picks."""

    tensors: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QdqPlan:
    """One decision for each layer and for each node of a type that the target has a rule for, in graph order.

    `groups` partition the quantized tensors. `reads` are the quantized inputs, (node, index), `constants` those of them
    that are constants. `integer` tensors leave their node as integers, so all readers get what was quantized.
    `absorbed`: nodes (Relu, Clip), each with the node whose kernel takes it in. `also_observed`: tensors that have a
    grid of their own if one of the others cannot have one. `biases`: products, each with the Add whose constant is its
    bias, and the index of that constant. `flat`: products that are known to have two dimensions, or not known to have
    more: the target may make one kernel of them and any Add. `lookups`: nodes that read a table in int8.
    """

    decisions: tuple[Decision, ...]
    groups: tuple[TensorGroup, ...]
    reads: frozenset[tuple[str, int]]
    constants: frozenset[tuple[str, int]]
    integer: frozenset[str]
    absorbed: Mapping[str, str]
    lookups: frozenset[str] = frozenset()
    also_observed: tuple[str, ...] = ()
    biases: Mapping[str, tuple[str, int]] = field(default_factory=FrozenDict)
    flat: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[str, ...]:
        """The quantized nodes, in graph order; without lookups, which compute nothing."""
        return tuple(d.layer for d in self.decisions if d.quantized and d.layer not in self.lookups)

    @property
    def observed(self) -> tuple[str, ...]:
        """The tensors that calibration has to see."""
        sources = (tensor for group in self.groups for tensor in group.sources)
        return tuple(dict.fromkeys((*sources, *self.also_observed)))
