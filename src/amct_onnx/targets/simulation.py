"""The fake-quant dialect: standard operators only, integers carried in float32 (spec section 7.4).

quantize:    clip(round(x * (1 / scale_d)) + offset_d, qmin, qmax) - offset_d, as Mul, Round, Add, Clip, Sub
dequantize:  y * scale, as Mul
restore:     (q - offset_d) * scale_d, as Mul

Any runtime, browser or viewer opens it; AMCT's own needs a compiled library. ONNX Runtime's optimizers would merge a
Mul into the operator before it (ConvMulFusion, MatMulScaleFusion), whose sums are then no integers any more: the result
is rounded elsewhere, and MobileNetV2 is 23 dB away from its deploy model. They take only a Mul with a constant second
operand, or with a scalar after a MatMul; so the constant comes first here, and a MatMul has its scale once a column.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.core.qparams import QParams
from amct_onnx.graph.constants import ValueNames, add_initializer
from amct_onnx.targets.ascend import inverse_scale
from amct_onnx.targets.lowering import Dequantization


class SimulationDialect:
    """Writes the arithmetic of the deploy model in float32."""

    sums = ir.DataType.FLOAT

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._names = model.graph, ValueNames(model)

    def integers(self, values: npt.NDArray[np.int32], *, bias: bool) -> npt.NDArray[Any]:
        return values.astype(np.float32)

    def quantize(self, x: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        chain = _Chain(self._graph, self._names, f"{owner}.quant", x)
        offset = float(params.zero_point[0])
        chain.add("Mul", scale=float(inverse_scale(params)))
        chain.add("Round")
        if offset:
            chain.add("Add", offset=offset)
        chain.add("Clip", min=float(params.spec.qmin), max=float(params.spec.qmax))
        if offset:
            chain.add("Sub", offset=offset)
        return chain.nodes

    def restore(self, integers: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        chain = _Chain(self._graph, self._names, f"{owner}.anti_quant", integers)
        chain.add("Mul", scale=params.scale[0])
        return chain.nodes

    def dequantize(self, x: ir.Value, spec: Dequantization) -> list[ir.Node]:
        scale = spec.scale.reshape(()) if spec.scale.size == 1 else spec.scale
        if spec.columns is not None:
            scale = np.full(spec.columns, scale, np.float32)
        elif spec.product:
            scale = scale.reshape(1, 1)  # no scalar, which the optimizers would take
        elif spec.scale.size > 1:
            assert spec.rank is not None  # only layers with a weight have per-channel scales
            scale = spec.scale.reshape(1, -1, *([1] * (spec.rank - 2)))
        chain = _Chain(self._graph, self._names, f"{spec.layer}.dequant", x)
        chain.add("Mul", scale=scale)
        if spec.product and spec.rank is None:
            chain.keep_shape_of(x)  # the product of two vectors has fewer dimensions than the scale
        return chain.nodes


class _Chain:
    """A row of nodes, each taking the previous output and constants, named `<name>.<operator>`."""

    def __init__(self, graph: ir.Graph, names: ValueNames, name: str, value: ir.Value) -> None:
        self.graph, self.names, self.name, self.value = graph, names, name, value
        self.nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}

    def add(self, op_type: str, **constants: npt.ArrayLike) -> None:
        name = f"{self.name}.{op_type.lower()}"
        inputs = [self.value, *(self._constant(key, array) for key, array in constants.items())]
        if op_type == "Mul":
            inputs.reverse()  # the constant first: see the head of the module
        output = ir.val(self.names.new(f"{name}.output0"), type=self.value.type, shape=self.value.shape)
        self.nodes.append(ir.node(op_type, inputs, name=name, outputs=[output]))
        self.value = output

    def keep_shape_of(self, value: ir.Value) -> None:
        """Give the result the shape of `value`, which has as many elements."""
        name = f"{self.name}.shape"
        shape = ir.val(self.names.new(f"{name}.output0"), dtype=ir.DataType.INT64)
        self.nodes.append(ir.node("Shape", [value], name=name, outputs=[shape]))
        output = ir.val(self.names.new(f"{self.name}.reshape.output0"), type=self.value.type, shape=value.shape)
        self.nodes.append(ir.node("Reshape", [self.value, shape], name=f"{self.name}.reshape", outputs=[output]))
        self.value = output

    def _constant(self, key: str, array: npt.ArrayLike) -> ir.Value:
        if key not in self._constants:
            constant = np.asarray(array, np.float32)
            self._constants[key] = add_initializer(self.graph, f"{self.name}.{key}", constant, names=self.names)
        return self._constants[key]
