"""Take a model apart at chosen tensors: each part computes from what it is given, whatever the parts before it make.

Before                      After
x -> Conv -> y -> Relu -> z    x -> Conv -> y, y.given -> Relu -> z      y and z are outputs
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from amct_onnx.graph.access import name_of
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph


def take_apart(model: ir.Model, tensors: Mapping[str, tuple[ir.DataType, int]]) -> tuple[ir.Model, dict[str, str]]:
    """A copy of `model` that is cut at `tensors`, its inputs among them; shares its weights.

    tensors: the type and the number of axes of each, by name. Its outputs are those of `tensors` that nodes make.
    Returns it with the name of the input that stands for each tensor that something reads.
    """
    copy = model.clone()
    graph, names, values = copy.graph, ValueNames(copy), index_graph(copy).values
    graph.outputs.clear()
    given: dict[str, str] = {}
    for name, (dtype, rank) in tensors.items():
        value = values[name]
        if value.uses():
            own = ir.val(names.new(f"{name}.given"), dtype=dtype, shape=ir.Shape([None] * rank))
            value.replace_all_uses_with(own)
            graph.inputs.append(own)
            given[name] = name_of(own)
        if value.producer() is None:
            graph.inputs.remove(value)
        else:
            graph.outputs.append(value)
    return copy, given
