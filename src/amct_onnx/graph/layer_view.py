"""A convolution or product with a constant weight: its input, weight, bias, channels and name, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import input_of, is_standard, label_of, name_of, optional_input
from amct_onnx.graph.constants import Data, ValueNames, constant_tensor, own_constant
from amct_onnx.graph.tensors import array_of, parts_of, shape_of, tensor_of_parts
from amct_onnx.numerics.arrays import Array

WEIGHT_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul of the default domain whose weight, its second input, is constant.

    It is a view: everything is read from the node whenever it is asked for, so it stays valid while the model changes.
    Nothing reads the data of a weight but `array`. Make one by `layer_of` or `as_layer`.
    """

    node: ir.Node

    @property
    def name(self) -> str:
        """The name of the node."""
        return name_of(self.node)

    @property
    def op_type(self) -> str:
        """Conv, ConvTranspose, Gemm or MatMul."""
        return self.node.op_type

    @property
    def input(self) -> ir.Value:
        """The activation that the layer reads."""
        return input_of(self.node, 0)

    @property
    def weight(self) -> ir.TensorProtocol:
        """The weight as the layer reads it; its data may be on disk. Raises ModelError where it is not constant."""
        return constant_input(self.node, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return shape_of(self.weight)

    def array(self) -> Array:
        """The data of the weight, read-only; a weight on disk is mapped for as long as the array is held."""
        return array_of(self.weight)

    @property
    def bias_value(self) -> ir.Value | None:
        """The value that holds the bias, None without one. It may be computed at run time."""
        return optional_input(self.node, 2)

    @property
    def bias(self) -> Array | None:
        """The data of the bias, read-only; None without a bias, and where it is computed at run time."""
        tensor = constant_tensor(self.bias_value)
        return None if tensor is None else array_of(tensor)

    @property
    def half(self) -> bool:
        """Whether the layer computes in float16: its input, weight and output have one type."""
        return self.weight.dtype == ir.DataType.FLOAT16

    @property
    def groups(self) -> int:
        """The number of groups of a convolution, 1 for a product."""
        return self.node.attributes.get_int("group", 1)

    @property
    def input_channels(self) -> int:
        """The number of channels of the activation that the layer reads."""
        return input_channels(self.node, self.shape)

    @property
    def output_channels(self) -> int:
        """The number of channels that the layer makes: the rows or columns of a product's matrix."""
        shape, axis = self.shape, -1
        if self.op_type == "ConvTranspose":
            return shape[1] * self.groups
        if self.op_type == "Conv" or self.weight_is_turned:
            axis = 0
        return shape[axis]

    @property
    def weight_is_turned(self) -> bool:
        """Whether a Gemm reads its weight as [outputs, inputs] (transB)."""
        return self.op_type == "Gemm" and bool(self.node.attributes.get_int("transB", 0))

    def __reduce__(self) -> tuple[Any, ...]:
        """A layer travels without its model: what its node says of it, and its weight."""
        kinds = (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.INTS, ir.AttributeType.STRING)
        attributes = {name: kept.value for name, kept in self.node.attributes.items() if kept.type in kinds}
        return _alone, (self.op_type, self.name, attributes, *parts_of(self.array()), self.weight.dtype)

    def replace_weight(self, data: Data, *, names: ValueNames) -> None:
        """Give the layer a weight of its own; other readers of the old one keep it. See `own_constant`."""
        own_constant(self.node, 1, data, f"{label_of(self.node)}.weight", names=names)

    def replace_bias(self, data: Data, *, names: ValueNames) -> None:
        """Give the layer a bias of its own, whether it had one or not. See `own_constant`."""
        own_constant(self.node, 2, data, f"{label_of(self.node)}.bias", names=names)


def _alone(op_type: str, name: str, attributes: Mapping[str, Any], *weight: Any) -> Layer:
    tensor = tensor_of_parts(*weight)
    shape = ir.Shape(shape_of(tensor))
    value = ir.Value(name=f"{name}.weight", shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    node = ir.node(op_type, [ir.val(f"{name}.input"), value], attributes, name=name)
    ir.Graph([], [], nodes=[node], initializers=[value])
    return Layer(node)


def layer_of(node: ir.Node) -> Layer:
    """The layer that a node is. Raises ModelError where it is no Conv, ConvTranspose, Gemm or MatMul with a weight."""
    layer = as_layer(node)
    if layer is None:
        raise ModelError(f'"{node.name}" ({node.op_type}) is no convolution or product with a constant weight.')
    return layer


def as_layer(node: ir.Node | None) -> Layer | None:
    """The layer that a node is, None where it is no Conv, ConvTranspose, Gemm or MatMul with a constant weight."""
    if node is None or node.op_type not in WEIGHT_OPS or not is_standard(node):
        return None
    return None if constant_tensor(optional_input(node, 1)) is None else Layer(node)


def first_readers(layers: Iterable[Layer]) -> dict[str, str]:
    """For each layer the first one that has the same weight and reads it in the same way, by name."""
    first, found = dict[object, str](), {}
    for layer in layers:
        alpha = layer.node.attributes.get_float("alpha", 1.0)
        found[layer.name] = first.setdefault((input_of(layer.node, 1), layer.weight_is_turned, alpha), layer.name)
    return found


def constant_input(node: ir.Node, index: int) -> ir.TensorProtocol:
    """The constant that input `index` of a node is, its data not yet read.

    Raises ModelError, which names the node, where it is missing or computed at run time.
    """
    tensor = constant_tensor(optional_input(node, index))
    if tensor is None:
        raise ModelError(f'Input {index} of "{node.name}" ({node.op_type}) is no constant of the model.')
    return tensor


def input_channels(node: ir.Node, shape: tuple[int, ...]) -> int:
    """The number of channels that a layer with a weight of `shape`, of two dimensions or more, reads."""
    if node.op_type == "Conv":
        return shape[1] * node.attributes.get_int("group", 1)
    if node.op_type == "Gemm":
        return shape[1] if node.attributes.get_int("transB", 0) else shape[0]
    return shape[-2] if node.op_type == "MatMul" else shape[0]
