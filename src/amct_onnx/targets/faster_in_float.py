"""Which nodes of a plan a runtime computes faster in float, by the prices of nodes and of the rounding between them.

Each node is in integers or in float, and each tensor between the two kinds is quantized or dequantized there. The
cheapest choice for all nodes together is a minimum cut (Stone, "Multiprocessor Scheduling with the Aid of Network Flow
Algorithms", 1977): nodes on the side of the source are in integers, those on the side of the sink in float.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx_ir as ir

from amct_onnx.errors import CalibrationError, StatisticsError
from amct_onnx.graph.access import input_of, is_op, name_of, producer_of
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layer_view import WEIGHT_OPS, Layer, as_layer
from amct_onnx.graph.ranks import ranks
from amct_onnx.numerics.minimum_cut import price_of_cut, sink_side
from amct_onnx.plan.qdq_nodes import MOVES_CHANNELS
from amct_onnx.targets.calibration import Calibration
from amct_onnx.targets.float_units import work_of
from amct_onnx.values.prices import Price, Prices
from amct_onnx.values.qdq_plan import QdqPlan

_MARGIN = 1.2  # float has to be that much faster: what it saves is less sure than the size that int8 saves
_SMALL = 1 << 12  # elements: where no tensor of a network has more, prices say little, and nothing is left in float
_SUMS = ("Add", "Mul")
_ELEMENTWISE = ("Add", "Mul", "Sub", "Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh")
_SAME_ORDER = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")  # other dimensions, of elements that stay where they are
_IMAGE = 4  # dimensions of what may have the channels last
_NEAR = 0.04  # as good as equal: float is priced dearer than it is, by the margin
_Vertex = tuple[str, str]
_Edge = tuple[_Vertex, _Vertex]
_UNKNOWN = Price(in_float=math.inf, in_int8=0.0)
_INTEGERS: _Vertex = ("side", "integers")
_FLOAT: _Vertex = ("side", "float")


class PricedPlan:
    """A plan with what it costs to compute each node in integers or in float, and to round in between.

    prices: one thread, and one sample at a time, or the batch that the model fixes. A node whose tensors nobody has
    counted stays in integers.
    """

    def __init__(self, calibration: Calibration, plan: QdqPlan, prices: Prices) -> None:
        planned = _Planned(calibration, plan)
        self._is_small = planned.largest() <= _SMALL
        self._nodes: dict[_Vertex, Price] = {}
        self._edges: dict[_Edge, float] = defaultdict(float)  # to have its first vertex in integers, and not the other
        for node in planned.nodes:
            here: _Vertex = ("node", name_of(node))
            self._nodes[here] = planned.price(node, prices) or _UNKNOWN
            if (adder := planned.adder(node)) is not None:  # they are one kernel
                there: _Vertex = ("node", adder)
                self._edges[here, there] = self._edges[there, here] = math.inf
        for value in planned.quantized.values():
            for edge, price in planned.roundings(value, prices):
                self._edges[edge] += price

    def faster_in_float(self) -> frozenset[str]:
        """The nodes that take longer in integers than in float, together with what is rounded for them."""
        if self._is_small:
            return frozenset()
        _, far = sink_side(self._prices(), _INTEGERS, _FLOAT)
        return frozenset(name for kind, name in far if kind == "node")

    def affords(self, in_float: Collection[str], more: Collection[str], share: float) -> bool:
        """Whether nodes beside those that are `in_float` cost but a share of the time there, others that are faster
        there then included; and no more time than as planned, or with all in float."""
        prices = self._prices()
        copies = {first for first, second in prices if second == _FLOAT and first[0] == "dequantized"}
        planned = price_of_cut(prices, {_FLOAT, *copies})
        floats = sum(price.in_float for price in self._nodes.values())
        try:
            now, then = (
                sink_side(prices | {(("node", name), _FLOAT): math.inf for name in chosen}, _INTEGERS, _FLOAT)[0]
                for chosen in (in_float, {*in_float, *more})
            )
        except ValueError:  # of one of them it is not known
            return False
        return then <= min((1 + share) * now, (1 + _NEAR) * planned, (1 + _NEAR) * floats)

    def _prices(self) -> dict[_Edge, float]:
        """All prices, with those of nodes."""
        prices = defaultdict(float, self._edges)
        for here, price in self._nodes.items():
            prices[_INTEGERS, here] += _MARGIN * price.in_float
            prices[here, _FLOAT] += price.in_int8
        return prices


def runs_of(calibration: Calibration) -> float:
    """How often the data ran through the network: sample by sample, or in batches of the size that the model fixes."""
    graph, counted = calibration.source.model.graph, calibration.statistics.tensors
    if all(_size(value) is not None for value in graph.inputs):
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            size, total = _size(value), counted[name_of(value)].total if value.name in counted else 0
            if size and total:
                return total / size
    return max(1, calibration.statistics.samples)


def _size(value: ir.Value) -> int | None:
    """How many elements a tensor of a fixed shape has; None for any other."""
    if value.shape is None:
        return None
    sizes = [size for size in value.shape if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(value.shape) else None


def _total(value: ir.Value, calibration: Calibration) -> int:
    """How many elements of a tensor have been counted; 0 where nobody has."""
    try:
        return calibration.statistic([value]).total
    except (StatisticsError, CalibrationError):
        return 0


def layer_outputs(layer: Layer, calibration: Calibration, runs: float) -> float:
    """How many elements a layer makes in a run, from the number of those that it has read."""
    elements = _total(input_of(layer.node, 0), calibration) or runs * layer.input_channels
    positions, steps = elements / runs / max(1, layer.input_channels), layer.node.attributes.get_ints("strides", ())
    turned = layer.op_type == "ConvTranspose"
    return positions * layer.output_channels * math.prod(steps) ** (1 if turned else -1)


class _Planned:
    """The nodes that a plan has in integers, and the tensors that are quantized for them."""

    def __init__(self, calibration: Calibration, plan: QdqPlan) -> None:
        self._calibration, self._plan = calibration, plan
        self._runs = runs_of(calibration)
        graph, chosen = calibration.source.model.graph, frozenset(plan.layers)
        self.nodes = [node for node in graph if node.name in chosen]
        names = {tensor for group in plan.groups for tensor in group.tensors}
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        self.quantized = {name_of(value): value for value in values if value.name in names}
        self._makers: dict[str, ir.Node] = {}
        self._results: dict[str, list[ir.Value]] = {}
        clamps = {producer: clamp for clamp, producer in plan.absorbed.items()}
        outputs = {node.name: node.outputs[0] for node in graph if node.name in plan.absorbed}
        for node in self.nodes:
            results = [outputs[clamps[node.name]]] if node.name in clamps else node.outputs
            self._results[name_of(node)] = [value for value in results if value.name in names]
            self._makers |= {name_of(value): node for value in self._results[name_of(node)]}
        self._chosen = chosen
        self._counts: dict[ir.Value, float] = {}
        self._turned = _channels_last(self.nodes, self._makers, self.quantized, ranks(graph))
        self._to_transpose, self._from_transpose = _in_front_of_transposes(graph), _behind_transposes(graph)
        self._sums: list[ir.Value] = []  # results of sums
        self._sums_behind = self._find_sums(graph)

    def _find_sums(self, graph: ir.Graph) -> dict[ir.Value, int]:
        """Which of the sums read an image, or what other nodes make of it in the same order: a bit for each."""
        found: dict[ir.Value, int] = {}
        for node in reversed(graph):
            results = self._results.get(name_of(node), ())
            if node.op_type == "Conv" or node.op_type in MOVES_CHANNELS or not results:
                continue
            reached = 0
            for result in results:
                reached |= found.get(result, 0)
                if is_op(node, *_SUMS) and len(node.inputs) > 1:
                    reached |= 1 << len(self._sums)
                    self._sums.append(result)
            for value in node.inputs:
                if value is not None:
                    found[value] = found.get(value, 0) | reached
        return found

    def elements(self, value: ir.Value) -> float:
        """How many numbers a tensor has in one run; 0 where nobody has counted them."""
        if value not in self._counts:
            self._counts[value] = _total(value, self._calibration) / self._runs
        return self._counts[value]

    def largest(self) -> float:
        """How many numbers the largest of the quantized tensors and of the inputs of the model has in one sample."""
        declared = [value.shape for value in self._calibration.source.model.graph.inputs if value.shape is not None]
        sizes = [math.prod(size for size in shape if isinstance(size, int)) for shape in declared]
        return max([*sizes, *map(self.elements, self.quantized.values())], default=0)

    def adder(self, node: ir.Node) -> str | None:
        """The Add that goes into the kernel of a product."""
        name = self._plan.biases.get(name_of(node), ("", 0))[0]
        return name if name in self._chosen else None

    def price(self, node: ir.Node, prices: Prices) -> Price | None:
        """What a node takes, without what is rounded around it; None where that is not known."""
        layer = as_layer(node) if is_op(node, *WEIGHT_OPS) else None
        if layer is not None:
            price = prices.of(work_of(layer, layer_outputs(layer, self._calibration, self._runs)))
            more = 0.0 if layer.op_type == "Conv" else prices.product
            return Price(in_float=price.in_float, in_int8=price.in_int8 + more)
        known = [self.elements(value) for value in (*node.inputs[:1], *node.outputs) if value is not None]
        if not any(known):
            return None
        each = prices.of_elements(node.op_type, with_constant=_sums_constant(node))
        turned = prices.turned if is_op(node, "Transpose") and self._touches_turned(node) else 0.0
        return Price(in_float=max(known) * each.in_float, in_int8=max(known) * (each.in_int8 + turned))

    def roundings(self, value: ir.Value, prices: Prices) -> Iterator[tuple[_Edge, float]]:
        """The edges of a tensor: it is quantized once where it is made in float and read in integers, and dequantized
        once where it is made in integers and read in float."""
        name, count, last = name_of(value), self.elements(value), name_of(value) in self._turned
        uses = list(value.uses())
        places = [use.node for use in uses if (name_of(use.node), use.idx) in self._plan.reads]
        readers: list[_Vertex] = [("node", name_of(node)) for node in dict.fromkeys(places)]
        maker = self._makers.get(name)
        here = _FLOAT if maker is None else ("node", name_of(maker))
        # For several readers it is done once: a vertex of its own goes with any of them.
        into: _Vertex = readers[0] if len(readers) == 1 else ("quantized", name)
        yield (into, here), prices.rounding(count, quantizes=True, turns=last) + self._before(value, count, prices)
        yield from (((reader, into), math.inf) for reader in readers if reader != into)
        if maker is None:
            return
        if value.is_graph_output() or len(places) < len(uses):
            readers.append(_FLOAT)
        out: _Vertex = readers[0] if len(readers) == 1 else ("dequantized", name)
        yield (here, out), prices.rounding(count, quantizes=False, turns=last) + self._behind(value, count, prices)
        yield from (((out, reader), math.inf) for reader in readers if reader != out)

    def _before(self, value: ir.Value, count: float, prices: Prices) -> float:
        """What moving elements costs where an image is quantized behind a node in float."""
        node = value.producer()
        while is_op(node, "Relu", "Clip"):
            node = producer_of(node, 0)
        if value.name not in self._turned:
            return 0.0
        moved = 0.0 if node is None else _reordered(count, prices, [node])
        if node in self._from_transpose:
            moved = prices.turned * count
        return moved + self._turned_sums(value, prices)

    def _turned_sums(self, value: ir.Value, prices: Prices) -> float:
        """What sums cost that read an image as float had it: they keep that order, and so do those of their results,
        so that the channels of all others are moved there and back."""
        reached = self._sums_behind.get(value, 0)
        places = (place for place, digit in enumerate(reversed(bin(reached)[2:])) if digit == "1")
        return sum(2 * prices.node + prices.cut * self.elements(self._sums[place]) for place in places)

    def _behind(self, value: ir.Value, count: float, prices: Prices) -> float:
        """The same where it is dequantized in front of nodes in float, and what these take then by themselves."""
        if value.name not in self._turned:
            return 0.0
        nodes = {use.node: None for use in value.uses()}
        slow = any(_interpolates(node) or node in self._to_transpose for node in nodes)
        apart = any(is_op(node, *prices.fused) or _sums_constant(node) for node in nodes)
        copies = (len(value.uses()) > 1) + apart * min(len(nodes), 2)  # an activation, and a product with it
        found = prices.turned * count if slow else _reordered(count, prices, nodes)
        return found + copies * prices.copying(count)

    def _touches_turned(self, node: ir.Node) -> bool:
        """Whether a Transpose reads or makes an image whose channels are last; or reads parts of its channels by way of
        other dimensions, and does not move them to the end, where they are."""
        source, perm = node.inputs[0], node.attributes.get_ints("perm", ())
        while (
            perm
            and perm[-1] == len(perm) - 1
            and source is not None
            and is_op(maker := source.producer(), *_SAME_ORDER)
        ):
            source = maker.inputs[0]
        return any(value is not None and value.name in self._turned for value in (source, *node.outputs))


def _reordered(count: float, prices: Prices, nodes: Iterable[ir.Node]) -> float:
    """What it costs to put the channels of an image into blocks, or back, if one of `nodes` in float wants that."""
    wanted = any(is_op(node, *prices.blocked) or _interpolates(node) for node in nodes)
    return prices.copying(count) if wanted else 0.0


def _in_front_of_transposes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Each Transpose, and the elementwise nodes in front of it, which it moves through."""
    found: set[ir.Node] = set()
    for node in reversed(graph):
        behind = (use.node for value in node.outputs for use in value.uses())
        if is_op(node, "Transpose") or (is_op(node, *_ELEMENTWISE) and any(other in found for other in behind)):
            found.add(node)
    return frozenset(found)


def _behind_transposes(graph: ir.Graph) -> frozenset[ir.Node]:
    """Each Transpose, and the elementwise nodes behind it, which it moves through."""
    found: set[ir.Node] = set()
    for node in graph:
        in_front = (value.producer() for value in node.inputs if value is not None)
        if is_op(node, "Transpose") or (is_op(node, *_ELEMENTWISE) and any(other in found for other in in_front)):
            found.add(node)
    return frozenset(found)


def _sums_constant(node: ir.Node) -> bool:
    return is_op(node, *_SUMS) and any(constant_tensor(value) is not None for value in node.inputs)


def _interpolates(node: ir.Node) -> bool:
    return is_op(node, "Resize") and node.attributes.get_string("mode", "nearest") != "nearest"


def _channels_last(
    nodes: Iterable[ir.Node],
    makers: Mapping[str, ir.Node],
    quantized: Collection[str],
    dimensions: Mapping[ir.Value, int],
) -> frozenset[str]:
    """The quantized tensors of images that have the channels last, as a convolution reads and makes them."""
    made: dict[str, set[str]] = {}
    for name, node in makers.items():
        made.setdefault(name_of(node), set()).add(name)
    found: set[str] = set()
    for node in nodes:
        read = {value.name for value in node.inputs if value is not None and value.name in quantized}
        if is_op(node, "Conv") and dimensions.get(node.outputs[0], _IMAGE) == _IMAGE:
            found |= {name for name in read if name is not None}
        elif node.op_type in MOVES_CHANNELS or found.isdisjoint(read):
            continue
        found |= made.get(name_of(node), set())
    return frozenset(found)
