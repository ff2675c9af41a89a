"""A copy of a model that computes chosen tensors and nothing else, and shows each to whoever reads it.

Before                     After
x -> Conv -> y -> Relu     x -> Conv -> y -> amct.customop.Show -> (output)

The outputs of the copy are those of its Show nodes, one number each, and nodes that none of them needs are left out.
The order is that of graph.instrument.observers: each tensor is shown when it exists.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from amct_onnx.errors import ModelError
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.instrument.side_branches import Branch
from amct_onnx.graph.layers import OBSERVER_DOMAIN

SHOW = "Show"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def show_tensors(model: ir.Model, readers: Mapping[str, int]) -> ir.Model:
    """A copy of `model`, which shares its weights; each value named in `readers` is shown to the one of that number.

    Values are those of the main graph: inputs, outputs of nodes, initializers. Raises ModelError for a name that the
    graph does not have, and for a tensor that is not of a float type.
    """
    copy = model.clone()
    graph, values = copy.graph, index_graph(copy).values
    _check(readers, values)
    names, outputs = ValueNames(copy), []
    # Inputs and initializers are there before the first node.
    positions: dict[ir.Node | None, int] = {None: -1} | {node: position for position, node in enumerate(graph)}
    for name in sorted(readers, key=lambda name: positions[values[name].producer()], reverse=True):
        hint = names.node(f"{name}.show")
        value = Branch(copy, hint, names).as_float32(values[name])
        output = ir.val(names.new(f"{hint}.output0"), dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))
        attributes = {"input_index": readers[name]}
        graph.append(ir.node(SHOW, [value], attributes, domain=OBSERVER_DOMAIN, name=hint, outputs=[output]))
        outputs.append(output)
    graph.outputs[:] = outputs
    copy.opset_imports[OBSERVER_DOMAIN] = 1
    RemoveUnusedNodesPass()(copy)
    return copy


def _check(names: Collection[str], found: Mapping[str, ir.Value]) -> None:
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ModelError(f"The model has no tensor {', '.join(unknown[:5])} in its main graph: check the names.")
    for name in names:
        dtype = found[name].dtype
        if dtype is not None and dtype not in _FLOATS:
            raise ModelError(f"The tensor {name} is of type {dtype.name}: only float tensors can be observed.")
