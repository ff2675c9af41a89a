"""A copy of a model that computes chosen tensors, and nothing else if asked, and shows each to whoever reads it.

Before                     After
x -> Conv -> y -> Relu     x -> Conv -> y -> amct.customop.Show -> (output)

The outputs of the copy are those of its Show nodes, one number each, and nodes that none of them needs are left out. It
can have those of the model as well, in front of them.
The order is that of graph.instrument.observers: each tensor is shown when it exists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from amct_onnx.errors import ModelError
from amct_onnx.graph.access import bodies_of, name_of
from amct_onnx.graph.bodies import all_values
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.instrument.side_branches import Branch
from amct_onnx.graph.layers import OBSERVER_DOMAIN

SHOW = "Show"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def show_tensors(model: ir.Model, readers: Mapping[str, int], *, keep_outputs: bool = False) -> ir.Model:
    """A copy of `model`, which shares its weights; each value named in `readers` is shown to the one of that number.

    Values are inputs, outputs of nodes and initializers, those of the bodies of nodes included: these are shown each
    time that the body runs. keep_outputs: the outputs of the model stay. Raises ModelError for a name that no graph
    has, and for a tensor that is not of a float type.
    """
    copy = model.clone()
    graph, values = copy.graph, all_values(copy)
    _check(readers, values)
    names, outputs = ValueNames(copy), []
    inside = {name: values[name] for name in sorted(readers) if values[name].graph is not graph}
    # Inputs and initializers are there before the first node.
    positions: dict[ir.Node | None, int] = {None: -1} | {node: position for position, node in enumerate(graph)}
    outside = [name for name in readers if name not in inside]
    for name in sorted(outside, key=lambda name: positions[values[name].producer()], reverse=True):
        outputs.append(_show(copy, graph, values[name], readers[name], names))
    for node in graph if inside else ():
        if any(value.graph in set(_graphs(node)) for value in inside.values()):
            outputs.append(node.outputs[0])  # so that the node is run
    graph.outputs[:] = [*graph.outputs, *outputs] if keep_outputs else outputs
    copy.opset_imports[OBSERVER_DOMAIN] = 1
    _leave_out_unused(graph)
    for name, value in inside.items():
        if value.graph is not None:
            _show(copy, value.graph, value, readers[name], names)
    return copy


def _show(model: ir.Model, graph: ir.Graph, tensor: ir.Value, reader: int, names: ValueNames) -> ir.Value:
    """Append the node that shows a tensor of `graph`; its output."""
    hint = names.node(f"{tensor.name}.show")
    value = Branch(model, hint, names, graph=graph).as_float32(tensor)
    output = ir.val(names.new(f"{hint}.output0"), dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))
    attributes = {"input_index": reader}
    graph.append(ir.node(SHOW, [value], attributes, domain=OBSERVER_DOMAIN, name=hint, outputs=[output]))
    return output


def _leave_out_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing of this graph needs.

    A node keeps all its outputs: some kernels want theirs, as that of Attention does where it reads a cache.
    """
    kept = frozenset(graph.outputs)
    for node in reversed(graph):
        if not any(value in kept or value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if not (value.uses() or value in kept or value.is_graph_input()):
            del graph.initializers[name_of(value)]


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a node, and those inside of them."""
    for body in bodies_of(node):
        yield body
        yield from body.subgraphs()


def _check(names: Collection[str], found: Mapping[str, ir.Value]) -> None:
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ModelError(f"The model has no tensor {', '.join(unknown[:5])}: check the names.")
    for name in names:
        dtype = found[name].dtype
        if dtype is not None and dtype not in _FLOATS:
            raise ModelError(f"The tensor {name} is of type {dtype.name}: only float tensors can be observed.")
