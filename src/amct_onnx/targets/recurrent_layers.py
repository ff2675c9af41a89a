"""LSTM and GRU on their way through both halves of the job: weights to factors, and factors to two ordinary layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import ModelError, RecordError
from amct_onnx.graph.access import optional_input
from amct_onnx.graph.constants import ValueNames, constant_value, own_constant
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layer_view import constant_input
from amct_onnx.graph.passes.decompose_recurrent import Decomposed, decompose_recurrent
from amct_onnx.graph.recurrent import BIAS, RECURRENCE, WEIGHT, gate_rows
from amct_onnx.graph.tensors import array_of
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import fake_quantize, is_on_grid
from amct_onnx.numerics.settings import LayerSettings
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.values.layers import LayerRecord, QuantizedLayer
from amct_onnx.words import named

_BITS = 8


def quantize_recurrent(node: ir.Node, entry: LayerSettings, names: ValueNames) -> tuple[LayerRecord, int]:
    """Replace W and R of a planned layer by their fake-quantized values.

    Returns the layer's record, with one scale a row or one a gate, and how many rows are not zero and become zero.
    Raises ModelError for weights or biases that hold NaN or Inf.
    """
    bias = constant_value(optional_input(node, BIAS))
    if bias is not None and not np.isfinite(bias).all():
        raise _bad(node, "the bias holds NaN or Inf")
    scales, lost = [], 0
    for index in (WEIGHT, RECURRENCE):
        weight = array_of(constant_input(node, index))
        rows = gate_rows(weight, node.op_type, channel_wise=entry.weight.channel_wise)
        try:
            params = solve_arq(rows, QSpec(bits=_BITS, channel_axis=0))
        except ValueError as error:
            raise _bad(node, str(error)) from error
        quantized = fake_quantize(rows, params)
        lost += int((rows.any(axis=1) & ~quantized.any(axis=1)).sum())
        own = quantized.reshape(weight.shape).astype(weight.dtype)  # see fake_quantized of float16
        own_constant(node, index, own, f"{node.name}.constant{index}", names=names)
        scales.append(tuple(float(s) for s in params.scale))
    of_w, of_r = scales
    record = LayerRecord(
        scale_w=of_w,
        offset_w=(0,) * len(of_w),
        wts_type=f"INT{_BITS}",
        scale_r=of_r,
        offset_r=(0,) * len(of_r),
    )
    return record, lost


def split_recurrent(
    model: ir.Model, records: Mapping[str, LayerRecord], layers: Sequence[str], record_file: str
) -> tuple[list[QuantizedLayer], list[Decomposed]]:
    """Decompose the layers named in `layers`, in place: the quantized layers, two for each, and what each became.

    Raises RecordError when the scales of a record do not fit the weights.
    """
    nodes = index_graph(model).nodes
    factors = {name: _factors(nodes[name], records[name], record_file) for name in layers}
    decomposed = decompose_recurrent(model, layers)
    halves = []
    for whole in decomposed:
        data, hidden, of_w, of_r = factors[whole.layer]
        halves.append(QuantizedLayer(name=whole.input, activation=data, weight=of_w, part_of=whole.layer))
        halves.append(QuantizedLayer(name=whole.recurrence, activation=hidden, weight=of_r, part_of=whole.layer))
    return halves, decomposed


def _factors(node: ir.Node, record: LayerRecord, record_file: str) -> tuple[QParams, QParams, QParams, QParams]:
    """Of X, of the hidden states, and of the columns of W^T and R^T."""
    bits = int((record.act_type or "INT8").removeprefix("INT"))
    spec = QSpec(bits=bits, symmetric=False)
    data, hidden = (
        QParams(scale=np.float32(cast(float, scale)), zero_point=np.int32(offset or 0), spec=spec)
        for scale, offset in ((record.scale_d, record.offset_d), (record.scale_h, record.offset_h))
    )
    columns = []
    for index, name, scales in ((WEIGHT, "scale_w", record.scale_w), (RECURRENCE, "scale_r", record.scale_r)):
        weight = array_of(constant_input(node, index))
        rows = weight.reshape(len(scales), -1)  # a row of each gate, or each gate
        if not is_on_grid(rows, _params(np.asarray(scales, np.float32), axis=0)):
            raise RecordError(
                f"{record_file}: {name} of layer {node.name} does not fit the weights of the model. The record belongs "
                "to another model or was edited: run quantize_model and the calibration again."
            )
        columns.append(_params(np.repeat(np.asarray(scales, np.float32), weight.shape[1] // len(scales)), axis=1))
    return data, hidden, columns[0], columns[1]


def _params(scale: Array, *, axis: int) -> QParams:
    spec = QSpec(bits=_BITS, channel_axis=axis)
    return QParams(scale=scale, zero_point=np.zeros(scale.shape, np.int32), spec=spec)


def _bad(node: ir.Node, what: str) -> ModelError:
    return ModelError(f'Layer "{node.name}": {what}. Correct the model or add the layer to {named("skip_layers")}.')
