"""Cut a model into smaller models that run one after the other, so that what lies in front of a change runs only once.

A segment begins with a node of interest and ends in front of the next one. Its first node reads through inputs of its
own, so that it can be given another tensor than the other readers get. Constants come with every segment that reads
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.graph.access import input_of, name_of, values_read
from amct_onnx.graph.constants import ValueNames, constant_tensor
from amct_onnx.numerics.arrays import Array


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Input `index` of the node that a segment begins with; it reads `tensor` under the name `name`."""

    name: str
    tensor: str
    index: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Consecutive nodes. `lead` is the first one, "" where that is no node of interest.

    `inputs` are the variable tensors that nodes read, but for the `edges` of the lead; `outputs` those that other
    segments read or the model gives. `links` are nodes of constants, `values` the inputs of the model of the segment.
    """

    lead: str
    edges: tuple[Edge, ...]
    inputs: tuple[str, ...]
    outputs: tuple[ir.Value, ...]
    links: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    values: tuple[ir.Value, ...]
    initializers: tuple[ir.Value, ...]

    def model(self, whole: ir.Model, constants: Mapping[int, Array] | None = None) -> ir.Model:
        """A model of this segment of `whole`; `constants` take the place of those that the lead reads, by index."""
        view = ir.GraphView(
            self.values,
            self.outputs,
            nodes=(*self.links, *self.nodes),
            initializers=self.initializers,
            opset_imports=whole.opset_imports,
            name="segment",
        )
        graph = view.clone()
        for index, array in (constants or {}).items():
            name = name_of(input_of(self.nodes[0], index))
            graph.initializers[name].const_value = ir.tensor(array, name=name)
        return ir.Model(graph, ir_version=whole.ir_version, functions=list(whole.functions.values()))


def cut_tensors(model: ir.Model) -> list[ir.Value]:
    """The tensors that nodes of the main graph make and that may go from one segment to another."""
    return [value for node in model.graph if not _is_constant(node) for value in node.outputs if value.name]


def cut_model(model: ir.Model, leads: Collection[str], ends: Collection[str]) -> tuple[Segment, ...]:
    """Cut `model`, which is changed: a segment begins with each node of `leads`, and ends with a tensor of `ends`.

    All tensors need types. Inputs with a default are taken as constants.
    """
    graph = model.graph
    graph.inputs[:] = [value for value in graph.inputs if not value.is_initializer()]
    groups = list(_groups((node for node in graph if not _is_constant(node)), frozenset(leads), frozenset(ends)))
    names = ValueNames(model)
    edges = [_own_edges(group[0], names) if group[0].name in leads else {} for group in groups]
    reads = [list(dict.fromkeys(value for node in group for value in values_read(node))) for group in groups]
    makers = {value: number for number, group in enumerate(groups) for node in group for value in node.outputs}
    wanted = set(graph.outputs)
    for number, own in enumerate(edges):
        wanted.update(value for value, _ in own.values())
        wanted.update(value for value in reads[number] if makers.get(value, number) != number)
    return tuple(
        _segment(group, own, read, wanted, lead=name_of(group[0]) if group[0].name in leads else "")
        for group, own, read in zip(groups, edges, reads, strict=True)
    )


def _is_constant(node: ir.Node) -> bool:
    return all(constant_tensor(value) is not None and not value.is_graph_output() for value in node.outputs)


def _groups(nodes: Iterable[ir.Node], leads: frozenset[str], ends: frozenset[str]) -> Iterator[list[ir.Node]]:
    group: list[ir.Node] = []
    for node in nodes:
        if group and (node.name in leads or any(value.name in ends for value in group[-1].outputs)):
            yield group
            group = []
        group.append(node)
    if group:
        yield group


def _own_edges(lead: ir.Node, names: ValueNames) -> dict[ir.Value, tuple[ir.Value, int]]:
    """Let a node read its variable inputs through values of its own: each with what it stands for, and the index."""
    own = {}
    for index, value in enumerate(lead.inputs):
        if value is None or constant_tensor(value) is not None or value.is_initializer():
            continue
        edge = ir.val(names.new(f"{value.name}.{lead.name}.{index}"), type=value.type, shape=value.shape)
        lead.replace_input_with(index, edge)
        own[edge] = value, index
    return own


def _segment(
    group: list[ir.Node],
    own: Mapping[ir.Value, tuple[ir.Value, int]],
    reads: Iterable[ir.Value],
    wanted: Collection[ir.Value],
    *,
    lead: str,
) -> Segment:
    made = {value for node in group for value in node.outputs}
    inputs: list[ir.Value] = []
    links: dict[ir.Node, None] = {}
    initializers: dict[ir.Value, None] = {}
    for value in reads:
        if value in made or value in own:
            continue
        if value.is_initializer() or constant_tensor(value) is not None:
            _add_constant(value, links, initializers)
        else:
            inputs.append(value)
    return Segment(
        lead=lead,
        edges=tuple(
            Edge(name=name_of(edge), tensor=name_of(value), index=index) for edge, (value, index) in own.items()
        ),
        inputs=tuple(name_of(value) for value in inputs),
        outputs=tuple(value for node in group for value in node.outputs if value in wanted),
        links=tuple(links),
        nodes=tuple(group),
        values=(*own, *inputs),
        initializers=tuple(initializers),
    )


def _add_constant(value: ir.Value, links: dict[ir.Node, None], initializers: dict[ir.Value, None]) -> None:
    """What a constant is made of: an initializer, and the nodes behind it in their order."""
    chain = []
    while (node := value.producer()) is not None:
        chain.append(node)
        if not node.inputs:
            break
        value = input_of(node, 0)
    else:
        initializers[value] = None
    links.update(dict.fromkeys(reversed(chain)))
