"""Add nodes in front of an observer where what it sees is no plain float32 input, and take them out again.

Before                        After
initial_h, Y of an LSTM       initial_h -> Reshape [-1] -> Concat -> (observer)
                              Y         -> Reshape [-1] ---^
x (float16)                   x -> Cast(float32) -> (observer)

The recurrent product of an LSTM or GRU reads initial_h and then each h_t, so their factors come from all of them. The
observers read float32. The nodes are named `<observer>.<hint>`; that is how `remove_branch` knows them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from amct_onnx.graph.access import graph_of, name_of, optional_input
from amct_onnx.graph.constants import ValueNames, add_initializer
from amct_onnx.graph.recurrent import HIDDEN


class Branch:
    """Appends the side branch of one observer to `graph`, or to the main graph."""

    def __init__(self, model: ir.Model, observer: str, names: ValueNames, *, graph: ir.Graph | None = None) -> None:
        self._graph, self._observer, self._names = graph or model.graph, observer, names

    def states_of(self, node: ir.Node) -> ir.Value:
        """All hidden states of an LSTM or GRU, in one dimension. Y gets a name where the model does not ask for it."""
        y = node.outputs[0]
        if not y.name:
            y.name = self._names.new(f"{self._observer}.Y")
        shape = add_initializer(self._graph, f"{self._observer}.flat", np.array([-1], np.int64), names=self._names)
        states = [value for value in (optional_input(node, HIDDEN), y) if value is not None]
        flat = [self.op("Reshape", [v, shape], f"reshape{i}", {}, y.dtype) for i, v in enumerate(states)]
        return self.op("Concat", flat, "concat", {"axis": 0}, y.dtype)

    def as_float32(self, value: ir.Value) -> ir.Value:
        """`value`, behind a Cast where it is of another type."""
        if value.dtype == ir.DataType.FLOAT:
            return value
        return self.op("Cast", [value], "cast", {"to": int(ir.DataType.FLOAT)}, ir.DataType.FLOAT)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        hint: str,
        attributes: Mapping[str, Any],
        dtype: ir.DataType | None,
    ) -> ir.Value:
        """The output of a new node named `<observer>.<hint>`."""
        name = f"{self._observer}.{hint}"
        output = ir.val(self._names.new(f"{name}.output0"), dtype=dtype)
        self._graph.append(ir.node(op_type, inputs, attributes, name=self._names.node(name), outputs=[output]))
        return output


def remove_branch(value: ir.Value, observer: str) -> None:
    """Undo what `Branch` did for the observer named `observer`, which read `value` and is gone."""
    prefix = f"{observer}."
    node = value.producer()
    if value.uses() or value.is_graph_output() or not name_of(value).startswith(prefix):
        return
    if value.is_initializer():
        del graph_of(value).initializers[name_of(value)]
    elif node is not None and name_of(node).startswith(prefix):
        inputs = [source for source in node.inputs if source is not None]
        graph_of(node).remove(node, safe=True)
        for source in inputs:
            remove_branch(source, observer)
    else:
        value.name = ""  # the Y that got a name for the observer
