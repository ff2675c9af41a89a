"""Lookups in a constant table for Q/DQ targets: the table is int8, and what is looked up is dequantized.

Before                      After
Gather(table, ids) -> y     Gather(table_int, ids) -> DequantizeLinear(scale) -> y
                            Gather(table_int, ids) -> DequantizeLinear(1) -> Mul(Gather(scales, ids)) -> y    rows
                            Gather(table_int, ids) -> DequantizeLinear(1) -> Mul(scales) -> y                 columns
Gather(table, ids) -> Q     Gather(table on the grid of Q, ids)

To dequantize the table in front of the Gather, as a pattern of Q/DQ would have it, takes all of it in each run. Where
a layer multiplies with the same table turned, as a head that is tied to the embedding, both read the same integers:

Gather(table_int, ids), Transpose(table_int) -> DequantizeLinear(scales) -> MatMul
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, name_of, producer_of
from amct_onnx.graph.constants import ValueNames, add_initializer, constant_readers, remove_unused
from amct_onnx.graph.layer_view import Layer, constant_input
from amct_onnx.graph.qdq_grids import is_dequantize, is_quantize
from amct_onnx.graph.tensors import array_of, deferred, shape_of
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import quantize
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.numerics.weights.table import solve_table
from amct_onnx.targets.calibration import Calibration
from amct_onnx.values.findings import TableGrid, WeightGrid


def lookup_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of the table along which a node looks up; None where it picks single elements or parts."""
    return node.attributes.get_int("axis", 0) % rank if is_op(node, "Gather") and rank else None


def solve_lookup(
    node: ir.Node, layers: Mapping[str, Layer], weights: Mapping[str, WeightGrid], spec: QSpec, calibration: Calibration
) -> TableGrid:
    """The grid of the table that a node of the float model looks up in.

    layers: the quantized layers of the normalized model that may read the same integers. weights: of all layers. Raises
    ValueError where the table has no grid, or none that is good enough.
    """
    table = array_of(constant_input(node, 0)).astype(np.float32, copy=False)
    axis, readers = lookup_axis(node, table.ndim), constant_readers(node.inputs[0])
    alone = len(readers) == 1
    for reader in sorted(readers, key=name_of):
        layer, grid = layers.get(reader.name or ""), weights.get(reader.name or "")
        if layer is None or grid is None or grid.integers is not None or axis != 0 or table.ndim != 2:
            continue
        if layer.op_type != "Conv" and np.array_equal(kernel_rows(layer.array(), layer.node), table):
            return TableGrid(params=grid.params, tied=name_of(reader))

    def solve(rows: Array, of_rows: QSpec) -> QParams:
        return calibration.solved.weight(solve_weight_mse, rows, of_rows)

    if axis is None:
        rows = table.reshape(len(table), -1)
        return TableGrid(params=solve_table(rows, spec, solve, axes=(None,)), alone=alone)
    rows = np.moveaxis(table, axis, 0)
    axes = (None, 0, 1) if table.ndim == 2 and axis == 0 else (None, 0)
    params = solve_table(rows.reshape(len(rows), -1), spec, solve, axes=axes)
    if params.spec.channel_axis is None:
        return TableGrid(params=params, alone=alone)
    own = axis if params.spec.channel_axis == 0 else table.ndim - 1
    return TableGrid(params=replace(params, spec=replace(params.spec, channel_axis=own)), alone=alone)


class Lowering(Protocol):
    """How the file of a target has the nodes that dequantize."""

    names: ValueNames

    def dequantize(self, integers: ir.Value, grid: Sequence[ir.Value], name: str, output: ir.Value) -> ir.Node:
        """A DequantizeLinear of `integers`, named after `name`; not yet in the graph."""


def lower_lookups(
    model: ir.Model, tables: Mapping[str, TableGrid], activations: Mapping[str, QParams], lowering: Lowering
) -> None:
    """Give the nodes named in `tables` integer tables, in place; all else of the model is quantized already.

    activations: the grids of tensors.
    """
    stored: dict[tuple[ir.Value | None, bytes], ir.Value] = {}
    for node in [node for node in model.graph if node.name in tables]:
        grid, result = tables[name_of(node)], node.outputs[0]
        quantizer = _only_quantizer(result) if grid.alone and name_of(result) in activations else None
        params, kind = grid.params, ir.DataType.INT8
        if quantizer is not None:
            params, kind = activations[name_of(result)], quantizer.outputs[0].dtype or kind
        key = (node.inputs[0], params.scale.tobytes() + params.zero_point.tobytes() + kind.name.encode())
        if key not in stored:
            stored[key] = _stored(model.graph, node, params, kind, lowering.names)
        old, table = node.inputs[0], constant_input(node, 0)
        node.replace_input_with(0, stored[key])
        remove_unused((old,))
        if quantizer is not None:
            _give_integers(model.graph, result, quantizer)
        else:
            _dequantize(model.graph, node, params, len(table.shape), lowering, half=table.dtype == ir.DataType.FLOAT16)
        if grid.tied:
            _tie(model.graph, stored[key], grid.tied, lowering.names)


def table_values(node: ir.Node, grid: TableGrid) -> Array:
    """The table of a node of the float model as it is on its grid, in the type of the table."""
    tensor = constant_input(node, 0)
    params = grid.params
    steps = quantize(array_of(tensor), params, np.int8).astype(np.float32)
    values: Array = (steps * _spread(params, steps.ndim)).astype(tensor.dtype.numpy())
    return values


def _spread(params: QParams, rank: int) -> Array:
    axis = params.spec.channel_axis
    return params.scale.reshape([-1 if k == axis else 1 for k in range(rank)] if axis is not None else ())


def _only_quantizer(result: ir.Value) -> ir.Node | None:
    """The QuantizeLinear that alone reads a tensor."""
    uses = list(result.uses())
    single = len(uses) == 1 and not result.is_graph_output()
    return uses[0].node if single and is_quantize(uses[0].node) else None


def _stored(graph: ir.Graph, node: ir.Node, params: QParams, kind: ir.DataType, names: ValueNames) -> ir.Value:
    tensor = constant_input(node, 0)
    offset = 128 if kind == ir.DataType.UINT8 else 0

    def compute() -> Array:
        integers = quantize(array_of(tensor), params, np.int16 if offset else np.int8)
        return (integers + offset).astype(kind.numpy())

    integers = deferred(compute, kind.numpy(), shape_of(tensor))
    return add_initializer(graph, f"{name_of(input_of(node, 0))}.integers", integers, names=names)


def _give_integers(graph: ir.Graph, result: ir.Value, quantizer: ir.Node) -> None:
    """Let a lookup give what a QuantizeLinear behind it gave."""
    integers = quantizer.outputs[0]
    result.type = ir.TensorType(integers.dtype or ir.DataType.INT8)
    integers.replace_all_uses_with(result)
    graph.remove(quantizer, safe=True)
    result.name = integers.name


def _dequantize(graph: ir.Graph, node: ir.Node, params: QParams, rank: int, lowering: Lowering, *, half: bool) -> None:
    """Restore what a node looks up in a table of `rank` dimensions; half: as float16."""
    names, old, name = lowering.names, node.outputs[0], name_of(node.outputs[0])
    axis = params.spec.channel_axis
    readers, is_output = list(old.uses()), old.is_graph_output()
    unit = params.scale.reshape(()) if axis is None else np.ones((), np.float32)
    parts: dict[str, Array] = {"scale": unit, "zero_point": np.zeros((), np.int8)}
    # ONNX Runtime may put a QuantizeLinear behind the node, which makes uint8 where the zero point does not say int8.
    grid = [add_initializer(graph, f"{name}.{part}", array, names=names) for part, array in parts.items()]
    integers, kind, shape = old, old.type, old.shape
    value = ir.val(names.new(f"{name}.steps"), dtype=ir.DataType.FLOAT, shape=shape)
    nodes = [lowering.dequantize(integers, grid, name, value)]
    if axis is not None:
        factors = add_initializer(graph, f"{name}.scales", np.asarray(_spread(params, rank)), names=names)
        if axis == lookup_axis(node, rank):
            picked = ir.val(names.new(f"{name}.picked"), dtype=ir.DataType.FLOAT)
            pick, operands = names.node(f"{name}.pick"), [factors, node.inputs[1]]
            nodes.append(ir.node("Gather", operands, {"axis": axis}, name=pick, outputs=[picked]))
            factors = picked
        scaled = ir.val(names.new(f"{name}.scaled"), dtype=ir.DataType.FLOAT, shape=shape)
        nodes.append(ir.node("Mul", [value, factors], name=names.node(f"{name}.scale"), outputs=[scaled]))
        value = scaled
    if half:
        cast = ir.val(names.new(f"{name}.half"), dtype=ir.DataType.FLOAT16, shape=shape)
        to = {"to": int(ir.DataType.FLOAT16)}
        nodes.append(ir.node("Cast", [value], to, name=names.node(f"{name}.cast"), outputs=[cast]))
        value = cast
    graph.insert_after(node, nodes)
    for use in readers:
        use.node.replace_input_with(use.idx, value)
    old.name, value.name = names.new(f"{name}.integers"), name
    value.type, old.type = kind or value.type, ir.TensorType(ir.DataType.INT8)
    if is_output:
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = value


def _tie(graph: ir.Graph, table: ir.Value, layer: str, names: ValueNames) -> None:
    """Let a layer read the table, turned, in the place of integers of its own."""
    node = producer_of(next(reader for reader in graph if reader.name == layer), 1)
    if not is_dequantize(node) or is_op(producer_of(node, 0), "Transpose"):
        return
    old = input_of(node, 0)
    turned = ir.val(names.new(f"{table.name}.turned"), dtype=ir.DataType.INT8, shape=old.shape)
    turn = ir.node("Transpose", [table], {"perm": [1, 0]}, name=names.node(f"{table.name}.turn"), outputs=[turned])
    graph.insert_before(graph[0], turn)
    node.replace_input_with(0, turned)
    remove_unused((old,))
