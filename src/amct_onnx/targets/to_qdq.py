"""Turn a float model into one with QuantizeLinear and DequantizeLinear nodes, as a plan says.

Before                   After
x -> Conv(w, b) -> y     x -> Q -> DQ -> Conv(DQ(w_int), DQ(b_int)) -> Q -> DQ -> y

A tensor has one Q and one DQ, whoever reads it; a group of tensors has one scale and one zero point. Weights are stored
as integers, per output channel, and biases as int32 with scale_x * scale_w where the target wants that. ONNX Runtime
gives float layers between DQ and Q int8 weights of its own, one scale for all channels: a Concat of one tensor, which
it neither removes nor sees through, keeps the Q away from them. It gives each reader of a DQ one of its own, and then
finds no GELU or swish in what floats compute behind it: they read such a Concat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.graph.access import input_of, is_op, maker_of, name_of, only_reader, producer_of
from amct_onnx.graph.constants import ValueNames, add_initializer, remove_unused
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.kernels import wrong_kernel
from amct_onnx.graph.layer_view import Layer, constant_input, layer_of
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.passes.fusion import absorb
from amct_onnx.graph.product_sums import only_sum
from amct_onnx.graph.qdq_grids import clip_bounds
from amct_onnx.graph.tensors import array_of, deferred
from amct_onnx.graph.weights import from_kernel_rows, weight_axis
from amct_onnx.numerics.arrays import Array
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import quantize
from amct_onnx.targets.lookup_tables import lower_lookups
from amct_onnx.values.findings import TableGrid, WeightGrid
from amct_onnx.values.qdq_plan import QdqPlan
from amct_onnx.values.qdq_tables import QdqTarget

_POOLS = ("AveragePool", "GlobalAveragePool")
_TYPED_OPSET = 21  # in which QuantizeLinear got the attribute output_dtype


@dataclass(frozen=True, kw_only=True, eq=False)
class QdqGrids:
    """Everything that is solved before a model is lowered.

    activations: the grid of each quantized tensor, by name. weights: of each layer with a weight, by node, as rows of
    output channels in the order in which kernels read them (the channels of an input position stand together).
    constants: of other constant operands, by node and index. tables: of lookups, by node.
    """

    activations: Mapping[str, QParams]
    weights: Mapping[str, WeightGrid]
    constants: Mapping[tuple[str, int], QParams]
    tables: Mapping[str, TableGrid]


def lower_qdq(model: ir.Model, plan: QdqPlan, target: QdqTarget, grids: QdqGrids) -> None:
    """Quantize `model`, a float model whose layers are normalized, in place."""
    lowering = _Lowering(model, plan, target, grids)
    for node in list(model.graph):
        if (grid := grids.weights.get(name_of(node))) is not None:
            lowering.quantize_weight(layer_of(node), grid)
    for node in list(model.graph):
        if target.drops_clamps and node.name in plan.absorbed:
            lowering.absorb(node)
    for group in plan.groups:
        for tensor in group.tensors:
            lowering.quantize_tensor(tensor, group.tensors[0])
    for node in model.graph:
        if is_op(node, "AveragePool") and wrong_kernel(node) is None:
            node.attributes.pop("dilations", None)  # ones; the kernel of ONNX Runtime refuses the attribute
    lowering.quantize_constants()
    for node in list(model.graph):
        if node.name in lowering.layers and target.rules[node.op_type].direct:
            lowering.move_to_integers(node)
    products = lowering.layers | lowering.flat_sums
    for node in list(model.graph):
        if node.name in products and is_op(node, "Gemm", "MatMul", "Add"):
            lowering.part_from_clamp(node)
    lower_lookups(model, grids.tables, grids.activations, lowering)


class _Lowering:
    def __init__(self, model: ir.Model, plan: QdqPlan, target: QdqTarget, grids: QdqGrids) -> None:
        self.model, self.plan, self.target, self.grids = model, plan, target, grids
        self.names, self.layers = ValueNames(model), frozenset(plan.layers)
        self.domain = "" if default_opset(model) <= target.maximum_opset else target.beyond
        # ONNX Runtime turns int8 with zero points into uint8, and forgets the attribute that opset 21 brought, which it
        # writes itself: such a file does not load there. Without a zero point it leaves int8 alone, but makes a kernel
        # of uint8 of a pool: its result has one.
        typed = default_opset(model) >= _TYPED_OPSET and not target.unsigned_activations and not self.domain
        self.output_type = {"output_dtype": int(self._integer_type())} if typed else {}
        if self.domain:
            model.opset_imports.setdefault(self.domain, 1)
        index = index_graph(model)
        self.nodes, self.values = index.nodes, dict(index.values)
        self.flat_sums = {adder for product, (adder, _) in plan.biases.items() if product in plan.flat}
        self.scales: dict[str, list[ir.Value]] = {}
        self.clamps: dict[str, tuple[int, int]] = {}

    def quantize_weight(self, layer: Layer, grid: WeightGrid) -> None:
        """Put integers behind a DequantizeLinear in the place of a weight, and of the bias."""
        node, weight, data = layer.node, layer.weight, self.grids.activations[name_of(layer.input)]
        axis, scale, bias = weight_axis(node, len(layer.shape)), grid.params.scale, layer.bias
        adder, place = node, 2
        if grid.correction is not None:
            bias = self._corrected(layer, grid.correction)
        if grid.integers is None:
            spec = QSpec(bits=grid.params.spec.bits, channel_axis=axis)
            params = QParams(scale=scale, zero_point=grid.params.zero_point, spec=spec)
            integers = deferred(lambda: quantize(array_of(weight), params, np.int8), np.int8, layer.shape)
        else:
            integers = ir.tensor(from_kernel_rows(grid.integers, layer.shape, node))
        self._dequantized(node, 1, integers, scale, axis)
        if layer.name in self.plan.biases:
            name, place = self.plan.biases[layer.name]
            adder = self.nodes[name]
            bias = array_of(constant_input(adder, place))
        elif layer.name in self.plan.flat and only_sum(node) is not None:
            adder, place, bias = self._add_zeros(node, len(scale)), 1, np.zeros(len(scale), np.float32)
        if bias is not None and self.target.int32_bias:
            steps_of = data.scale * scale
            steps = np.rint(bias.astype(np.float64) / steps_of.astype(np.float64)).astype(np.int32)
            self._dequantized(adder, place, ir.tensor(steps), steps_of, 0)

    def _add_zeros(self, product: ir.Node, columns: int) -> ir.Node:
        """Put an Add of zeros behind a product: what else is added to it stays out of its kernel, which then is one of
        integers."""
        value, name = product.outputs[0], f"{product.name}.sum"
        readers = [(use.node, use.idx) for use in value.uses()]
        output = ir.val(self.names.new(f"{name}.output0"), type=value.type, shape=value.shape)
        zeros = add_initializer(self.model.graph, f"{name}.zeros", np.zeros(columns, np.float32), names=self.names)
        node = ir.node("Add", [value, zeros], name=self.names.node(name), outputs=[output])
        self.model.graph.insert_after(product, node)
        for reader, index in readers:
            reader.replace_input_with(index, output)
        return node

    def _corrected(self, layer: Layer, correction: Array) -> Array | None:
        """The bias with a correction for each output channel, in the model too; a layer without bias gets one."""
        bias = layer.bias
        if layer.op_type == "MatMul" or (bias is not None and bias.size != correction.size):
            return bias
        wanted = correction if bias is None else bias + correction.reshape(bias.shape)
        layer.replace_bias(wanted.astype(np.float32), names=self.names)
        return wanted.astype(np.float32)

    def _dequantized(self, node: ir.Node, index: int, integers: ir.TensorProtocol, scale: Array, axis: int) -> None:
        """Input `index` of `node`, an initializer of its own, becomes `integers` behind a DequantizeLinear."""
        value = input_of(node, index)
        name = name_of(value)
        stored = add_initializer(self.model.graph, f"{name}.integers", integers, names=self.names)
        steps = add_initializer(self.model.graph, f"{name}.scale", scale, names=self.names)
        # ONNX Runtime has an integer Gemm only where the zero points of the weight are in the file.
        zeros = np.zeros(scale.shape, integers.dtype.numpy())
        zero_points = add_initializer(self.model.graph, f"{name}.zero_point", zeros, names=self.names)
        output = ir.val(self.names.new(f"{name}.dequantized"), dtype=ir.DataType.FLOAT, shape=value.shape)
        operands = [stored, steps, zero_points]
        dequantize = self._node("DequantizeLinear", operands, f"{name}.dequantize", output, axis=axis)
        self.model.graph.insert_before(node, dequantize)
        node.replace_input_with(index, output)
        if not value.uses():
            del self.model.graph.initializers[name]

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, output: ir.Value, **attributes: int
    ) -> ir.Node:
        name = self.names.node(name)
        return ir.node(op_type, inputs, attributes, domain=self.domain, name=name, outputs=[output])

    def dequantize(self, integers: ir.Value, grid: Sequence[ir.Value], name: str, output: ir.Value) -> ir.Node:
        """A DequantizeLinear of `integers`, named after `name`; not yet in the graph."""
        return self._node("DequantizeLinear", [integers, *grid], f"{name}.dequantize", output)

    def absorb(self, clamp: ir.Node) -> None:
        """Leave out a Relu or Clip; where the grid of its output goes on behind its bounds, integers are clamped."""
        name, producer = name_of(clamp.outputs[0]), self.nodes[self.plan.absorbed[name_of(clamp)]]
        self.clamps[name] = _integer_bounds(clamp, self.grids.activations[name])
        absorb(producer, clamp)
        result = producer.outputs[0]
        result.name = name
        self.values[name] = result

    def quantize_tensor(self, tensor: str, group: str) -> None:
        """One QuantizeLinear and one DequantizeLinear behind `tensor`, for those that read it quantized."""
        value, graph, spec = self.values[tensor], self.model.graph, self.grids.activations[tensor].spec
        grid = self._scale(group)
        typed = self.output_type if len(grid) == 1 else {}
        integers = ir.val(self.names.new(f"{tensor}.integers"), dtype=self._integer_type(), shape=value.shape)
        restored = ir.val(self.names.new(f"{tensor}.dequantized"), dtype=ir.DataType.FLOAT, shape=value.shape)
        fence = [self._fence(value)] if self._is_rounded(value) else []
        source = fence[0].outputs[0] if fence else value
        nodes = [
            self._node("QuantizeLinear", [source, *grid], f"{tensor}.quantize", integers, **typed),
            self._node("DequantizeLinear", [integers, *grid], f"{tensor}.dequantize", restored),
        ]
        clamp = self.clamps.get(tensor, (spec.qmin, spec.qmax))
        if clamp != (spec.qmin, spec.qmax):
            nodes.insert(1, self._integer_clamp(tensor, integers, clamp))
            nodes[2].replace_input_with(0, nodes[1].outputs[0])
        readers = [
            (use.node, use.idx)
            for use in value.uses()
            if use.node not in (nodes[0], *fence)
            and (tensor in self.plan.integer or (name_of(use.node), use.idx) in self.plan.reads)
        ]
        producer = value.producer()
        nodes = [*fence, *nodes]
        if producer is None:
            graph.insert_before(graph[0], nodes)
        else:
            graph.insert_after(producer, nodes)
        floats = {place for place in readers if (name_of(place[0]), place[1]) not in self.plan.reads}
        common = restored
        split = self.target.splits_readers and self._computes(producer) and len(floats) > 1
        # Behind a convolution, whose channels are last, a pool of bytes is a fast one.
        if split or (not is_op(producer, "Conv") and any(self._is_rounded_pool(node) for node, _ in floats)):
            copy = self._fence(restored)
            graph.insert_after(nodes[-1], [copy])
            common = copy.outputs[0]
        for node, index in readers:
            node.replace_input_with(index, common if (node, index) in floats else restored)
        if value.is_graph_output() and tensor in self.plan.integer:
            value.name, restored.name = self.names.new(f"{tensor}.float"), tensor
            restored.type, restored.shape = value.type, value.shape
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = restored

    def _is_rounded(self, value: ir.Value) -> bool:
        """Whether ONNX Runtime would round more than the tensor: what makes it becomes an integer kernel of its own.

        So it does with float layers, whose weights it rounds, and with operators that it has a wrong kernel for. And a
        product with its bias that others read in float would become no integer kernel.
        """
        node = value.producer()
        if node is not None and node.name in self.flat_sums:
            return value.name not in self.plan.integer
        if is_op(node, *self.target.absorbs):
            node = producer_of(node, 0)
        if node is None or node.name in self.layers:
            return False
        if not is_op(node, *self.target.rounds_floats) and wrong_kernel(node) is None:
            return False
        if is_op(node, "MaxPool"):  # the QuantizeLinear would be moved in front of it
            return True
        source = input_of(node, 0)
        while (maker := source.producer()) is not None:
            if maker.op_type == "DequantizeLinear" or source.name in self.plan.integer:
                return True
            rule = self.target.rules.get(maker.op_type)
            if rule is None or rule.output != "same":
                return False
            source = input_of(maker, 0)
        return False

    def _is_rounded_pool(self, node: ir.Node) -> bool:
        """Whether a DequantizeLinear would be moved behind a pool in float, which becomes a slow one of bytes; on its
        way there it may go through nodes that move elements."""
        if node.name in self.layers or self._computes(node):
            return False
        if is_op(node, "MaxPool"):
            return node.op_type in self.target.rounds_floats
        is_moving = node.op_type in self.target.rules and node.op_type != "Concat"
        return is_moving and any(self._is_rounded_pool(use.node) for value in node.outputs for use in value.uses())

    def _computes(self, node: ir.Node | None) -> bool:
        """Whether the kernel of a node gives new numbers: what only moves some may give one without dimensions."""
        rule = None if node is None else self.target.rules.get(node.op_type)
        return rule is not None and rule.output != "same"

    def _fence(self, value: ir.Value) -> ir.Node:
        output = ir.val(self.names.new(f"{value.name}.float"), dtype=ir.DataType.FLOAT, shape=value.shape)
        name = self.names.node(f"{value.name}.fence")
        return ir.node("Concat", [value], {"axis": 0}, name=name, outputs=[output])

    def part_from_clamp(self, product: ir.Node) -> None:
        """Set a product apart from a Relu or Clip that one node reads in float, for targets that look behind it."""
        value = product.outputs[0]
        clamp = only_reader(value)
        behind = only_reader(clamp.outputs[0]) if is_op(clamp, *self.target.looks_behind) else None
        if clamp is None or behind is None or behind.op_type == "QuantizeLinear":
            return
        fence = self._fence(value)
        self.model.graph.insert_after(product, fence)
        clamp.replace_input_with(0, fence.outputs[0])

    def _integer_clamp(self, tensor: str, integers: ir.Value, clamp: tuple[int, int]) -> ir.Node:
        """A Clip on the integers of `tensor`."""
        bounds = [
            add_initializer(self.model.graph, f"{tensor}.{name}", self._stored(bound), names=self.names)
            for name, bound in zip(("lowest", "highest"), clamp, strict=True)
        ]
        output = ir.val(self.names.new(f"{tensor}.clamped"), dtype=self._integer_type())
        return ir.node("Clip", [integers, *bounds], name=self.names.node(f"{tensor}.clamp"), outputs=[output])

    def _stored(self, integers: npt.ArrayLike) -> Array:
        """Integers of a grid as the file has them."""
        offset = -self.target.activation.qmin if self.target.unsigned_activations else 0
        return np.asarray(np.asarray(integers) + offset).astype(self._integer_type().numpy())

    def _scale(self, group: str) -> list[ir.Value]:
        """The initializers of the grid that a group shares."""
        if group not in self.scales:
            tensors = next(found.tensors for found in self.plan.groups if found.tensors[0] == group)
            pooled = any(is_op(self.values[tensor].producer(), *_POOLS) for tensor in tensors)
            self.scales[group] = self._grid_initializers(group, self.grids.activations[group], needs_zero=pooled)
        return self.scales[group]

    def _grid_initializers(self, name: str, params: QParams, *, needs_zero: bool = False) -> list[ir.Value]:
        """The scale, and the zero point where the file has it."""
        parts = {"scale": params.scale.reshape(())}
        if needs_zero or not self.output_type:
            parts["zero_point"] = self._stored(params.zero_point.reshape(()))
        graph = self.model.graph
        return [add_initializer(graph, f"{name}.{part}", array, names=self.names) for part, array in parts.items()]

    def quantize_constants(self) -> None:
        """Constant operands of sums, products and concatenations, on grids of their own."""
        for name, index in sorted(self.plan.constants):
            node = self.nodes[name]
            array, value = array_of(constant_input(node, index)), input_of(node, index)
            owner = f"{value.name}.{name}.{index}"
            params = self.grids.constants[name, index]
            grid = self._grid_initializers(owner, params)
            steps = self._stored(quantize(array, params))
            stored = add_initializer(self.model.graph, f"{owner}.integers", steps, names=self.names)
            output = ir.val(self.names.new(f"{owner}.dequantized"), dtype=ir.DataType.FLOAT, shape=value.shape)
            dequantize = self._node("DequantizeLinear", [stored, *grid], f"{owner}.dequantize", output)
            self.model.graph.insert_before(node, dequantize)
            node.replace_input_with(index, output)
            remove_unused((value,))

    def _integer_type(self) -> ir.DataType:
        return ir.DataType.UINT8 if self.target.unsigned_activations else ir.DataType.INT8

    def move_to_integers(self, node: ir.Node) -> None:
        """Let an operator that moves elements work on integers: the runtime has no rule for it between Q and DQ."""
        dequantize, old = maker_of(input_of(node, 0)), node.outputs[0]  # both sides of such a node are quantized
        quantizer = next(iter(old.uses())).node
        result = quantizer.outputs[0]
        node.replace_input_with(0, dequantize.inputs[0])
        if (
            node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant"
        ):  # zeros are zero points
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, dequantize.inputs[2])
        old.type = ir.TensorType(self._integer_type())  # a new one: a clone shares it with its original
        result.replace_all_uses_with(old)
        self.model.graph.remove(quantizer, safe=True)
        if not dequantize.outputs[0].uses() and not dequantize.outputs[0].is_graph_output():
            self.model.graph.remove(dequantize, safe=True)


def _integer_bounds(clamp: ir.Node, params: QParams) -> tuple[int, int]:
    """The lowest and highest integer of a grid that a Relu or a Clip of constant bounds lets through."""
    ends = np.asarray((0.0, np.inf) if clamp.op_type == "Relu" else clip_bounds(clamp))  # the planner has looked
    spec, scale, zero_point = params.spec, float(params.scale[0]), int(params.zero_point[0])
    lowest, highest = np.clip(np.rint(ends / scale) + zero_point, spec.qmin, spec.qmax)
    return int(lowest), int(highest)
