"""A copy of a model that computes chosen tensors and nothing else, and shows each to whoever reads it.

Before                     After
x -> Conv -> y -> Relu     x -> Conv -> y -> amct.customop.Show -> (output)

The outputs of the copy are those of its Show nodes, one number each, and nodes that none of them needs are left out.
The order is that of graph.instrument.observers: each tensor is shown when it exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from amct_onnx.errors import ModelError
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.instrument.observed import Branch
from amct_onnx.graph.layers import OBSERVER_DOMAIN

SHOW = "Show"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def show_tensors(model: ir.Model, readers: Mapping[str, int]) -> ir.Model:
    """A copy of `model`, which shares its weights; each value named in `readers` is shown to the one of that number.

    Values are those of the main graph: inputs, outputs of nodes, initializers. Raises ModelError for a name that the
    graph does not have, and for a tensor that is not of a float type.
    """
    copy = model.clone()
    graph, found, order = copy.graph, _values(copy.graph), _positions(copy.graph)
    _check(readers, found)
    names, outputs = ValueNames(copy), []
    for name in sorted(readers, key=lambda name: order[name], reverse=True):
        value, hint = found[name], f"{name}.show"
        if value.dtype != ir.DataType.FLOAT:
            value = Branch(copy, hint, names).as_float32(value)
        output = ir.val(names.new(f"{hint}.output0"), dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))
        attributes = {"input_index": readers[name]}
        graph.append(ir.node(SHOW, [value], attributes, domain=OBSERVER_DOMAIN, name=hint, outputs=[output]))
        outputs.append(output)
    graph.outputs[:] = outputs
    copy.opset_imports[OBSERVER_DOMAIN] = 1
    RemoveUnusedNodesPass()(copy)
    return copy


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    nodes = (output for node in graph for output in node.outputs)
    return {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *nodes) if value.name}


def _positions(graph: ir.Graph) -> dict[str, int]:
    """The position of each value's node; inputs and initializers are there before the first one."""
    order = dict.fromkeys(_values(graph), -1)
    order.update((output.name, i) for i, node in enumerate(graph) for output in node.outputs if output.name)
    return order


def _check(names: Sequence[str] | Mapping[str, int], found: Mapping[str, ir.Value]) -> None:
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ModelError(f"The model has no tensor {', '.join(unknown[:5])} in its main graph: check the names.")
    for name in names:
        dtype = found[name].dtype
        if dtype is not None and dtype not in _FLOATS:
            raise ModelError(f"The tensor {name} is of type {dtype.name}: only float tensors can be observed.")
