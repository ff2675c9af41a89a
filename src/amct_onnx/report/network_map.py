"""The network as a map: its nodes, what leads from one to the next, and blocks of neighbours that are shown as one.

A block is an interval of nodes in the order of the graph, which is topological: so no way leads out of a block and back
into it, whatever is folded. Blocks follow the parts of the nodes' names where they have any ("/layer1/conv/Conv"). Else
they are cut where fewest tensors go across, as between the residual blocks of a ResNet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from amct_onnx.graph.access import bodies_of, name_of, values_read
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.report.run_data import Block, GraphNode

_SMALL = 6  # nodes that need no block inside of theirs
_MOST = 24  # children of a block; more of them are grouped
_GROUP = 8
_SPAN = 16  # nodes between the first and the last reader of an input that is read in one place
_DIGITS, _DASH = "0123456789", "\N{EN DASH}"
_ACTIVATIONS = frozenset(
    {
        *("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu"),
        *("Softplus", "Gelu", "Erf", "Mish", "Swish"),
    }
)


@dataclass(frozen=True, kw_only=True)
class NetworkMap:
    """nodes and edges as in `RunData`. places: the number of the node for each name, also of those inside of bodies."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[int, int], ...]
    blocks: tuple[Block, ...]
    places: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Nodes `first` to `last` - 1 under a name; a single node has no children and needs no name."""

    first: int
    last: int
    name: str = ""
    children: tuple[_Part, ...] = ()


def network_map(model: ir.Model) -> NetworkMap:
    """The map of the main graph of a model whose nodes have names; constants are no nodes of it."""
    nodes = [node for node in model.graph if not _is_constant(node)]
    numbers = {node: number for number, node in enumerate(nodes)}
    edges = dict.fromkeys(
        (numbers[maker], number)
        for node, number in numbers.items()
        for value in values_read(node)
        if (maker := value.producer()) in numbers and maker is not None
    )
    blocks: list[Block] = []
    inside = [-1] * len(nodes)
    _number(_Folding(nodes, list(edges)).parts(), -1, blocks, inside)
    places = {name_of(inner): number for node, number in numbers.items() for inner in _inner(node)}
    places |= {name_of(node): number for node, number in numbers.items()}
    return NetworkMap(
        nodes=tuple(
            GraphNode(name=name_of(node), op_type=node.op_type, block=inside[number])
            for node, number in numbers.items()
        ),
        edges=tuple(edges),
        blocks=tuple(blocks),
        places=places,
    )


def _is_constant(node: ir.Node) -> bool:
    return all(constant_tensor(value) is not None and not value.is_graph_output() for value in node.outputs)


def _inner(node: ir.Node) -> Iterator[ir.Node]:
    for body in bodies_of(node):
        yield from (inner for inner in body.all_nodes() if inner.name)


def _number(parts: Sequence[_Part], parent: int, blocks: list[Block], inside: list[int]) -> None:
    """Give numbers to blocks, each behind the one around it."""
    for part in parts:
        if not part.children:
            inside[part.first : part.last] = [parent] * (part.last - part.first)
            continue
        number = len(blocks)
        blocks.append(Block(name=part.name, parent=parent))
        _number(part.children, number, blocks, inside)


class _Folding:
    """Finds the parts of a graph."""

    def __init__(self, nodes: Sequence[ir.Node], edges: Sequence[tuple[int, int]]) -> None:
        self._nodes, self._edges = nodes, edges
        self._types = [node.op_type for node in nodes]
        self._names = [name_of(node) for node in nodes]
        self._readers = Counter(one for one, _ in edges)
        self._spans = list(_input_spans(nodes))
        self._paths = _paths(self._names)

    def parts(self) -> tuple[_Part, ...]:
        return self._by_name(0, len(self._nodes), 0)

    def _by_name(self, first: int, last: int, depth: int) -> tuple[_Part, ...]:
        """The parts of an interval whose nodes share the first `depth` parts of their names."""
        while True:
            runs = self._runs(first, last, depth)
            if len(runs) > 1 or not runs or not self._word(first, depth):
                break
            depth += 1
        if len(runs) < 2:
            return self._by_structure(first, last)
        parts: list[_Part] = []
        for start, end in runs:
            word = self._word(start, depth)
            if word and end - start > 1:
                parts.append(_Part(first=start, last=end, name=word, children=self._by_name(start, end, depth + 1)))
            else:
                parts += self._by_structure(start, end)
        return self._grouped(parts)

    def _word(self, number: int, depth: int) -> str:
        return self._paths[number][depth] if depth < len(self._paths[number]) else ""

    def _runs(self, first: int, last: int, depth: int) -> list[tuple[int, int]]:
        """Neighbours with the same word; a few nodes between two of the same word belong to them."""
        runs: list[tuple[int, int]] = []
        for number in range(first, last):
            word = self._word(number, depth)
            if runs and self._word(runs[-1][0], depth) == word:
                runs[-1] = runs[-1][0], number + 1
            elif (
                len(runs) > 1 and word and self._word(runs[-2][0], depth) == word and number - runs[-1][0] < _SMALL // 2
            ):
                runs[-2:] = [(runs[-2][0], number + 1)]
            else:
                runs.append((number, number + 1))
        return runs

    def _by_structure(self, first: int, last: int) -> tuple[_Part, ...]:
        """The parts of an interval, cut where the fewest tensors go across."""
        if last - first <= _SMALL:
            return tuple(_Part(first=number, last=number + 1) for number in range(first, last))
        pieces = self._pieces(first, last)
        if len(pieces) == 1:  # tensors cross everywhere
            return self._grouped([_Part(first=number, last=number + 1) for number in range(first, last)])
        parts = []
        for start, end in pieces:
            if end - start == 1:
                parts.append(_Part(first=start, last=end))
            else:
                inner = self._by_structure(start, end)
                parts.append(_Part(first=start, last=end, name=self._title(start, end), children=inner))
        return self._grouped(parts)

    def _pieces(self, first: int, last: int) -> list[tuple[int, int]]:
        """Intervals between the places where fewest makers are read across; an activation stays with its layer."""
        open_until = [0] * (last - first)
        for one, two in (*self._edges, *self._spans):
            if first <= one and two < last:
                open_until[one - first] = max(open_until[one - first], two - first)
        crossing, ends = [], [0] * (last - first + 1)
        alive = 0
        for place, until in enumerate(open_until[:-1]):
            alive -= ends[place]
            if until > place:
                alive += 1
                ends[until] += 1
            crossing.append(alive)
        least = min(crossing)
        cuts = [first + place + 1 for place, count in enumerate(crossing) if count == least]
        kept = [cut for cut in cuts if self._begins_layer(cut, last)] or cuts
        borders = [first, *kept, last]
        return [(one, two) for one, two in pairwise(borders) if one < two]

    def _begins_layer(self, number: int, last: int) -> bool:
        """Whether a piece may begin here: an elementwise node behind a layer is a part of it."""
        branches = self._readers[number - 1] > 1 and self._types[number] not in _ACTIVATIONS
        return number < last and (self._types[number] in WEIGHT_OPS or branches)

    def _title(self, first: int, last: int) -> str:
        layers = [number for number in range(first, last) if self._types[number] in WEIGHT_OPS]
        ends = (layers[0], layers[-1]) if layers else (first, last - 1)
        one, two = (self._names[number] for number in ends)
        if one == two:
            return one
        stem = one.rstrip(_DIGITS)
        return f"{one} {_DASH} {two.removeprefix(stem) if two.rstrip(_DIGITS) == stem else two}"

    def _grouped(self, parts: Sequence[_Part]) -> tuple[_Part, ...]:
        """Parts, those that repeat under one name where they are many, and then neighbours."""
        if len(parts) <= _MOST:
            return tuple(parts)
        groups = list(_runs_of(parts, self._signature))
        if len(groups) == len(parts) or len(groups) == 1:
            size = max(_GROUP, -(-len(parts) // _MOST))
            groups = [list(parts[start : start + size]) for start in range(0, len(parts), size)]
        found = []
        for group in groups:
            if len(group) == 1:
                found += group
                continue
            title = self._title(group[0].first, group[-1].last)
            inner = self._grouped(group)
            found.append(_Part(first=group[0].first, last=group[-1].last, name=title, children=inner))
        return tuple(found) if len(found) <= _MOST or len(found) == len(parts) else self._grouped(found)

    def _signature(self, part: _Part) -> tuple[str, ...]:
        return tuple(self._types[part.first : part.last])


def _input_spans(nodes: Sequence[ir.Node]) -> Iterator[tuple[int, int]]:
    """The first and the last reader of each input of the model that is read in one place of the graph."""
    readers: dict[ir.Value, list[int]] = {}
    for number, node in enumerate(nodes):
        for value in values_read(node):
            if value.is_graph_input():
                readers.setdefault(value, []).append(number)
    yield from ((places[0], places[-1]) for places in readers.values() if 0 < places[-1] - places[0] <= _SPAN)


def _runs_of(parts: Sequence[_Part], key: Callable[[_Part], object]) -> Iterator[list[_Part]]:
    run: list[_Part] = []
    for part in parts:
        if run and key(run[-1]) != key(part):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _paths(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The parts of names in front of the last one, where most names have several."""
    for separator in ("/", "."):
        paths = [tuple(word for word in name.split(separator) if word)[:-1] for name in names]
        if 2 * sum(bool(path) for path in paths) > len(paths):
            return paths
    return [()] * len(names)
