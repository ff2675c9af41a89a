"""The factors of record.txt as scales and zero points of layers and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np

from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.targets.to_integers import weight_spec
from amct_onnx.values.layers import GraphFacts, LayerRecord, QuantizedLayer, QuantizedTensor


def quantized_layers(
    facts: GraphFacts, records: Mapping[str, LayerRecord], wanted: Iterable[str]
) -> tuple[QuantizedLayer, ...]:
    """The layers named in `wanted`, none of them recurrent, with the factors of their records, in graph order."""
    chosen = frozenset(wanted)
    layers = []
    for name, traits in facts.layers.items():
        if name in chosen:
            record = records[name]
            weight = weight_params(record) if traits.has_weight else None
            second = weight_params(record) if traits.two_operands else None
            layers.append(QuantizedLayer(name=name, activation=activation_params(record), weight=weight, second=second))
    return tuple(layers)


def quantized_tensor(key: str, record: LayerRecord) -> QuantizedTensor:
    """The input of a float node that the key of a record names."""
    node, _, index = key.rpartition(":")
    return QuantizedTensor(node=node, input_index=int(index), activation=activation_params(record))


def activation_params(record: LayerRecord) -> QParams:
    """scale_d and offset_d, which a complete record has."""
    spec = QSpec(bits=_bits(record.act_type), symmetric=False)
    scale, offset = cast(float, record.scale_d), record.offset_d or 0
    return QParams(scale=np.float32(scale), zero_point=np.int32(offset), spec=spec)


def weight_params(record: LayerRecord) -> QParams:
    """scale_w, one for each channel or one for all."""
    spec = weight_spec(_bits(record.wts_type), channel_wise=len(record.scale_w) > 1)
    scale = np.asarray(record.scale_w, np.float32)
    return QParams(scale=scale, zero_point=np.zeros(scale.shape, np.int32), spec=spec)


def _bits(type_name: str | None) -> int:
    return int((type_name or "INT8").removeprefix("INT"))
