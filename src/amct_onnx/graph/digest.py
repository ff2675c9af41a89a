"""A digest of all that a model computes with, by which statistics are known to belong to it."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from amct_onnx.graph.tensors import array_of, shape_of
from amct_onnx.numerics.blocks import blocks


def model_digest(model: ir.Model) -> str:
    """32 hex digits of nodes, names, attributes and weights, subgraphs and functions included; read in parts."""
    digest = hashlib.blake2b(digest_size=16)
    for domain, version in sorted(model.opset_imports.items()):
        digest.update(f"{domain}:{version};".encode())
    for graph in model.graphs():
        digest.update(f"({[value.name for value in graph.inputs]}{[value.name for value in graph.outputs]}".encode())
        for name, value in graph.initializers.items():
            digest.update(f"{name}=".encode())
            if value.const_value is not None:
                _add_tensor(digest, value.const_value)
        for node in graph:
            _add_node(digest, node)
        digest.update(b")")
    for function in model.functions.values():
        digest.update(f"{function.identifier()}".encode())
        for node in function:
            _add_node(digest, node)
    return digest.hexdigest()


def _add_node(digest: hashlib.blake2b, node: ir.Node) -> None:
    values = [[value and value.name for value in side] for side in (node.inputs, node.outputs)]
    digest.update(f"{node.domain}.{node.op_type} {node.name} {values}".encode())
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        digest.update(name.encode())
        if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
            _add_tensor(digest, attribute.as_tensor())
        elif attribute.is_ref() or attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            digest.update(f"{attribute.ref_attr_name if attribute.is_ref() else attribute.value}".encode())


def _add_tensor(digest: hashlib.blake2b, tensor: ir.TensorProtocol) -> None:
    digest.update(f"{tensor.dtype}{shape_of(tensor)}".encode())
    if tensor.dtype == ir.DataType.STRING:
        digest.update(repr(tensor.numpy().tolist()).encode())
        return
    array = array_of(tensor)
    for block in blocks(array.shape):
        digest.update(array[block].tobytes())
