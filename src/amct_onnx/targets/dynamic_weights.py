"""Weights in int8 without any data: which nodes get them, and on which grids; activations are quantized as they come.

What is decided rests on `make dynamic ARGS=--kernels` (ONNX Runtime 1.32, x86 with VNNI, one thread): a product of
64 x 64 is as fast as in float for 256 rows, one of 384 x 384 for a single one; with 16 outputs or fewer none is. An
LSTM is faster from 192 units on, whatever its batch, and an integer convolution never.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ArgumentError
from amct_onnx.graph.access import is_op, name_of, optional_input
from amct_onnx.graph.constants import constant_tensor, why_variable
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import as_layer, constant_input
from amct_onnx.graph.layers import INSIDE, candidates
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.recurrent import RECURRENCE, WEIGHT
from amct_onnx.graph.tensors import array_of, shape_of
from amct_onnx.graph.weights import kernel_rows
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.grid import LEAST_SCALE, MOST_SCALE, QSpec
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.mse import solve_weight_mse
from amct_onnx.numerics.weights.pairs import solve_pairs
from amct_onnx.plan.float_model import FusedModel
from amct_onnx.targets.float_units import Units
from amct_onnx.targets.target import Lowered, save_model_of
from amct_onnx.targets.to_dynamic import TABLE, WeightPlace, lower_dynamic, owners_of
from amct_onnx.values.findings import WeightGrid
from amct_onnx.values.layers import Decision, LayerTraits
from amct_onnx.values.request import Request

_LEAST_WEIGHTS, _LEAST_OUTPUTS = 1 << 12, 17  # of a product
_LEAST_RECURRENT = 1 << 18  # weights of an LSTM in one direction
_LEAST_TABLE = 1 << 16  # values
_SAFE_BITS = 7  # two such weights cannot overflow
_WEIGHTS = QSpec(channel_axis=0, least_scale=LEAST_SCALE, most_scale=MOST_SCALE)
_REFUSED: Mapping[str, str] = {
    "Conv": "a convolution of dynamic integers is slower than a float one",
    "ConvTranspose": "ONNX Runtime has no transposed convolution of integers",
    "GRU": "ONNX Runtime has no GRU of integers",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class DynamicWeights(Lowered):
    """`grids` has the weights of the quantized nodes of `float_model`: rows of output channels, or of a table.

    target: the name for its file.
    """

    float_model: ir.Model
    grids: Mapping[WeightPlace, WeightGrid]
    target: str

    def model(self) -> ir.Model:
        model = self.float_model.clone()
        lower_dynamic(model, self.grids)
        return model

    def save(self, prefix: str) -> tuple[str, ...]:
        return save_model_of(self, prefix, self.target)

    def units(self) -> Units:
        raise ArgumentError("sensitivity measures activations on fixed grids, and this model has none.")


def solve_dynamic(source: FusedModel, request: Request, target: str) -> DynamicWeights:
    """Decide which nodes get weights in int8, and solve their grids; what has no grid stays in float.

    Raises ConfigError for settings that it does not have.
    """
    request.refuse_for(f"{target} with dynamic", integers=True)
    decisions = {decision.layer: decision for decision in _decisions(source.model, request)}
    chosen = [name for name, decision in decisions.items() if decision.quantized]
    model = source.model.clone()
    normalize_layers(model, frozenset(chosen))
    index, solved = index_graph(model), dict[str, dict[int, WeightGrid]]()
    for name, owner in owners_of(source.model, chosen).items():
        try:
            if owner not in solved:
                weights = _weights(index.nodes[owner])
                solved[owner] = {place: _solve(rows, owner, place, request) for place, rows in weights}
            solved[name] = solved[owner]
        except ValueError as error:
            decisions[name] = Decision(layer=name, quantized=False, reason=str(error))
    grids = {(name, place): grid for name, found in solved.items() for place, grid in found.items()}
    return DynamicWeights(
        decisions=tuple(decisions.values()),
        weights={node: grid.params for (node, place), grid in grids.items() if place != RECURRENCE},
        float_model=source.model,
        grids=grids,
        target=target,
    )


def _decisions(model: ir.Model, request: Request) -> Iterable[Decision]:
    off, small = request.off(), request.full_int8
    nodes = {node.name: node for node in model.graph}
    for traits in candidates(model):
        if traits.op_type == "AveragePool":  # it has no weight
            continue
        reason = off.get(traits.name) or _reason(traits, nodes, small=small)
        yield Decision(layer=traits.name, quantized=not reason, reason=reason)
    for node in model.graph:
        if (size := _table_size(node)) > 0:
            reason = off.get(name_of(node), "")
            if size < _LEAST_TABLE and not small:
                reason = reason or f"its table of {size:,} values is too small to be worth it"
            yield Decision(layer=name_of(node), quantized=not reason, reason=reason)


def _table_size(node: ir.Node) -> int:
    """How many values a Gather picks rows of, 0 for another node."""
    table = constant_tensor(optional_input(node, TABLE)) if is_op(node, "Gather") else None
    if table is None or table.dtype != ir.DataType.FLOAT or len(table.shape) < 2:
        return 0
    return int(table.size) if node.attributes.get_int("axis", 0) == 0 else 0


def _reason(traits: LayerTraits, nodes: Mapping[str | None, ir.Node], *, small: bool) -> str:
    """Why a node stays in float, "" for one that does not. small: not since it gains no time."""
    if traits.op_type in _REFUSED:
        return _REFUSED[traits.op_type]
    if traits.op_type == "LSTM":
        return _recurrent_reason(nodes[traits.name], small=small) if traits.name in nodes else INSIDE
    if traits.two_operands:
        return "it multiplies two activations"
    if traits.reason is not None:
        return traits.reason
    if traits.half:
        return "it computes in float16, and activations are quantized from float32 only"
    if traits.weight_rank != 2:
        return f"its weight has {traits.weight_rank} dimensions, and 2 are supported"
    layer = as_layer(nodes[traits.name])
    assert layer is not None
    if small:
        return ""
    if layer.output_channels < _LEAST_OUTPUTS or prod(layer.shape) < _LEAST_WEIGHTS:
        return f"its weight of {' x '.join(map(str, layer.shape))} is too small to be faster in integers"
    return ""


def _recurrent_reason(node: ir.Node, *, small: bool) -> str:
    """Why an LSTM stays in float: ONNX Runtime's kernel takes all attributes but the layout."""
    size = 0
    for place in (WEIGHT, RECURRENCE):
        weight = constant_tensor(optional_input(node, place))
        if weight is None:
            return f"its weight {why_variable(optional_input(node, place))}"
        shape = shape_of(weight)
        if weight.dtype != ir.DataType.FLOAT:
            return f"its weight is {weight.dtype.numpy()}, and only float32 is supported"
        if len(shape) != 3:
            return f"its weight has {len(shape)} dimensions, and 3 are supported"
        size += prod(shape[1:])
    if node.attributes.get_int("layout", 0):
        return "its layout is not 0"
    return "" if small or size >= _LEAST_RECURRENT else f"its {size:,} weights are too few to be faster in integers"


def _weights(node: ir.Node) -> Iterator[tuple[int, Floats]]:
    """The weights of a normalized node by the index of the input, as rows: of outputs, or of a table."""
    places = {"LSTM": (WEIGHT, RECURRENCE), "Gather": (TABLE,)}.get(node.op_type, (WEIGHT,))
    for place in places:
        array = array_of(constant_input(node, place))
        if is_op(node, "LSTM"):
            yield place, array.reshape(-1, array.shape[-1])  # of both directions
        else:
            yield place, array.reshape(len(array), -1) if place == TABLE else kernel_rows(array, node)


def _solve(rows: Floats, name: str, place: int, request: Request) -> WeightGrid:
    """The grid of a weight, and its integers where they are not the nearest. Raises ValueError where there is none."""
    settings = request.layer((name,))
    spec = _WEIGHTS if settings is None else replace(_WEIGHTS, bits=settings.weight.num_bits)
    if request.reduce_range and spec.bits > _SAFE_BITS and place != TABLE:
        params, integers = solve_pairs(rows, spec, np.zeros(len(rows), np.float32))
        return WeightGrid(params=params, integers=integers)
    solve = solve_weight_mse if settings is None else solve_arq
    return WeightGrid(params=solve(rows, spec))
