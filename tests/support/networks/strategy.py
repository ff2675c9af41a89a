"""The strategy: inputs, some nodes, outputs, and data of a sensible scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper
from opsets import newest_opset

from networks import blocks, bodies, layers, operators
from networks.dressing import Dress, dress
from networks.scope import FLOAT, Dim, Draws, N, Scope, Shared, Tensor

Feed = dict[str, np.ndarray]
_FEEDS = 4
_MOST_ELEMENTS = 3000  # of a tensor: examples are to be quick

_Op = Callable[[Scope, Tensor], Tensor | None]
_OTHERS: tuple[_Op, ...] = (
    *(operators.activation, operators.arithmetic, operators.normalization, operators.reshape, operators.transpose),
    *(operators.concat, operators.pick_elements, operators.reduction, operators.pad, operators.repeat),
    *(operators.choose, operators.cast, bodies.branch, bodies.loop, bodies.scan),
)
_IMAGES: tuple[_Op, ...] = (
    *(blocks.conv_block, layers.conv, layers.conv_transpose, layers.pool, layers.global_pool, layers.excitation),
    *(blocks.twins, blocks.moved, layers.product, blocks.dense_block),
)
_LAYERS: dict[int, tuple[_Op, ...]] = {
    1: (layers.product, blocks.moved),
    2: (layers.gemm, blocks.dense_block, layers.attention, blocks.twins, blocks.moved),
    3: (*_IMAGES, layers.attention, layers.recurrent, blocks.heads),
    4: (*_IMAGES, blocks.conv_block, operators.resize, layers.attention),
    5: _IMAGES,
}
_SHAPES: tuple[tuple[Dim, ...], ...] = ((N, 3, 8, 8), (N, 8), (N, 6, 8), (N, 2, 4, 4, 4), (N, 4, 1, 12), (N, 1))


@dataclass(frozen=True, kw_only=True, repr=False)
class Network:
    """A model, and data for it.

    model: as a user brings it. plain: the same network in the simplest form, for ONNX Runtime to say what is right;
    its inputs and outputs have other names, in the same order. feeds: inputs of `model`, some batches. batches: whether
    the first axis of inputs is a batch, whose size the model leaves open.
    """

    model: onnx.ModelProto
    plain: onnx.ModelProto
    feeds: tuple[Feed, ...]
    batches: bool
    worn: Dress = field(default_factory=Dress)

    def __repr__(self) -> str:
        shapes = [{name: (array.dtype.name, array.shape) for name, array in feed.items()} for feed in self.feeds]
        return f"Network({self.worn}, feeds={shapes}, model:\n{onnx.printer.to_text(self.model)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis prints a counterexample by this."""
        printer.text(repr(self))

    def plain_feed(self, feed: Feed) -> Feed:
        """A feed by the names of `plain`."""
        names = [value.name for value in self.model.graph.input]
        return {self.plain.graph.input[names.index(name)].name: array for name, array in feed.items()}


@st.composite
def networks(draw: st.DrawFn, *, most: int = 8) -> Network:
    """Networks of up to `most` parts, each one or a few nodes."""
    draws = Draws(draw)
    opset = draws.pick(17, 13, 11, 12, 15, 18, 20, 21, 22, newest_opset())
    shared = Shared(opset=opset, draws=draws, overridable=draws.rarely())
    g = Scope(shared)
    is_open = draws.flag()
    fixed = draws.pick(1, 2, 3)
    _add_inputs(g, None if is_open else fixed)
    for _ in range(draws.number(1, most)):
        x = draws.pick(*_recent(g))
        made = draws.pick(*(_OTHERS if draws.flag() else _LAYERS[x.rank]))(g, x)
        if made is None:
            g.add("Relu", [x], x.shape)
    outputs = _outputs(g)
    feeds = _feeds(shared, is_open, fixed, draws)
    plain = _model(g, outputs, opset)
    worn, model, renamed = dress(draws, plain, [tensor.name for tensor, _ in shared.inputs], is_open)
    named = tuple({renamed.get(name, name): array for name, array in feed.items()} for feed in feeds)
    return Network(model=model, plain=plain, feeds=named, batches=is_open, worn=worn)


def _recent(g: Scope) -> list[Tensor]:
    """The tensors that the next part may read, the newest first; none that is too large, or of more dimensions than
    any part takes."""
    found = [t for t in reversed(g.tensors) if 1 <= t.rank <= 5 and _size(t) <= _MOST_ELEMENTS]
    return found[:4] or g.tensors[:1]


def _size(tensor: Tensor) -> int:
    return int(np.prod([2 if dim == N else dim for dim in tensor.shape], dtype=np.int64))


def _add_inputs(g: Scope, batch: int | None) -> None:
    d, shared = g.draws, g.shared

    def real(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(batch if dim == N and batch is not None else dim for dim in shape)

    first = d.pick(*_SHAPES)
    kinds = ["image", "ids"]
    for number in range(d.pick(1, 1, 2, 3)):
        kind = d.pick(*kinds) if number or d.rarely() else "image"
        if kind == "image":
            tensor = Tensor(g.name("x"), real(first if d.flag() else d.pick(*_SHAPES)), FLOAT)
            shared.inputs.append((tensor, d.pick("normal", "positive", "shifted")))
            g.tensors.append(tensor)
            continue
        length, width = d.pick(6, 4), d.pick(8, 4)
        ids = Tensor(g.name("x"), real((N, length)), d.pick(TensorProto.INT64, TensorProto.INT32))
        shared.inputs.append((ids, "ids"))
        table = g.weight(10, width, gain=round(float(np.sqrt(width)), 2), share=False)
        g.add("Gather", [table, ids], (*ids.shape, width), kind=FLOAT, axis=0)


def _outputs(g: Scope) -> list[Tensor]:
    """The tensors that nobody reads, but for dead ends; and, at times, one that is read, an input, or a constant."""
    d = g.draws
    read = set(_reads(g))
    made = [t for t in g.tensors if t.name not in {tensor.name for tensor, _ in g.shared.inputs}]
    ends = [t for t in made if t.name not in read]
    if len(ends) > 1 and d.rarely():
        ends = ends[1:]
    if d.flag():
        ends += [d.pick(*made)]
    if d.rarely():
        ends.append(g.shared.inputs[0][0])
    constants = [t for t in g.initializers if t.data_type == FLOAT and not t.name.endswith("_stored")]
    if constants and d.rarely():
        chosen = d.pick(*constants)
        ends.append(Tensor(chosen.name, tuple(chosen.dims), chosen.data_type))
    by_name = {t.name: t for t in ends or made[-1:]}
    found = list(by_name.values())
    return d.shuffled(found) if len(found) > 1 and d.rarely() else found


def _reads(g: Scope) -> list[str]:
    def of(nodes: list[onnx.NodeProto]) -> list[str]:
        found = []
        for node in nodes:
            found += node.input
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    found += of(list(attribute.g.node))
        return found

    return of(g.nodes)


def _model(g: Scope, outputs: list[Tensor], opset: int) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(t.name, t.kind, list(t.shape)) for t, _ in g.shared.inputs]
    for name in g.shared.optional:
        tensor = next(t for t in g.initializers if t.name == name)
        inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    results = [helper.make_tensor_value_info(t.name, t.kind, list(t.shape)) for t in outputs]
    graph = helper.make_graph(g.nodes, "network", inputs, results, g.initializers)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))


def _feeds(shared: Shared, is_open: bool, fixed: int, draws: Draws) -> list[Feed]:
    varied = is_open and draws.flag()
    feeds = []
    for number in range(_FEEDS):
        rows = (2 if not varied else 1 + number % 3) if is_open else fixed
        feed = {}
        for place, (tensor, what) in enumerate(shared.inputs):
            rng = np.random.default_rng([number, place])
            shape = tuple(rows if dim == N else int(dim) for dim in tensor.shape)
            if what == "flag":
                feed[tensor.name] = np.array(number % 2 == 0)
            elif what == "ids":
                kind = np.int64 if tensor.kind == TensorProto.INT64 else np.int32
                feed[tensor.name] = rng.integers(0, 10, shape).astype(kind)
            else:
                array = rng.normal(0.5 if what == "shifted" else 0.0, 1.0, shape).astype(np.float32)
                feed[tensor.name] = np.abs(array) if what == "positive" else array
        feeds.append(feed)
    return feeds
