"""The deploy dialect: Ascend operators, int8 weights, int32 biases (amct_formats.md: Deploy model)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.constants import ValueNames, add_initializer
from amct_onnx.graph.read.lift_deploy import PRECISION_KEY
from amct_onnx.numerics.arrays import Doubles
from amct_onnx.numerics.grid import QParams, truncated_scale
from amct_onnx.numerics.packing import pack_dequant
from amct_onnx.targets.to_integers import Dequantization

_GE_FLOAT, _GE_FLOAT16 = 0, 1  # data types of the graph engine


class AscendDialect:
    """Writes AscendQuant, AscendDequant and AscendAntiQuant nodes; read by ATC, and by `deployed_session` on a CPU.

    With `half` (FORCE_FP16_QUANT) scales of results are truncated; metadata tell `deployed_session` of the mode.
    """

    sums = ir.DataType.INT32
    weight_type: npt.DTypeLike = np.int8
    bias_type: npt.DTypeLike = np.int32

    def __init__(self, model: ir.Model, *, half: bool = False) -> None:
        self._graph, self._names, self._half = model.graph, ValueNames(model), half
        if half:
            model.metadata_props[PRECISION_KEY] = "FORCE_FP16_QUANT"

    def quantize(self, x: ir.Value, owner: str, params: QParams, *, half: bool = False) -> list[ir.Node]:
        # AscendQuant takes either type.
        dtype = ir.DataType.INT16 if params.spec.bits > 8 else ir.DataType.INT8
        output = ir.val(self._names.new(f"{owner}.quant.output0"), dtype=dtype, shape=x.shape)
        attributes: dict[str, float | str] = {
            "scale": float(inverse_scale(params)),
            "offset": float(params.zero_point[0]),
            "dst_type": f"INT{params.spec.bits}",
        }
        name = self._names.node(f"{owner}.quant")
        return [ir.node("AscendQuant", [x], attributes, name=name, outputs=[output])]

    def restore(self, integers: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        output = ir.val(self._names.new(f"{owner}.anti_quant.output0"), shape=integers.shape)
        attributes: dict[str, float] = {"scale": float(params.scale[0]), "offset": float(params.zero_point[0])}
        name = self._names.node(f"{owner}.anti_quant")
        return [ir.node("AscendAntiQuant", [integers], attributes, name=name, outputs=[output])]

    def quantize_output(self, x: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        return self.quantize(x, owner, params)

    def sum_wide(self, node: ir.Node, bias: Doubles | None) -> ir.Node:
        return node  # int32 is exact

    def dequantize(self, x: ir.Value, spec: Dequantization) -> list[ir.Node]:
        packed = pack_dequant(truncated_scale(spec.scale) if self._half else spec.scale)
        param = add_initializer(self._graph, f"{spec.layer}.dequant.param", packed, names=self._names)
        output = ir.val(self._names.new(f"{spec.layer}.dequant.output0"))
        dtype = {"dtype": _GE_FLOAT16 if spec.half else _GE_FLOAT}
        name = self._names.node(f"{spec.layer}.dequant")
        return [ir.node("AscendDequant", [x, param], dtype, name=name, outputs=[output])]


def inverse_scale(params: QParams) -> np.float32:
    """The factor that both dialects multiply by: 1 / scale_d in float32."""
    inverse: np.float32 = np.float32(1.0) / params.scale[0]
    return inverse
