"""Weight-only quantization for ONNX Runtime: products whose weight is stored in few bits.

Before                  After
MatMul(x, w)            com.microsoft.MatMulNBits(x, packed, scales[, zero_points])
Gemm(x, w, b)           com.microsoft.MatMulNBits(x, packed, scales[, zero_points]) -> Add(b)

Equal weights are stored once. In a layer of float16 the scales are of that type.

ONNX Runtime, ContribOperators.md, `com.microsoft.MatMulNBits`: the weight is [N, blocks, bytes of a block], the first
of two weights of 4 bits in the lower half of a byte; scales and zero points are rows of N. A row of zero points of 4
bits is filled up to whole bytes. Where the length of a row is no multiple of the block, the last one is filled up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ArgumentError
from amct_onnx.graph.access import input_of, name_of
from amct_onnx.graph.constants import ValueNames, add_initializer
from amct_onnx.graph.layer_view import constant_input
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.numerics.arrays import Array, Uint8s
from amct_onnx.numerics.weights.block_grid import BlockGrid
from amct_onnx.targets.float_units import Units
from amct_onnx.targets.target import Lowered, save_model_of

DOMAIN = "com.microsoft"
_INT8 = 4  # the accuracy_level at which the runtime multiplies in int8, with a scale for each block of an activation


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockWeight:
    """The weight of a layer in rows of output channels: `integers` uint8[N, K] on `grid`."""

    integers: Uint8s
    grid: BlockGrid


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeights(Lowered):
    """`blocks` has the weight of each quantized product of `float_model`, by node. `target`: the name for its file."""

    float_model: ir.Model
    blocks: Mapping[str, BlockWeight]
    target: str

    def model(self) -> ir.Model:
        model = self.float_model.clone()
        lower_nbits(model, self.blocks)
        return model

    def save(self, prefix: str) -> tuple[str, ...]:
        return save_model_of(self, prefix, self.target)

    def units(self) -> Units:
        raise ArgumentError("sensitivity measures int8 layers, and this model has weights of few bits only.")


def fastest_level(grid: BlockGrid) -> int:
    """The accuracy_level for the weights of a grid, by measurement on x86 with ONNX Runtime 1.32 (64 rows, and one).

    Multiplying in int8 cost a sentence encoder of 4 bits 0.06 dB of 13.8, and it takes half the time for one row and as
    much for 64. With blocks of 16 weights of 4 bits it is six times slower than float for 64 rows; with weights of 8
    bits, all other levels are more than ten times slower.
    """
    return 0 if grid.bits == 4 and grid.block < 32 else _INT8


def lower_nbits(model: ir.Model, weights: Mapping[str, BlockWeight], *, exact: bool = False) -> None:
    """Give the MatMul and Gemm named in `weights` their weight in few bits, in place.

    exact: the runtime multiplies in float, however long it takes.
    """
    normalize_layers(model, frozenset(weights))
    stored = _Stored(model)
    for node in list(model.graph):
        weight = weights.get(name_of(node))
        if weight is not None:
            _replace(model.graph, node, weight, 0 if exact else fastest_level(weight.grid), stored)
    if weights:
        model.opset_imports.setdefault(DOMAIN, 1)


class _Stored:
    """The initializers that are added to a model, equal ones once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph, self.names = model.graph, ValueNames(model)
        self._known: dict[bytes, ir.Value] = {}

    def value(self, name: str, array: Array) -> ir.Value:
        """The one that holds `array`, named like `name` if it is new."""
        key = hashlib.blake2b(f"{array.dtype} {array.shape}".encode() + array.tobytes()).digest()
        if key not in self._known:
            self._known[key] = add_initializer(self._graph, name, array, names=self.names)
        return self._known[key]


def _replace(graph: ir.Graph, node: ir.Node, weight: BlockWeight, accuracy_level: int, stored: _Stored) -> None:
    grid, old, result, names = weight.grid, input_of(node, 1), node.outputs[0], stored.names
    half = constant_input(node, 1).dtype == ir.DataType.FLOAT16
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    hint = name_of(old)
    scales = grid.scale.reshape(-1).astype(np.float16 if half else np.float32)
    constants: dict[str, Array] = {"packed": _packed(weight.integers, grid), "scales": scales}
    if not grid.is_symmetric:
        constants["zero_points"] = _packed_rows(grid.zero_point, grid.bits).reshape(-1)
    operands = [node.inputs[0], *(stored.value(f"{hint}.{what}", array) for what, array in constants.items())]
    count, length = weight.integers.shape
    attributes = {"K": length, "N": count, "bits": grid.bits, "block_size": grid.block}
    if accuracy_level:
        attributes["accuracy_level"] = accuracy_level
    product = ir.val(names.new(f"{result.name}.product"), type=result.type, shape=result.shape)
    nodes = [ir.node("MatMulNBits", operands, attributes, domain=DOMAIN, name=node.name, outputs=[product])]
    if bias is not None:
        total = ir.val(names.new(f"{result.name}.sum"), type=result.type, shape=result.shape)
        nodes.append(ir.node("Add", [product, bias], name=names.node(f"{node.name}.bias"), outputs=[total]))
    graph.insert_before(node, nodes)
    last, name = nodes[-1].outputs[0], result.name
    result.replace_all_uses_with(last, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    last.name = name
    if not old.uses() and not old.is_graph_output():
        del graph.initializers[hint]


def _packed(integers: Uint8s, grid: BlockGrid) -> Uint8s:
    """uint8[N, blocks, bytes of a block]."""
    count, length = integers.shape
    blocks = grid.scale.shape[1]
    filled = np.repeat(grid.zero_point, grid.block, axis=1)  # a weight of 0 where there is none
    filled[:, :length] = integers
    return _packed_rows(filled.reshape(-1, grid.block), grid.bits).reshape(count, blocks, -1)


def _packed_rows(rows: Uint8s, bits: int) -> Uint8s:
    """Rows of integers of 4 or 8 bits as bytes, the first of two in the lower half."""
    if bits > 4:
        return np.ascontiguousarray(rows)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    packed: Uint8s = rows[:, 0::2] | (rows[:, 1::2] << np.uint8(4))
    return packed
