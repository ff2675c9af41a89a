"""Fold a Mul or Add that follows a BatchNormalization into its scale and B (amct_formats.md: Fusion).

before: x -> BatchNormalization(scale, B) -> Mul(c) -> Add(d) -> y
after:  x -> BatchNormalization(scale * c, B * c + d)         -> y

with c and d constant, one number or one for each channel.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import is_op, label_of, optional_input, producer_of
from amct_onnx.graph.constants import ValueNames, constant_value, own_constant
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.fusion import CONVOLUTIONS, FUSABLE, Fusion, absorb, feeds_only, is_affine
from amct_onnx.numerics.arrays import Array


def fuse_affine_into_batch_norm(model: ir.Model, *, skip: Collection[str] = ()) -> list[Fusion]:
    """Fold every Mul and Add by a constant right after a BatchNormalization into it, in all graphs of the model.

    `skip` names nodes of skip_fusion_layers: a BatchNormalization that is listed, or whose convolution is, keeps what
    follows it. Returns what was fused, in graph order.
    """
    opset, names = default_opset(model), ValueNames(model)
    fused: list[Fusion] = []
    for graph in list(model.graphs()):
        for batch_norm in list(graph):
            if is_op(batch_norm, "BatchNormalization") and not _is_listed(batch_norm, skip):
                while (fusion := _fold_next(batch_norm, opset, names)) is not None:
                    fused.append(fusion)
    return fused


def _is_listed(batch_norm: ir.Node, skip: Collection[str]) -> bool:
    producer = producer_of(batch_norm, 0)
    return batch_norm.name in skip or (is_op(producer, *CONVOLUTIONS) and producer.name in skip)


def _fold_next(batch_norm: ir.Node, opset: int, names: ValueNames) -> Fusion | None:
    """Fold the node after `batch_norm`; None when it cannot be folded."""
    consumers = batch_norm.outputs[0].consumers()
    follower = consumers[0] if consumers else None
    if not is_op(follower, "Mul", "Add") or not is_affine(batch_norm, opset):
        return None
    operand = constant_value(next((v for v in follower.inputs if v is not batch_norm.outputs[0]), None))
    if operand is None or not feeds_only(batch_norm, follower):
        return None
    scale, shift = (constant_value(optional_input(batch_norm, index)) for index in (1, 2))
    if scale is None or shift is None or scale.ndim != 1 or scale.shape != shift.shape:
        return None
    factor = _per_channel(operand, scale.size, _rank(batch_norm))
    if factor is None or {"axis", "broadcast"} & set(follower.attributes):  # attributes of opset < 7: other rules
        return None
    with np.errstate(all="ignore"):
        new_scale, new_shift = scale.astype(np.float64), shift.astype(np.float64)
        if follower.op_type == "Mul":
            new_scale, new_shift = new_scale * factor, new_shift * factor
        else:
            new_shift = new_shift + factor
        rounded = new_scale.astype(scale.dtype), new_shift.astype(shift.dtype)
        if not all(np.isfinite(array.astype(np.float64)).all() for array in rounded):
            return None
    for index, array in enumerate(rounded, start=1):
        hint = f"{label_of(batch_norm)}.{'scale' if index == 1 else 'bias'}"
        own_constant(batch_norm, index, array, hint, names=names)
    return absorb(batch_norm, follower)


def _rank(batch_norm: ir.Node) -> int | None:
    """The rank of the activation: as stated in the model, or that of the weight of the convolution before it."""
    while True:
        for value in (batch_norm.outputs[0], optional_input(batch_norm, 0)):
            if value is not None and value.shape is not None:
                return len(value.shape)
        producer = producer_of(batch_norm, 0)
        if not is_op(producer, *FUSABLE):
            return None
        if producer.op_type != "BatchNormalization":
            break
        batch_norm = producer
    weight = optional_input(producer, 1)
    array = constant_value(weight)
    if array is not None:
        return array.ndim
    return len(weight.shape) if weight is not None and weight.shape is not None else None


def _per_channel(constant: Array, channels: int, rank: int | None) -> Array | None:
    """The constant as float64[channels] (or a single number), None when it is neither or changes the output's shape."""
    if constant.size == 1:
        # A constant of higher rank than the activation raises the rank of the output. Without a known rank only a
        # vector is safe, since the activation has a batch axis at the least.
        fits = constant.ndim <= (1 if rank is None else rank)
        return constant.astype(np.float64).reshape(()) if fits else None
    if rank is None or rank < 2 or constant.ndim > rank:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if shape != (1, channels) + (1,) * (rank - 2):
        return None
    return constant.astype(np.float64).reshape(channels)
