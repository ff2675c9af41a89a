"""A model whose products have weights of few bits, and activations in float: for ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.errors import ArgumentError
from amct_onnx.targets.target import Lowered, save_model_of
from amct_onnx.targets.to_nbits import BlockWeight, lower_nbits
from amct_onnx.targets.units import Units


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
