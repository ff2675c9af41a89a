"""Puts a model that was just read into the form which this package relies on, or says what is broken in it.

ONNX Runtime sorts nodes, reads sparse weights and takes a dimension of -1 for an open one. The rest of this package
does not have to: after `tidy` the nodes of each graph stand in an order in which they can run, each tensor that is read
is made before, and each node has the inputs and attributes that its operator needs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from amct_onnx.errors import ModelError, ModelFileError, one_line
from amct_onnx.graph.access import bodies_of, is_op, is_standard, optional_input, values_read
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layers import default_opset
from amct_onnx.graph.tensors import shape_of

_LONGEST = 60  # characters of a name in a message
_PARTS = {"COMPLEX64": 2, "COMPLEX128": 2}  # numbers of an element, where it is not one
_PACKED = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}  # elements in one number
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def from_proto(proto: onnx.ModelProto, called: str) -> ir.Model:
    """The model of a protobuf message, which stays as it is. `called`: what messages call the model.

    Sparse weights become dense. Raises ModelFileError for a message that does not describe a model, ModelError for a
    tensor that is made twice.
    """
    _refuse_twice(proto, called)
    try:
        with _quiet():
            return ir.from_proto(_without_sparse(proto))
    except Exception as error:  # onnx_ir has many ways to refuse a malformed model
        raise ModelFileError(f"{called} is not a valid ONNX model: {one_line(_root(error))}.") from error


def is_sorted(model: ir.Model) -> bool:
    """Whether each node of the model stands behind those whose outputs it reads."""
    seen: set[ir.Node] = set()
    return all(_in_order(graph, seen) for graph in _scopes(model))


def check_connections(model: ir.Model, called: str) -> None:
    """Raise ModelError, in one line, for a tensor that a node or the model's caller needs and that nothing makes."""
    for graph in _scopes(model):
        _check_names(graph, called)
        _check_scope(graph, (), called)


def tidy(model: ir.Model, called: str) -> None:
    """Sort the nodes and open the dimensions of -1, in place; the rest is checked. `called`: what messages call it.

    Raises ModelError, in one line, for a tensor that nothing makes or that is made twice, a cycle, a weight of another
    size than it says, and a node without what its operator needs.
    """
    check_connections(model, called)
    _check_sizes(model, called)
    for graph in _scopes(model):
        if not _in_order(graph, set()):
            _refuse_cycles(graph, called)
            graph.sort()
    for graph in model.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            _open_dimensions(value)
    _check_operators(model, called)


def _root(error: BaseException) -> BaseException:
    """The first error of a chain. onnx_ir wraps the error about a tensor in errors about the graph around it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _refuse_twice(proto: onnx.ModelProto, called: str) -> None:
    """Raise ModelError for a tensor that two nodes of one graph make, or a node and the graph itself."""
    scopes = [({*(v.name for v in g.input), *(t.name for t in g.initializer)}, g.node) for g in _parts(proto)[0]]
    for made, nodes in (*scopes, *((set(function.input), function.node) for function in proto.functions)):
        for node in nodes:
            for name in filter(None, node.output):
                if name in made:
                    text = (
                        f"the {node.op_type} {short(node.name)} makes the tensor {short(name)}, which is there already"
                    )
                    raise ModelError(f"{called}: {text}: {_EXPORT}.")
                made.add(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """onnx_ir logs what `tidy` raises afterwards."""
    log = logging.getLogger("onnx_ir.serde")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


# --- sparse tensors


def _without_sparse(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto`, or a copy of it whose sparse weights are dense."""
    graphs, nodes = _parts(proto)
    if not any(graph.sparse_initializer for graph in graphs) and not any(map(_sparse_attributes, nodes)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    graphs, nodes = _parts(copy)
    for graph in graphs:
        graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in nodes:
        for attribute in _sparse_attributes(node):
            dense = _dense(attribute.sparse_tensor)
            attribute.Clear()
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(dense)
    return copy


def _parts(proto: onnx.ModelProto) -> tuple[list[onnx.GraphProto], list[onnx.NodeProto]]:
    """All graphs of a model, and all nodes, those of functions included."""
    graphs = [proto.graph, *_bodies(proto.graph.node), *(g for f in proto.functions for g in _bodies(f.node))]
    nodes = [node for graph in graphs for node in graph.node] + [node for f in proto.functions for node in f.node]
    return graphs, nodes


def _sparse_attributes(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    return [attribute for attribute in node.attribute if attribute.type == onnx.AttributeProto.SPARSE_TENSOR]


def _bodies(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for body in bodies:
                yield body
                yield from _bodies(body.node)


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The tensor that a sparse one stands for: zeros but for `values` at `indices`, flat ones or one row for each."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    values, indices = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(shape, values.dtype)
    places = np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)
    dense[places] = values
    return onnx.numpy_helper.from_array(dense, name)


# --- names, scopes and order


def _scopes(model: ir.Model) -> list[Any]:
    """The main graph and the bodies of functions, whose graphs see nothing around them."""
    return [model.graph, *model.functions.values()]


def _check_names(graph: Any, called: str) -> None:
    """Raise ModelError for an input without a name of its own or without a type: nobody could feed it."""
    seen = set()
    for number, value in enumerate(graph.inputs):
        if not value.name or value.name.startswith("anonymous:"):
            raise ModelError(f"{called}: input {number} has no name, so nothing can be fed to it: {_EXPORT}.")
        if value.name in seen:
            raise ModelError(f"{called}: two inputs are called {short(value.name)}: {_EXPORT}.")
        if isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.UNDEFINED:
            raise ModelError(f"{called}: the input {short(value.name)} has no element type: {_EXPORT}.")
        seen.add(value.name)


_EXPORT = "correct the model or export it again"


def _check_scope(graph: Any, around: Sequence[Any], called: str) -> None:
    """Raise ModelError where a node of the graph reads what neither it nor the graphs around it make."""
    visible = (*around, graph)
    graphs = {id(getattr(g, "graph", g)) for g in visible}
    for node in graph:
        for value in node.inputs:
            if value is not None and not (_is_made(value) and id(value.graph) in graphs):
                text = f"reads the tensor {short(value.name)}, which nothing makes"
                raise ModelError(f"{called}: the {node.op_type} {_title(node)} {text}: {_EXPORT}.")
        for body in bodies_of(node):
            _check_scope(body, visible, called)
    for value in graph.outputs:
        if not _is_made(value):
            raise ModelError(f"{called}: nothing makes the output {short(value.name)}: {_EXPORT}.")


def _is_made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _in_order(graph: Any, seen: set[ir.Node]) -> bool:
    """Whether each node of the graph reads what nodes in `seen`, or in front of it, have made; `seen` grows."""
    for node in graph:
        made = (value.producer() for value in node.inputs if value is not None)
        if any(maker is not None and maker not in seen for maker in made):
            return False
        if not all(_in_order(body, seen) for body in bodies_of(node)):
            return False
        seen.add(node)
    return True


def _refuse_cycles(graph: Any, called: str) -> None:
    """Raise ModelError, with the nodes, where nodes of one graph wait for each other."""
    for scope in (graph, *graph.subgraphs()):
        inside = getattr(scope, "graph", scope)
        makers = {
            node: {v.producer() for v in values_read(node) if v.producer() is not None and v.graph is inside}
            for node in scope
        }
        try:
            TopologicalSorter(makers).prepare()
        except CycleError as error:
            cycle = [_title(node) for node in error.args[1]]
            names = ", ".join(cycle[:3]) + (", ..." if len(cycle) > 3 else "")
            raise ModelError(f"{called}: nodes wait for each other in a cycle ({names}): {_EXPORT}.") from error


def short(name: str | None) -> str:
    """A name as messages show it: quoted, in one line, and not too long."""
    text = name or ""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return repr(text)


def _title(node: ir.Node) -> str:
    """What a message calls a node: its name, or the output that it makes."""
    if node.name:
        return short(node.name)
    return f"of output {short(node.outputs[0].name)}" if node.outputs else "without a name"


# --- sizes and shapes


def _check_sizes(model: ir.Model, called: str) -> None:
    """Raise ModelError for a tensor in the file that has more or fewer elements than its shape says."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None and (text := _wrong_size(value.const_value)):
                raise ModelError(f"{called}: the initializer {short(name)} {text}: {_EXPORT}.")
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                if text := _wrong_size(attribute.value):
                    raise ModelError(f"{called}: the attribute {attribute.name} of {_title(node)} {text}: {_EXPORT}.")


def _wrong_size(tensor: Any) -> str:
    """What is wrong with the size of a tensor in a protobuf message, "" if nothing is."""
    if not isinstance(tensor, ir.TensorProtoTensor):
        return ""
    proto = tensor.raw
    shape = tuple(proto.dims)
    if tensor.dtype == ir.DataType.UNDEFINED:
        return "has no element type"
    if any(size < 0 for size in shape):
        return f"has the shape {list(shape)}"
    size, kind = math.prod(shape), tensor.dtype.name
    if proto.HasField("raw_data"):
        found, wanted, unit = len(proto.raw_data), int(tensor.nbytes), "bytes"
    else:
        found, unit = sum(len(getattr(proto, field)) for field in _FIELDS), "numbers"
        wanted = -(-size // _PACKED[kind]) if kind in _PACKED else size * _PARTS.get(kind, 1)
    return "" if found == wanted else f"of shape {list(shape)} has {found} {unit}, and {wanted} belong to it"


def _open_dimensions(value: ir.Value) -> None:
    """Make the dimensions of -1 open ones, as ONNX Runtime reads them and as Paddle writes them."""
    if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
        value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in value.shape])


# --- operators


@lru_cache(maxsize=1024)
def _needs(op_type: str, version: int) -> tuple[tuple[int, ...], dict[str, tuple[bool, int]]] | None:
    """The inputs that an operator of the default domain needs, and whether it needs each attribute, with its type."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None  # a newer operator, or none of ONNX: a runtime may know it
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    inputs = tuple(i for i, formal in enumerate(schema.inputs) if formal.option == single)
    attributes: Mapping[str, Any] = schema.attributes
    return inputs, {name: (a.required, int(a.type.value)) for name, a in attributes.items()}


def _check_operators(model: ir.Model, called: str) -> None:
    """Raise ModelError for a node that lacks an input or attribute which its operator needs."""
    functions: Collection[Any] = model.functions.values()
    for scope in (model, *functions):
        version = default_opset(scope)
        graph = scope.graph
        for node in graph.all_nodes() if graph is not None else ():
            needs = _needs(node.op_type, version) if is_standard(node) and version else None
            text = _lack(node, *needs) if needs is not None else ""
            if not text and is_op(node, "Conv", "ConvTranspose"):
                text = _odd_groups(node)
            if text:
                raise ModelError(f"{called}: the {node.op_type} {_title(node)} {text}: {_EXPORT}.")


def _lack(node: ir.Node, inputs: tuple[int, ...], attributes: dict[str, tuple[bool, int]]) -> str:
    """What a node lacks, "" if nothing."""
    for index in inputs:
        if index >= len(node.inputs) or node.inputs[index] is None:
            return f"has no input {index}"
    for name, (required, kind) in attributes.items():
        attribute = node.attributes.get(name)
        if attribute is None:
            if required:
                return f"has no attribute {name}"
        elif not attribute.is_ref() and int(attribute.type.value) != kind:
            return f"has an attribute {name} of type {attribute.type.name}, and it has to be another"
    return ""


def _odd_groups(node: ir.Node) -> str:
    """What is wrong with the groups of a convolution, "" if nothing is."""
    attribute = node.attributes.get("group")
    groups = 1 if attribute is None or attribute.is_ref() else attribute.value
    weight = constant_tensor(optional_input(node, 1))
    if not isinstance(groups, int) or groups < 1:
        return f"has {groups} groups"
    channels = shape_of(weight)[:1] if weight is not None else ()
    return (
        f"has {channels[0]} channels, which {groups} groups do not divide" if channels and channels[0] % groups else ""
    )
