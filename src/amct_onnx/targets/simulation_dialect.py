"""The fake-quant dialect: standard operators only, integers carried in float32 (amct_formats.md: Fake-quant model).

quantize:    clip(round(x * (1 / scale_d)) + offset_d, qmin, qmax) - offset_d, as Mul, Round, Add, Clip, Sub
dequantize:  y * scale, as Mul
restore:     (q - offset_d) * scale_d, as Mul
output:      clip(round(x * (1 / scale_d)) + offset_d, qmin, qmax), cast to int8

A layer of float16 has a Cast in front of the first and behind the last of them: sums above 65504 need float32.

Any runtime, browser or viewer opens it; AMCT's own needs a compiled library. ONNX Runtime's optimizers would merge a
Mul into the operator before it (ConvMulFusion, MatMulScaleFusion), whose sums are then no integers any more: the result
is rounded elsewhere, and MobileNetV2 is 23 dB away from its deploy model. They take only a Mul with a constant second
operand, or with a scalar after a MatMul; so the constant comes first here, and a MatMul has its scale once a column.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, input_of
from amct_onnx.graph.constants import ValueNames, add_initializer
from amct_onnx.numerics.arrays import Doubles
from amct_onnx.numerics.grid import QParams, half_precision_scale, truncated_scale
from amct_onnx.targets.ascend_dialect import inverse_scale
from amct_onnx.targets.to_integers import Dequantization


class SimulationDialect:
    """Writes the arithmetic of the deploy model in float32, with `half` that of amct_formats.md: FORCE_FP16_QUANT."""

    sums = ir.DataType.FLOAT
    weight_type: npt.DTypeLike = np.float32
    bias_type: npt.DTypeLike = np.float32

    def __init__(self, model: ir.Model, *, half: bool = False) -> None:
        self._graph, self._names, self._half = model.graph, ValueNames(model), half

    def quantize(self, x: ir.Value, owner: str, params: QParams, *, half: bool = False) -> list[ir.Node]:
        chain = self._integers(x, owner, params, half=half)
        if offset := float(params.zero_point[0]):
            chain.add("Sub", offset=offset)
        return chain.nodes

    def quantize_output(self, x: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        chain = self._integers(x, owner, params)
        chain.cast(ir.DataType.INT8)
        return chain.nodes

    def _integers(self, x: ir.Value, owner: str, params: QParams, *, half: bool = False) -> _Chain:
        """The integers with their zero point, as float32."""
        chain = _Chain(self._graph, self._names, f"{owner}.quant", x)
        if half:
            chain.cast(ir.DataType.FLOAT)
        offset = float(params.zero_point[0])
        if self._half:
            chain.round_to_half()
            chain.add("Mul", scale=half_precision_scale(inverse_scale(params)))
            chain.round_to_half()
            if offset:
                chain.add("Add", offset=offset)
                chain.round_to_half()
            chain.add("Round")
        else:
            chain.add("Mul", scale=float(inverse_scale(params)))
            chain.add("Round")
            if offset:
                chain.add("Add", offset=offset)
        chain.add("Clip", min=float(params.spec.qmin), max=float(params.spec.qmax))
        return chain

    def restore(self, integers: ir.Value, owner: str, params: QParams) -> list[ir.Node]:
        chain = _Chain(self._graph, self._names, f"{owner}.anti_quant", integers)
        chain.add("Mul", scale=params.scale[0])
        return chain.nodes

    def sum_wide(self, node: ir.Node, bias: Doubles | None) -> ir.Node:
        """A layer on int16 as two layers on bytes, since float32 holds integers up to 2^24 only.

        before: q -> Conv(w, b) -> y
        after:  q -> Mul(2^-8) -> Round -> h -> Conv(w, bh) -> Mul(-2^8) -> m
                h -> Mul(-2^8) -> Add(q) -> l -> Conv(w, bl) -> Sub(m) -> y

        Sub rounds, as the chip does when it turns an int32 into a float, and nothing else: the sums of |w * q| and |b|
        are within 2^31 and q may be 2^15, so those of |w| are within 2^16. With |l| <= 2^7 and |h| <= |q| / 2^8 + 1/2
        the sums of both layers stay below 2^24. Sub because ONNX Runtime merges an Add into a layer in front of it.
        """
        name, q, total, graph = node.name, input_of(node, 0), node.outputs[0], graph_of(node)
        original, total.type = total.type, ir.TensorType(self.sums)
        split = _Chain(self._graph, self._names, f"{name}.split", q)
        split.add("Mul", scale=2.0**-8)
        split.add("Round")
        high = split.value
        split.add("Mul", suffix="back", back=-(2.0**8))
        split.add_value("Add", q)
        inputs, low_bias = [high, *node.inputs[1:]], None
        if bias is not None:
            high_bias = np.rint(bias / 2**8)
            inputs[2] = self._initializer(f"{name}.high.bias", high_bias)
            low_bias = self._initializer(f"{name}.low.bias", bias - high_bias * 2**8)
        output = ir.val(self._names.new(f"{name}.high.output0"), type=total.type, shape=total.shape)
        attributes = list(node.attributes.values())
        upper = ir.Node("", node.op_type, inputs, attributes, name=self._names.node(f"{name}.high"), outputs=[output])
        join = _Chain(self._graph, self._names, f"{name}.join", output)
        join.add("Mul", scale=-(2.0**8))
        graph.insert_before(node, [*split.nodes, upper, *join.nodes])

        node.replace_input_with(0, split.value)
        if low_bias is not None:
            node.replace_input_with(2, low_bias)
        result = ir.val(total.name, type=original, shape=total.shape)
        total.replace_all_uses_with(result, replace_graph_outputs=True)
        total.name = self._names.new(f"{name}.low.output0")
        last = ir.node("Sub", [total, join.value], name=self._names.node(f"{name}.join.sub"), outputs=[result])
        graph.insert_after(node, last)
        return last

    def _initializer(self, name: str, array: Doubles) -> ir.Value:
        return add_initializer(self._graph, name, array.astype(np.float32), names=self._names)

    def dequantize(self, x: ir.Value, spec: Dequantization) -> list[ir.Node]:
        scales = truncated_scale(spec.scale) if self._half else spec.scale
        scale = scales.reshape(()) if scales.size == 1 else scales
        if spec.columns is not None:
            scale = np.full(spec.columns, scale, np.float32)
        elif spec.product:
            scale = scale.reshape(1, 1)  # no scalar, which the optimizers would take
        elif scales.size > 1 and spec.rank is not None:
            scale = scales.reshape(1, -1, *([1] * (spec.rank - 2)))
        chain = _Chain(self._graph, self._names, f"{spec.layer}.dequant", x)
        chain.add("Mul", scale=scale)
        if spec.product and spec.rank is None:
            chain.keep_shape_of(x)  # the product of two vectors has fewer dimensions than the scale
        if self._half:
            chain.round_to_half()
        if spec.half:
            chain.cast(ir.DataType.FLOAT16)
        return chain.nodes


class _Chain:
    """A row of nodes, each taking the previous output and constants, named `<name>.<operator>`."""

    def __init__(self, graph: ir.Graph, names: ValueNames, name: str, value: ir.Value) -> None:
        self.graph, self.names, self.name, self.value = graph, names, name, value
        self.nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._rounded = 0

    def add(self, op_type: str, suffix: str | None = None, **constants: npt.ArrayLike) -> None:
        inputs = [self.value, *(self._constant(key, array) for key, array in constants.items())]
        if op_type == "Mul":
            inputs.reverse()  # the constant first: see the head of the module
        self._append(op_type, inputs, suffix or op_type.lower())

    def add_value(self, op_type: str, other: ir.Value) -> None:
        self._append(op_type, [self.value, other], op_type.lower())

    def _append(
        self, op_type: str, inputs: list[ir.Value], suffix: str, attributes: dict[str, int] | None = None
    ) -> None:
        name = f"{self.name}.{suffix}"
        output = ir.val(self.names.new(f"{name}.output0"), type=self.value.type, shape=self.value.shape)
        self.nodes.append(ir.node(op_type, inputs, attributes, name=self.names.node(name), outputs=[output]))
        self.value = output

    def cast(self, dtype: ir.DataType, suffix: str = "cast") -> None:
        self._append("Cast", [self.value], suffix, {"to": int(dtype)})
        self.value.type = ir.TensorType(dtype)

    def round_to_half(self) -> None:
        """float32 rounded to float16, as float32: two Casts, which ONNX Runtime does not take for superfluous."""
        for suffix, dtype in (("half", ir.DataType.FLOAT16), ("float", ir.DataType.FLOAT)):
            self.cast(dtype, f"{suffix}{self._rounded or ''}")
        self._rounded += 1

    def keep_shape_of(self, value: ir.Value) -> None:
        """Give the result the shape of `value`, which has as many elements."""
        name = f"{self.name}.shape"
        shape = ir.val(self.names.new(f"{name}.output0"), dtype=ir.DataType.INT64)
        self.nodes.append(ir.node("Shape", [value], name=self.names.node(name), outputs=[shape]))
        self._append("Reshape", [self.value, shape], "reshape")
        self.value.shape = value.shape

    def _constant(self, key: str, array: npt.ArrayLike) -> ir.Value:
        if key not in self._constants:
            constant = np.asarray(array, np.float32)
            self._constants[key] = add_initializer(self.graph, f"{self.name}.{key}", constant, names=self.names)
        return self._constants[key]
