"""Dynamic quantization for ONNX Runtime: activations become uint8 as they come, weights are int8 with a scale a column.

Before                 After
MatMul(x, w)           DynamicQuantizeLinear(x) -> (q, s, z), MatMulInteger(q, w_int8, z) -> Cast -> Mul(s * w_scale)
Gemm(x, w, b)          the same -> Add(b)
LSTM(x, W, R, b, ...)  com.microsoft.DynamicQuantizeLSTM(x, W_int8, R_int8, b, ..., scales and zero points)
Gather(table, i)       Gather(table_int8, i) -> Cast -> Mul(Gather(row_scales, i))

The standard operators are written, which run everywhere; ONNX Runtime makes a DynamicQuantizeMatMul of each chain, or
one DynamicQuantizeLinear and a MatMulIntegerToFloat for each reader where a tensor has several. It fuses an Add of a
bias behind it, too. A tensor is quantized once for all readers, and a weight that several read is stored once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, label_of, name_of
from amct_onnx.graph.constants import ValueNames, add_initializer, remove_unused
from amct_onnx.graph.layer_view import Layer, as_layer, constant_input, first_readers, layer_of
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.recurrent import RECURRENCE, WEIGHT
from amct_onnx.graph.tensors import array_of, deferred, shape_of
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.arrays import Array, Int8s
from amct_onnx.numerics.rounding import quantize
from amct_onnx.values.findings import WeightGrid

DOMAIN = "com.microsoft"
WeightPlace = tuple[str, int]
"""A node, and the index of its input that is a weight."""
TABLE = 0  # the input of a Gather that is one
_INPUTS = 8  # of an LSTM, the peepholes included


def owners_of(model: ir.Model, nodes: Collection[str]) -> dict[str, str]:
    """For each of some nodes the first one that has the same weight and reads it in the same way."""
    chosen = [node for node in model.graph if node.name in nodes]
    found = first_readers(layer for node in chosen if (layer := as_layer(node)) is not None)
    tables = dict[ir.Value, str]()
    for node in chosen:
        if is_op(node, "Gather"):
            found[name_of(node)] = tables.setdefault(input_of(node, TABLE), name_of(node))
    return {name: found.get(name, name) for name in nodes}


def lower_dynamic(model: ir.Model, grids: Mapping[WeightPlace, WeightGrid]) -> None:
    """Give the nodes named in `grids` their weights in int8, in place."""
    nodes = {node for node, _ in grids}
    owners = owners_of(model, nodes)
    normalize_layers(model, nodes)
    writer = _Writer(model, grids, owners)
    for node in list(model.graph):
        if node.name in nodes and is_op(node, "LSTM"):
            writer.recurrent(node)
            model.opset_imports.setdefault(DOMAIN, 1)
        elif node.name in nodes and is_op(node, "Gather"):
            writer.table(node)
        elif node.name in nodes:
            writer.product(layer_of(node))


class _Writer:
    """Puts integer nodes in the place of float ones. owners: see `owners_of`."""

    def __init__(self, model: ir.Model, grids: Mapping[WeightPlace, WeightGrid], owners: Mapping[str, str]) -> None:
        self._graph, self._grids, self._owners = model.graph, grids, owners
        self._names = ValueNames(model)
        self._quantized: dict[ir.Value, Sequence[ir.Value]] = {}
        self._stored: dict[str, tuple[ir.Value, ir.Value]] = {}

    def product(self, layer: Layer) -> None:
        """Replace a normalized MatMul or Gemm."""
        node, result = layer.node, layer.node.outputs[0]
        integers, scale, zero_point = self._activation(layer.input, node)
        weight, weight_scale = self._weight(layer)
        label, bias = label_of(node), layer.bias_value if layer.op_type == "Gemm" else None
        made = _Chain(result, label, self._names)
        total = made.add("MatMulInteger", [integers, weight, zero_point], "integers")
        steps = made.add("Mul", [scale, weight_scale], "step")
        floats = made.add("Cast", [total], "floats", {"to": ir.DataType.FLOAT})
        last = made.add("Mul", [floats, steps], "product")
        if bias is not None:
            last = made.add("Add", [last, bias], "sum")
        self._replace(node, made.nodes, [last], dead=[input_of(node, WEIGHT)])

    def recurrent(self, node: ir.Node) -> None:
        """Replace a normalized LSTM."""
        given = [*node.inputs, *(None for _ in range(_INPUTS - len(node.inputs)))]
        more: list[ir.Value] = []
        for place in (WEIGHT, RECURRENCE):
            floats, grid = input_of(node, place), self._grids[name_of(node), place]
            tensor = floats.const_value
            assert tensor is not None
            directions, rows, columns = shape_of(tensor)

            def compute(tensor: ir.TensorProtocol = tensor, grid: WeightGrid = grid) -> Array:
                array = array_of(tensor)
                found = _integers(array.reshape(-1, array.shape[-1]), grid)
                return np.ascontiguousarray(found.reshape(array.shape).swapaxes(1, 2))

            name, scale = name_of(floats), grid.params.scale.reshape(directions, rows)
            lazy = deferred(compute, np.int8, (directions, columns, rows))
            given[place] = self._constant(f"{name}.integers", lazy)
            more += [
                self._constant(f"{name}.scale", scale),
                self._constant(f"{name}.zero_point", np.zeros(scale.shape, np.int8)),
            ]
        attributes = [value for key, value in node.attributes.items() if key != "layout"]
        outputs = [ir.val(self._names.new(f"{name_of(node)}.output{k}")) for k in range(len(node.outputs))]
        made = ir.Node(DOMAIN, "DynamicQuantizeLSTM", [*given, *more], attributes, name=node.name, outputs=outputs)
        self._replace(node, [made], outputs, dead=[input_of(node, place) for place in (WEIGHT, RECURRENCE)])

    def table(self, node: ir.Node) -> None:
        """Replace a Gather of rows of a constant."""
        table, indices, result = input_of(node, TABLE), input_of(node, 1), node.outputs[0]
        owner = self._owners[name_of(node)]
        if owner not in self._stored:
            grid, tensor = self._grids[name_of(node), TABLE], constant_input(node, TABLE)

            def compute() -> Array:
                array = array_of(tensor)
                return _integers(array.reshape(len(array), -1), grid).reshape(array.shape)

            shape, name = shape_of(tensor), name_of(table)
            steps = grid.params.scale.reshape(-1, *(1 for _ in shape[1:]))
            stored = self._constant(f"{name}.integers", deferred(compute, np.int8, shape))
            self._stored[owner] = stored, self._constant(f"{name}.scale", steps)
        made = _Chain(result, label_of(node), self._names)
        rows, scale = (
            made.add("Gather", [array, indices], what)
            for array, what in zip(self._stored[owner], ("integers", "step"), strict=True)
        )
        last = made.add("Mul", [made.add("Cast", [rows], "floats", {"to": ir.DataType.FLOAT}), scale], "rows")
        self._replace(node, made.nodes, [last], dead=[table])

    def _activation(self, value: ir.Value, reader: ir.Node) -> Sequence[ir.Value]:
        """The integers, the scale and the zero point of a float tensor, made in front of its first reader."""
        if value not in self._quantized:
            parts = ("quantized", "scale", "zero_point")
            outputs = [ir.val(self._names.new(f"{value.name}.{part}")) for part in parts]
            name = self._names.node(f"{value.name}.quantize")
            node = ir.node("DynamicQuantizeLinear", [value], name=name, outputs=outputs)
            self._graph.insert_before(reader, node)
            self._quantized[value] = outputs
        return self._quantized[value]

    def _weight(self, layer: Layer) -> tuple[ir.Value, ir.Value]:
        """The integers int8[K, N] and the scales float32[N] of a product's weight."""
        owner = self._owners[layer.name]
        if owner not in self._stored:
            grid, tensor, node = self._grids[owner, WEIGHT], layer.weight, layer.node

            def compute() -> Array:
                return np.ascontiguousarray(_integers(kernel_rows(array_of(tensor), node), grid).T)

            name = name_of(input_of(node, WEIGHT))
            stored = self._constant(f"{name}.integers", deferred(compute, np.int8, layer.shape))
            self._stored[owner] = stored, self._constant(f"{name}.scale", grid.params.scale)
        return self._stored[owner]

    def _constant(self, name: str, data: Array | ir.TensorProtocol) -> ir.Value:
        return add_initializer(self._graph, name, data, names=self._names)

    def _replace(
        self, node: ir.Node, nodes: Sequence[ir.Node], results: Sequence[ir.Value], *, dead: Sequence[ir.Value]
    ) -> None:
        """Put `nodes` in the place of one; `dead` are removed unless others read them."""
        self._graph.insert_before(node, nodes)
        names = [old.name for old in node.outputs]
        for old, new in zip(node.outputs, results, strict=True):
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        for new, name in zip(results, names, strict=True):
            new.name = name
        remove_unused(dead)


class _Chain:
    """New nodes with one output each, named after the value that they make and the node that they replace."""

    def __init__(self, result: ir.Value, label: str, names: ValueNames) -> None:
        self.nodes: list[ir.Node] = []
        self._result, self._label, self._names = name_of(result), label, names

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], what: str, attributes: Mapping[str, int] | None = None
    ) -> ir.Value:
        """The output of a new node behind the others."""
        output = ir.val(self._names.new(f"{self._result}.{what}"))
        name = self._names.node(f"{self._label}.{what}")
        self.nodes.append(ir.node(op_type, inputs, attributes or {}, name=name, outputs=[output]))
        return output


def _integers(rows: Array, grid: WeightGrid) -> Int8s:
    """int8[C, n] of rows [C, n]."""
    return grid.integers if grid.integers is not None else quantize(rows, grid.params, np.int8)
