"""Write an LSTM or GRU as two Gemms and a loop, so that each Gemm is a layer of its own that can be quantized.

Before   X [T,N,I] -> LSTM(W, R, B, initial_h, initial_c) -> Y [T,1,N,H], Y_h, Y_c [1,N,H]

After    X -> Reshape [T*N,I] -> Gemm(W^T, b) -> Reshape [T,N,4H] -> Scan(initial_h, initial_c) -> Y_h, Y_c, Y
         with the body  p [N,4H], h [1,N,H], c [1,N,H] -> p + Gemm(h, R^T) -> Split -> Sigmoid, Tanh, Mul, Add -> h', c'

The product with W is done once for all steps. A sequence whose length is 1 in the file needs no Scan: the cell stands
in the graph itself. Biases go to the first Gemm, except that of a GRU which its reset gate multiplies: it stays with R
(linear_before_reset). In reverse direction the Scan runs backwards. A missing initial state is zeros.

A layer of float16 is decomposed in float32, with a Cast behind X and the initial states and one in front of each
output: that is how ONNX Runtime computes it too, and the state loses nothing from step to step.

The float function stays the same up to the order of sums, and to how a runtime approximates sigmoid and tanh.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, input_of, maker_of, name_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_value, remove_unused
from amct_onnx.graph.layer_view import constant_input
from amct_onnx.graph.layers import default_opset, is_half
from amct_onnx.graph.recurrent import BIAS, CELL, HIDDEN, RECURRENCE, RECURRENT_OPS, WEIGHT
from amct_onnx.graph.tensors import array_of
from amct_onnx.numerics.arrays import Array

_FLOAT = ir.DataType.FLOAT
_SPLIT_HAS_COUNT = 18  # from this opset on a Split into equal parts says how many


@dataclass(frozen=True, kw_only=True)
class Decomposed:
    """What became of one layer: the names of its Gemms by W and by R, and of all its nodes, those of a body included.

    `nodes` maps each name to the number of the layer's output that the node gives, None if it gives none.
    """

    layer: str
    input: str
    recurrence: str
    nodes: Mapping[str, int | None]


def decompose_recurrent(model: ir.Model, layers: Collection[str]) -> list[Decomposed]:
    """Decompose the LSTM and GRU nodes named in `layers`, in place, and say what they became, in graph order.

    They stand in the main graph, and `graph.recurrent.recurrent_reason` has nothing against them. Idempotent.
    """
    names = ValueNames(model)
    chosen = [node for node in model.graph if node.name in layers and node.op_type in RECURRENT_OPS]
    return [_decompose(node, _Writer(model, node, names)) for node in chosen]


class _Writer:
    """Makes the nodes of one layer, named `<layer>.<hint>`, into the list `nodes`; constants go to the main graph."""

    def __init__(self, model: ir.Model, node: ir.Node, names: ValueNames) -> None:
        self.nodes: list[ir.Node] = []
        self._graph, self._opset = model.graph, default_opset(model)
        self._layer, self._names = node.name, names

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        hint: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int = 1,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """The first output of a new node."""
        name = self._names.node(f"{self._layer}.{hint}")
        values = [ir.val(self._names.new(f"{name}.output{index}"), dtype=dtype) for index in range(outputs)]
        self.nodes.append(ir.node(op_type, inputs, attributes or {}, name=name, outputs=values))
        return values[0]

    def constant(self, array: npt.ArrayLike, hint: str) -> ir.Value:
        return add_initializer(self._graph, f"{self._layer}.{hint}", array, names=self._names)

    def ints(self, values: Sequence[int], hint: str) -> ir.Value:
        return self.constant(np.asarray(values, np.int64), hint)

    def body_input(self, hint: str, shape: ir.Shape) -> ir.Value:
        return ir.val(self._names.new(f"{self._layer}.{hint}"), dtype=ir.DataType.FLOAT, shape=shape)

    def cast(self, value: ir.Value, dtype: ir.DataType, hint: str) -> ir.Value:
        return self.op("Cast", [value], hint, {"to": int(dtype)}, dtype=dtype)

    def reshape(self, value: ir.Value, shape: Sequence[int], hint: str) -> ir.Value:
        return self.op("Reshape", [value, self.ints(shape, f"{hint}.shape")], hint)

    def split(self, value: ir.Value, parts: int, hint: str) -> Sequence[ir.Value]:
        """[N, parts * H] as `parts` values of [N, H]."""
        attributes = {"axis": 1} | ({"num_outputs": parts} if self._opset >= _SPLIT_HAS_COUNT else {})
        return maker_of(self.op("Split", [value], hint, attributes, outputs=parts)).outputs


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One time step. `rows` is gates * H; `weight` [H, rows] and `bias` [rows] are those of the product with R."""

    op_type: str
    hidden: int
    rows: int
    weight: ir.Value
    bias: ir.Value | None

    def step(self, write: _Writer, p: ir.Value, states: Sequence[ir.Value]) -> tuple[list[ir.Value], ir.Value]:
        """The next states [1,N,H] (h, and c of an LSTM) from p = X W^T + b [N, gates * H], and the product with R."""
        h = write.reshape(states[0], [-1, self.hidden], "state")
        q = write.op("Gemm", [h, self.weight, *([] if self.bias is None else [self.bias])], "recurrence")
        return (_lstm if self.op_type == "LSTM" else _gru)(write, p, q, states), q


def _lstm(write: _Writer, p: ir.Value, q: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
    parts = write.split(write.op("Add", [p, q], "gates"), 4, "split")
    i, o, f = (write.op("Sigmoid", [part], name) for part, name in zip(parts, "iof", strict=False))
    kept = write.op("Mul", [f, states[1]], "kept")
    fresh = write.op("Mul", [i, write.op("Tanh", [parts[3]], "g")], "fresh")
    c = write.op("Add", [kept, fresh], "c")
    return [write.op("Mul", [o, write.op("Tanh", [c], "c.tanh")], "h"), c]


def _gru(write: _Writer, p: ir.Value, q: ir.Value, states: Sequence[ir.Value]) -> list[ir.Value]:
    of_x, of_h = write.split(p, 3, "input.split"), write.split(q, 3, "recurrence.split")
    z, r = (
        write.op("Sigmoid", [write.op("Add", [a, b], f"{name}.sum")], name)
        for a, b, name in zip(of_x, of_h, "zr", strict=False)
    )
    reset = write.op("Mul", [r, of_h[2]], "reset")
    g = write.op("Tanh", [write.op("Add", [of_x[2], reset], "g.sum")], "g")
    rest = write.op("Sub", [write.constant(np.float32(1), "one"), z], "rest")
    kept = write.op("Mul", [z, states[0]], "kept")
    return [write.op("Add", [write.op("Mul", [rest, g], "fresh"), kept], "h")]


def _decompose(node: ir.Node, write: _Writer) -> Decomposed:
    x = input_of(node, 0)
    w, r = (array_of(constant_input(node, index)) for index in (WEIGHT, RECURRENCE))
    hidden, half = r.shape[2], is_half(node)
    bias, inner_bias = _biases(node, hidden)
    cell = _Cell(
        op_type=node.op_type,
        hidden=hidden,
        rows=w.shape[1],
        weight=write.constant(r[0].T.astype(np.float32), "recurrence.weight"),
        bias=None if inner_bias is None else write.constant(inner_bias, "recurrence.bias"),
    )
    flat = write.reshape(write.cast(x, _FLOAT, "x") if half else x, [-1, w.shape[2]], "flat")
    weights = [write.constant(w[0].T.astype(np.float32), "input.weight")]
    weights += [] if bias is None else [write.constant(bias, "input.bias")]
    p = write.op("Gemm", [flat, *weights], "input")
    states, body = _initial_states(node, x, hidden, write), list[ir.Node]()
    if _static(x, 0) == 1:
        states, q = cell.step(write, p, states)
        outputs = [write.reshape(states[0], [1, 1, -1, hidden], "y"), *states]
    else:
        sequence = write.op("Reshape", [p, _sequence_shape(x, cell.rows, write)], "sequence")
        outputs, q, body = _scan(node, cell, sequence, states, write)
    if half:
        outputs = _in_half(node, outputs, write)
    made = [*write.nodes, *body]
    numbers = {maker_of(value): index for index, value in reversed(list(enumerate(outputs)))}
    _replace(node, outputs, write.nodes)
    return Decomposed(
        layer=name_of(node),
        input=name_of(maker_of(p)),
        recurrence=name_of(maker_of(q)),
        nodes={name_of(new): numbers.get(new) for new in made},
    )


def _biases(node: ir.Node, hidden: int) -> tuple[Array | None, Array | None]:
    """The biases of the products with W and with R, [gates * H] each, None for one that is not there."""
    bias = constant_value(optional_input(node, BIAS))
    if bias is None:
        return None, None
    of_w, of_r = np.split(bias.reshape(-1).astype(np.float64), 2)
    if node.op_type == "LSTM":
        return (of_w + of_r).astype(np.float32), None
    plain = np.where(np.arange(of_r.size) < 2 * hidden, of_r, 0)  # z and r: they only add up
    return (of_w + plain).astype(np.float32), (of_r - plain).astype(np.float32)


def _initial_states(node: ir.Node, x: ir.Value, hidden: int, write: _Writer) -> list[ir.Value]:
    """initial_h, and initial_c of an LSTM: [1,N,H]."""
    given = [optional_input(node, index) for index in ((HIDDEN, CELL) if node.op_type == "LSTM" else (HIDDEN,))]
    if is_half(node):
        given = [value and write.cast(value, _FLOAT, f"initial{index}") for index, value in enumerate(given)]
    present = [value for value in given if value is not None]
    if len(present) == len(given):
        return present
    zeros = _zeros(x, hidden, write)
    return [zeros if value is None else value for value in given]


def _in_half(node: ir.Node, outputs: Sequence[ir.Value], write: _Writer) -> list[ir.Value]:
    """The outputs as float16, those that nobody asks for left out of it."""
    asked = [bool(value.name) for value in node.outputs] + [False] * len(outputs)
    half = ir.DataType.FLOAT16
    return [write.cast(value, half, f"half{index}") if asked[index] else value for index, value in enumerate(outputs)]


def _zeros(x: ir.Value, hidden: int, write: _Writer) -> ir.Value:
    batch = _static(x, 1)
    if batch is not None:
        return write.constant(np.zeros((1, batch, hidden), np.float32), "zeros")
    parts = [write.ints([1], "one_direction"), _sizes(x, 1, 2, write), write.ints([hidden], "hidden_size")]
    shape = write.op("Concat", parts, "zeros.shape", {"axis": 0}, dtype=ir.DataType.INT64)
    return write.op("ConstantOfShape", [shape], "zeros")


def _scan(
    node: ir.Node, cell: _Cell, sequence: ir.Value, states: Sequence[ir.Value], write: _Writer
) -> tuple[list[ir.Value], ir.Value, list[ir.Node]]:
    """Y and the last states, the product with R, and the nodes of the body."""
    inputs = [write.body_input(f"state{index}", ir.Shape([1, None, cell.hidden])) for index in range(len(states))]
    p = write.body_input("step", ir.Shape([None, cell.rows]))
    outer, write.nodes = write.nodes, []
    following, q = cell.step(write, p, inputs)
    y = write.op("Identity", [following[0]], "each")
    for value in (*following, y):  # ONNX Runtime wants to know the rank of what leaves the body
        value.shape = ir.Shape([1, None, cell.hidden])
    body, write.nodes = write.nodes, outer
    graph = ir.Graph([*inputs, p], [*following, y], nodes=body, name=f"{node.name}.body")
    backwards = int(node.attributes.get_string("direction", "forward") == "reverse")
    attributes = {
        "body": graph,
        "num_scan_inputs": 1,
        "scan_input_directions": [backwards],
        "scan_output_directions": [backwards],
    }
    scan = maker_of(write.op("Scan", [*states, sequence], "scan", attributes, outputs=len(states) + 1))
    return [scan.outputs[-1], *scan.outputs[:-1]], q, body


def _sequence_shape(x: ir.Value, rows: int, write: _Writer) -> ir.Value:
    """[T, N, rows] for `x` of [T, N, I]; at most one of the sizes can be left to Reshape."""
    length, batch = _static(x, 0), _static(x, 1)
    if length is not None or batch is not None:
        return write.ints([-1 if length is None else length, -1 if batch is None else batch, rows], "sequence.shape")
    parts = [_sizes(x, 0, 2, write), write.ints([rows], "rows")]
    return write.op("Concat", parts, "sequence.shape", {"axis": 0}, dtype=ir.DataType.INT64)


def _sizes(x: ir.Value, start: int, end: int, write: _Writer) -> ir.Value:
    """The sizes of the axes start..end-1 of `x` at run time."""
    shape = write.op("Shape", [x], "shape", dtype=ir.DataType.INT64)
    bounds = [write.ints([start], "start"), write.ints([end], "end")]
    return write.op("Slice", [shape, *bounds], "sizes", dtype=ir.DataType.INT64)


def _static(x: ir.Value, axis: int) -> int | None:
    """The size that the file states for an axis of `x`."""
    size = x.shape[axis] if x.shape is not None and len(x.shape) == 3 else None
    return size if isinstance(size, int) else None


def _replace(node: ir.Node, outputs: Sequence[ir.Value], made: Sequence[ir.Node]) -> None:
    """Put the new nodes in the place of `node`: users, graph outputs, names and types of its outputs pass to them."""
    graph = graph_of(node)
    graph.insert_before(node, made)
    for old, new in zip(node.outputs, outputs, strict=False):
        if not old.name:
            continue
        new.name, old.name = old.name, None
        new.type, new.shape = old.type or new.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    inputs = tuple(node.inputs)
    graph.remove(node, safe=True)
    remove_unused(inputs[1:])
