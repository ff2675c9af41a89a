"""The Add behind a MatMul: one that adds a constant to each column is the bias of the product.

ONNX Runtime makes a Gemm of both where the product has two dimensions, or where all of its sizes are fixed. A Gemm that
adds floats to a product of integers has no integer kernel; one whose bias is int32 has.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, is_op, name_of, only_reader
from amct_onnx.graph.constants import ValueNames, constant_tensor, own_constant
from amct_onnx.graph.layer_view import Layer
from amct_onnx.graph.tensors import array_of, shape_of
from amct_onnx.numerics.arrays import Array


def only_sum(product: ir.Node) -> ir.Node | None:
    """The Add that alone reads a MatMul."""
    reader = only_reader(product.outputs[0]) if is_op(product, "MatMul") else None
    return reader if is_op(reader, "Add") and reader.graph is graph_of(product) else None


def bias_index(layer: Layer, rank: int | None) -> int | None:
    """Which input of `only_sum` of a product is the same for all rows, a float32 constant; None if none is.

    rank: the number of dimensions of the product where it is known. The sum must not have more.
    """
    node = only_sum(layer.node)
    if node is None:
        return None
    index = 1 if node.inputs[0] is layer.node.outputs[0] else 0
    tensor = constant_tensor(node.inputs[index])
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    shape = shape_of(tensor)
    row = tensor.size == 1 or (shape[-1:] == layer.shape[-1:] and tensor.size == layer.shape[-1])
    return index if row and len(shape) <= (rank or 1) else None


def row_of(node: ir.Node, index: int, columns: int) -> Array:
    """float32[columns]: what such an Add gives each column."""
    tensor = constant_tensor(node.inputs[index])
    if tensor is None:
        raise RuntimeError(f"Input {index} of {node.name!r} is no constant.")
    return np.broadcast_to(array_of(tensor).reshape(-1), (columns,))


def own_row(node: ir.Node, index: int, columns: int, names: ValueNames) -> None:
    """Give such an Add a constant of its own, float32[columns], in place. Idempotent."""
    own_constant(node, index, np.array(row_of(node, index, columns)), f"{name_of(node)}.bias", names=names)
