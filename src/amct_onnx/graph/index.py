"""Find the nodes, tensors and layers of a model by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.graph.layer_view import Layer, layer_of


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphIndex:
    """The nodes and tensors of a model by name, as they were when the index was made: see `index_graph`.

    It is a snapshot. Nodes and tensors that are added, removed or renamed later are not seen, so a pass that changes
    the graph makes one at its beginning and looks up what was there before. An item that is in the index is the item of
    the model itself: what has changed inside a node is seen.

    nodes: those that have a name, in the order of the graph. positions: the place of each of them in that order.
    values: the inputs, the initializers and the outputs of nodes of the main graph, in this order.
    """

    nodes: Mapping[str, ir.Node]
    positions: Mapping[str, int]
    values: Mapping[str, ir.Value]

    def layer(self, name: str) -> Layer:
        """The layer called `name`. Raises KeyError for an unknown name, ModelError for a node without a weight."""
        return layer_of(self.nodes[name])


def index_graph(model: ir.Model, *, subgraphs: bool = False) -> GraphIndex:
    """An index of the main graph of `model`, whose nodes have names of their own; one walk over the graph.

    subgraphs: nodes of subgraphs are found too, each behind the node that it belongs to. Their tensors are not: a
    tensor of a subgraph may have the name of one outside.
    """
    graph = model.graph
    nodes: dict[str, ir.Node] = {}
    positions: dict[str, int] = {}
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values()) if value.name}
    for position, node in enumerate(graph.all_nodes() if subgraphs else graph):
        if node.name:
            nodes[node.name], positions[node.name] = node, position
        if node.graph is graph:
            values.update((value.name, value) for value in node.outputs if value.name)
    return GraphIndex(nodes=nodes, positions=positions, values=values)
