"""Show what some nodes read, as outputs of the model."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from amct_onnx.graph.access import name_of


def show_inputs(model: ir.Model, nodes: Collection[str]) -> dict[str, str]:
    """Add input 0 of each node of the main graph with one of these names to the outputs, if it is none yet.

    Changes `model`. Returns the name of that tensor for each of the nodes that there are.
    """
    wanted = frozenset(nodes)
    found = {name_of(node): node.inputs[0] for node in model.graph if node.name in wanted and node.inputs}
    shown = {name: value for name, value in found.items() if value is not None and value.producer() is not None}
    known = {value.name for value in model.graph.outputs}
    for value in shown.values():
        if value.name not in known:
            known.add(value.name)
            model.graph.outputs.append(value)
    return {name: name_of(value) for name, value in shown.items()}
