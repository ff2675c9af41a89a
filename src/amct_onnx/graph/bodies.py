"""The bodies of If, Loop and Scan: each can be taken for a model of its own, changed as one, and put back.

Before                                            While it is closed
s = Relu(x)                                       s = Relu(x)
y = If(c) < a = MatMul(s, w) | b = Neg(s) >       y = If(c) < (s') a = MatMul(s', w') | b = Neg(s) >

A body reads tensors of the graphs around it. In a closed body they are inputs and initializers of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import ValueNames, constant_tensor, remove_unused
from amct_onnx.graph.layer_view import as_layer
from amct_onnx.graph.naming import name_nodes, name_values
from amct_onnx.graph.tensors import renamed

# Which tensor a node inside a body reads from outside, by the name of the node and the index of its input.
Reads = Mapping[tuple[str, int], str]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The body of a node, which holds layers with weights of its own."""

    node: ir.Node
    attribute: str

    @property
    def graph(self) -> ir.Graph:
        """The body as it is now."""
        return self.node.attributes[self.attribute].as_graph()


@dataclass(frozen=True, kw_only=True)
class ClosedBody:
    """A body as a model. captured: what stands in it for tensors around it, with these."""

    place: Place
    model: ir.Model
    captured: tuple[tuple[ir.Value, ir.Value], ...]

    def put_back(self, model: ir.Model) -> None:
        """Let `model`, a copy of the closed body or that itself, be the body, which reads what is around it again."""
        graph = model.graph
        for inner, outer in self.captured:
            own = next((v for v in (*graph.inputs, *graph.initializers.values()) if v.name == inner.name), None)
            if own is None:
                continue
            if own.is_initializer() and own.const_value is not inner.const_value:
                continue  # the layer that reads it has changed it
            own.replace_all_uses_with(outer)
            if own.is_initializer():
                del graph.initializers[name_of(own)]
            else:
                graph.inputs.remove(own)
        self.place.node.attributes[self.place.attribute] = ir.AttrGraph(self.place.attribute, graph)
        for _, outer in self.captured:
            remove_unused((outer,))


def bodies_with_layers(model: ir.Model) -> list[Place]:
    """The bodies that hold layers with weights, those inside of others first."""
    return [place for place in reversed(list(_bodies(model))) if any(as_layer(node) for node in place.graph)]


def outside_reads(model: ir.Model) -> Reads:
    """What the nodes of all bodies read from the graphs around them."""
    return {
        (name_of(node), index): name_of(value)
        for graph in model.graph.subgraphs()
        for node in graph
        for index, value in enumerate(node.inputs)
        if value is not None and value.name and value.graph is not graph
    }


def close_body(model: ir.Model, place: Place, reads: Reads) -> ClosedBody:
    """Make a body of `model` a model of its own, until it is put back.

    reads: what its nodes have read when the tensors had their own names: the inputs of the closed body are called so.
    """
    graph, names = place.graph, ValueNames(model)
    inside = {graph, *graph.subgraphs()}
    uses = [
        (node, index, value)
        for node in graph.all_nodes()
        for index, value in enumerate(node.inputs)
        if value is not None and value.graph not in inside
    ]
    called = {value: name_of(value) for _, _, value in uses}
    called |= {value: reads[name_of(node), i] for node, i, value in uses if (name_of(node), i) in reads}
    stands = {value: _stand_in(graph, value, name, names) for value, name in called.items()}
    for node, index, value in uses:
        node.replace_input_with(index, stands[value])
    graph.opset_imports.update(model.opset_imports)
    closed = ir.Model(graph, ir_version=model.ir_version)
    return ClosedBody(place=place, model=closed, captured=tuple((own, value) for value, own in stands.items()))


def all_values(model: ir.Model) -> dict[str, ir.Value]:
    """The tensors of a model by name, those of bodies included; names are unique."""
    values: dict[str, ir.Value] = {}
    for graph in model.graphs():
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if value.name:
                values.setdefault(value.name, value)
    return values


def settle_names(model: ir.Model) -> None:
    """Make the names of nodes and tensors unique again, after bodies were changed as models of their own."""
    name_nodes(model)
    name_values(model)


def _bodies(model: ir.Model) -> Iterator[Place]:
    for node in model.graph.all_nodes():
        for name, attribute in node.attributes.items():
            if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
                yield Place(node=node, attribute=name)


def _stand_in(graph: ir.Graph, value: ir.Value, name: str, names: ValueNames) -> ir.Value:
    """An input of `graph` for a tensor around it, or an initializer with the same data."""
    if (tensor := constant_tensor(value)) is not None:
        name = names.new(f"{value.name}.inside")
        own = ir.val(name, type=value.type, shape=value.shape, const_value=renamed(tensor, name))
        graph.register_initializer(own)
        return own
    own = ir.val(name, type=value.type, shape=value.shape)
    graph.inputs.append(own)
    return own


def closed_copies(model: ir.Model) -> Iterator[ir.Model]:
    """The bodies of nodes that hold layers, closed one after the other, in a copy of `model`."""
    if not bodies_with_layers(model):
        return
    copy, reads = model.clone(), outside_reads(model)
    for place in bodies_with_layers(copy):
        closed = close_body(copy, place, reads)
        yield closed.model
        closed.put_back(closed.model)
