"""Store once what several layers read: equal weights become one initializer, with their scales and zero points.

Before                                            After
Gemm(x, DQ(w1, s1)), Gemm(y, DQ(w2, s2))          Gemm(x, DQ(w, s)), Gemm(y, DQ(w, s))

A layer that is quantized has constants of its own, also where the user's model has one weight for many layers, as a
recurrent cell that is unrolled. Weights are equal where their bytes are. One that is read in several graphs moves into
the main graph. Every DequantizeLinear stays, since runtimes look for one in front of each layer.

`copy_shared_weights` gives each reader an int8 weight of its own again as soon as a runtime has folded constants:

w -> Concat(w, w) -> Split -> w1, w2              Gemm(x, DQ(w1, s)), Gemm(y, DQ(w2, s))

ONNX Runtime needs that. With `session.x64quantprecision` it makes uint8 of the int8 weight of each layer, under a name
that follows from the old one, and opens no model in which two layers read one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, input_of, is_op, name_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, remove_unused
from amct_onnx.graph.layer_view import WEIGHT_OPS
from amct_onnx.graph.qdq_grids import is_dequantize
from amct_onnx.graph.tensors import array_of, shape_of

_LEAST_BYTES = 1 << 10  # of a smaller weight, the copies of `copy_shared_weights` take as much as is saved
_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)
_Reader = tuple[ir.Node, tuple[int, ...]]  # a node, and the inputs that hold its weight


def share_weights(model: ir.Model) -> None:
    """Share the weights of layers, what a DequantizeLinear restores and tables of integers, in place. Idempotent.

    The data of a weight are looked at only where another one has the same shape and, behind a DequantizeLinear, the
    same scales.
    """
    alike: dict[Hashable, list[_Reader]] = {}
    for graph in model.graphs():
        for node in graph:
            places = _places(node)
            if places:
                alike.setdefault(_kind(node, places), []).append((node, places))
    names = ValueNames(model)
    for readers in alike.values():
        if len({input_of(node, places[0]) for node, places in readers}) > 1:
            equal: dict[bytes, list[_Reader]] = {}
            digests: dict[ir.Value, bytes] = {}
            for node, places in readers:
                value = input_of(node, places[0])
                if value not in digests:
                    digests[value] = _digest(value)
                equal.setdefault(digests[value], []).append((node, places))
            for same in equal.values():
                _share(model.graph, same, names)


def copy_shared_weights(model: ir.Model) -> None:
    """Put a copy between an int8 weight that several DequantizeLinear read and each of them, in place. Idempotent."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for graph in model.graphs():
        for node in graph:
            if is_dequantize(node) and _places(node) and input_of(node, 0).dtype == ir.DataType.INT8:
                found.setdefault(input_of(node, 0), []).append(node)
    shared = {value: readers for value, readers in found.items() if len(readers) > 1}
    names = ValueNames(model)
    for value, readers in shared.items():
        _copy(value, readers, names)


def _places(node: ir.Node) -> tuple[int, ...]:
    """The inputs that are a weight with what belongs to it, as initializers that nobody may override."""
    wanted = (0, 1, 2) if is_dequantize(node) else (1,) if is_op(node, *WEIGHT_OPS) else ()
    if is_op(node, "Gather", "GatherElements", "GatherND") and input_of(node, 0).dtype in _INTEGERS:
        wanted = (0,)
    places = tuple(index for index in wanted if optional_input(node, index) is not None)
    stored = all(_is_stored(input_of(node, index)) for index in places)
    return places if places and stored and _is_large(input_of(node, places[0])) else ()


def _is_stored(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _is_large(value: ir.Value) -> bool:
    return _tensor(value).nbytes >= _LEAST_BYTES


def _kind(node: ir.Node, places: Sequence[int]) -> Hashable:
    """What equal weights have in common, without a look at large data."""
    tensor = _tensor(input_of(node, places[0]))
    return tensor.dtype, shape_of(tensor), *(_digest(input_of(node, index)) for index in places[1:])


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None  # `_places` has looked
    return value.const_value


def _digest(value: ir.Value) -> bytes:
    array = np.ascontiguousarray(array_of(_tensor(value)))
    return hashlib.blake2b(array.reshape(-1).view(np.uint8).data).digest()


def _share(main: ir.Graph, readers: Sequence[_Reader], names: ValueNames) -> None:
    """Let all of `readers` read the initializers of the first one, or those that stand for them in the main graph."""
    first, places = readers[0]
    for place, index in enumerate(places):
        values = dict.fromkeys(input_of(node, own[place]) for node, own in readers)
        graphs = {graph_of(value) for value in values}
        kept = next((value for value in values if len(graphs) == 1 or value.graph is main), None)
        if kept is None:
            hint = name_of(input_of(first, index))
            kept = add_initializer(main, hint, _tensor(input_of(first, index)), names=names)
        for node, own in readers:
            node.replace_input_with(own[place], kept)
        remove_unused(value for value in values if value is not kept)


def _copy(stored: ir.Value, readers: Sequence[ir.Node], names: ValueNames) -> None:
    """Give each DequantizeLinear a part of its own of a row of copies, and zero points of its own."""
    graph, count, shape, name = graph_of(stored), len(readers), shape_of(_tensor(stored)), name_of(stored)
    row = ir.val(names.new(f"{name}.row"), dtype=ir.DataType.INT8, shape=ir.Shape((count * shape[0], *shape[1:])))
    parts = [ir.val(names.new(f"{name}.copy"), dtype=ir.DataType.INT8, shape=ir.Shape(shape)) for _ in readers]
    sizes = add_initializer(graph, f"{name}.sizes", np.full(count, shape[0], np.int64), names=names)
    nodes = [
        ir.node("Concat", [stored] * count, {"axis": 0}, name=names.node(f"{name}.repeat"), outputs=[row]),
        ir.node("Split", [row, sizes], {"axis": 0}, name=names.node(f"{name}.split"), outputs=parts),
    ]
    graph.insert_before(graph[0], nodes)
    for number, (node, part) in enumerate(zip(readers, parts, strict=True)):
        node.replace_input_with(0, part)
        zeros = optional_input(node, 2)
        if zeros is not None and number:
            own = add_initializer(graph, f"{zeros.name}.copy", _tensor(zeros), names=names)
            node.replace_input_with(2, own)
