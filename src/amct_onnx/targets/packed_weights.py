"""A model whose products have weights of few bits, and activations in float: for ONNX Runtime's MatMulNBits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from amct_onnx.errors import ArgumentError
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.numerics.grid import QParams
from amct_onnx.run.session import open_session
from amct_onnx.targets.protocol import RangeChoice
from amct_onnx.targets.to_nbits import BlockWeight, lower_nbits
from amct_onnx.targets.units import Units
from amct_onnx.values.layers import Decision, LayerRecord
from amct_onnx.values.qdq_tables import ONNXRUNTIME


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedWeights:
    """`blocks` has the weight of each quantized product of `float_model`, by node."""

    float_model: ir.Model
    blocks: Mapping[str, BlockWeight]
    decisions: tuple[Decision, ...]

    @property
    def activations(self) -> Mapping[str, QParams]:
        return {}

    @property
    def weights(self) -> Mapping[str, QParams]:
        return {}

    @property
    def rows(self) -> Mapping[str, QParams]:
        return {}

    @property
    def records(self) -> Mapping[str, LayerRecord]:
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def model(self) -> ir.Model:
        model = self.float_model.clone()
        lower_nbits(model, self.blocks)
        return model

    def save(self, prefix: str) -> tuple[str, ...]:
        folder, stem = os.path.split(prefix)
        name = ONNXRUNTIME.name
        file = os.path.join(folder, f"{stem}_{name}.onnx" if stem else f"{name}.onnx")
        save_model_file(self.model(), file)
        return (file,)

    def session(self) -> Any:
        return open_session(self.model())

    def exact_session(self) -> Any:
        return self.session()

    def units(self) -> Units:
        raise ArgumentError("sensitivity measures int8 layers, and this model has weights of few bits only.")

    def range_choices(self) -> tuple[RangeChoice, ...]:
        return ()
