"""Small LSTM and GRU models, and what to feed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from flow import normal
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3}
INPUT, HIDDEN = 3, 4
Feeds = dict[str, np.ndarray]


def recurrent(
    op_type: str,
    *,
    shape: Sequence[int | str] = ("T", "N", INPUT),
    bias: bool = True,
    states: bool = True,
    outputs: Sequence[str] = ("y", "y_h", "y_c"),
    opset: int = 17,
    nodes: Sequence[onnx.NodeProto] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """x [T,N,3] -> LSTM or GRU `cell` -> y [T,1,N,4], y_h, y_c [1,N,4]; with `states` it reads the inputs h0 and c0.

    `outputs`: names of the cell's outputs, "" for one that is left out; the named ones are outputs of the graph.
    """
    rows, lstm = GATES[op_type] * HIDDEN, op_type == "LSTM"
    weights = {"w": normal(1, 1, rows, INPUT), "r": normal(2, 1, rows, HIDDEN), "b": normal(3, 1, 2 * rows)}
    given = ["h0", "c0"][: 1 + lstm] if states else []
    batch = shape[1]
    if op_type == "GRU":
        attributes = {"linear_before_reset": 1} | attributes
    cell = helper.make_node(
        op_type,
        ["x", "w", "r", "b" if bias else "", "", *given],
        list(outputs[: 2 + lstm]),
        name="cell",
        hidden_size=HIDDEN,
        **attributes,
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, batch, HIDDEN]) for name in given]
    dims = {"y": [shape[0], 1, batch, HIDDEN]}
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims.get(name, [1, batch, HIDDEN]))
        for name in cell.output
        if name
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items() if bias or name != "b"]
    graph = helper.make_graph([cell, *nodes], "g", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def sequences(model: onnx.ModelProto, *, length: int = 5, batch: int = 3, seed: int = 0) -> Feeds:
    """Inputs for a model of `recurrent`, states included."""
    shapes = {"x": (length, batch, INPUT)}
    names = [value.name for value in model.graph.input]
    return {
        name: normal(seed + i, *shapes.get(name, (1, batch, HIDDEN)), scale=1.0 if name == "x" else 0.5)
        for i, name in enumerate(names)
    }
