"""Shared by both fusions of batch normalization: when two nodes may be fused (amct_formats.md: Fusion)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, is_op, label_of, optional_input
from amct_onnx.graph.constants import constant_value, remove_unused
from amct_onnx.numerics.arrays import Array

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
FUSABLE = CONVOLUTIONS | {"BatchNormalization"}


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """The node `absorbed` was folded into the node `kept`, which now produces what `absorbed` produced."""

    kept: str
    absorbed: str


def original_nodes(fusions: Iterable[Fusion]) -> dict[str, tuple[str, ...]]:
    """For each node that absorbed others: the original nodes that it stands for, in the order of the data.

    Takes the fusions of all passes in the order in which they happened. The last name of an entry is the original node
    whose output the node now produces.
    """
    origins: dict[str, tuple[str, ...]] = {}
    for fusion in fusions:
        absorbed = origins.pop(fusion.absorbed, (fusion.absorbed,))
        origins[fusion.kept] = origins.get(fusion.kept, (fusion.kept,)) + absorbed
    return origins


def fusable_nodes(model: ir.Model) -> frozenset[str]:
    """The names of the nodes that skip_fusion_layers may list: convolutions and batch normalizations, by type."""
    return frozenset(node.name for graph in model.graphs() for node in graph if node.name and is_op(node, *FUSABLE))


def feeds_only(node: ir.Node, consumer: ir.Node) -> bool:
    """Whether the output of `node` is for `consumer` alone, a node of the same graph."""
    output = node.outputs[0]
    return consumer.graph is node.graph and not output.is_graph_output() and len(output.uses()) == 1


def is_affine(batch_norm: ir.Node, opset: int) -> bool:
    """Whether a BatchNormalization is a fixed scale and shift for each channel."""
    attributes = batch_norm.attributes
    extra = [value for value in batch_norm.outputs[1:] if value.name]
    # Before opset 7 the mode is an attribute, up to 13 the mere presence of more outputs, then an attribute again.
    training = attributes.get_int("is_test", 0) == 0 if opset < 7 else attributes.get_int("training_mode", 0) != 0
    if training or (opset < 14 and extra):
        return False
    if any(value.uses() or value.is_graph_output() for value in extra):
        return False
    return opset >= 9 or attributes.get_int("spatial", 1) == 1


def parameters_of(batch_norm: ir.Node) -> tuple[Array, Array, Array, Array] | None:
    """scale, B, mean and variance in float64, each of shape [C]; None where they are not known."""
    arrays = [constant_value(optional_input(batch_norm, index)) for index in range(1, 5)]
    known = [array.astype(np.float64) for array in arrays if array is not None]
    if len(known) < 4:
        return None
    scale, shift, mean, variance = known
    if scale.ndim != 1 or any(array.shape != scale.shape for array in known):
        return None
    return scale, shift, mean, variance


def absorb(kept: ir.Node, absorbed: ir.Node) -> Fusion:
    """Let `kept` stand in for its only consumer `absorbed`, which is removed with the constants that only it read.

    If the output was a graph output, `kept` takes over its name, type and shape, as users ask for outputs by name.
    """
    output, gone = kept.outputs[0], absorbed.outputs[0]
    graph, name = graph_of(absorbed), gone.name
    is_output = gone.is_graph_output()
    if is_output or output.type is None:
        output.type = gone.type
    if is_output or output.shape is None:
        output.shape = gone.shape
    if is_output:
        output.doc_string = gone.doc_string
        output.metadata_props.update(gone.metadata_props)
    gone.replace_all_uses_with(output, replace_graph_outputs=True)
    operands = tuple(absorbed.inputs)
    graph.remove(absorbed, safe=True)
    if is_output:
        output.name = name
    remove_unused(operands)
    return Fusion(kept=label_of(kept), absorbed=label_of(absorbed))
