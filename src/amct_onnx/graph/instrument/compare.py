"""Put the quantized layers of one model beside the float layers of another, and compare each pair of outputs.

Before (float)        Before (quantized)                     After
x -> Conv -> y        x -> [quantize -> Conv' -> dequantize] -> y'
                                                             x -> Conv -> y -+-> ...
                                                             x -> [...] -> y' -> Concat(y, y') -> Compare

The quantized model may do with a layer what it wants: whatever stands there between tensors that the float model has
too comes along. Marks, which `mark_outputs` made before it was quantized, tell where the outputs of its layers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from amct_onnx.graph.access import graph_of, input_of, name_of, values_read
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import GraphIndex, index_graph
from amct_onnx.graph.instrument.observers import Observer, observer_name, observer_node
from amct_onnx.graph.instrument.side_branches import Branch
from amct_onnx.graph.layers import OBSERVER_DOMAIN
from amct_onnx.graph.tensors import renamed

_MARK = "Identity"


def mark_outputs(model: ir.Model, layers: Sequence[str], floats: ir.Model) -> dict[str, list[str]]:
    """Let a node of its own read each output of `layers`, in place; the names of these nodes, in order.

    Outputs that the layer lacks in the model `floats` are left out: calibration may observe one that nobody else reads.
    """
    index, asked, names = index_graph(model), index_graph(floats), ValueNames(model)
    marks: dict[str, list[str]] = {}
    for layer in layers:
        for number, output in enumerate(index.nodes[layer].outputs):
            if not asked.nodes[layer].outputs[number].name:
                continue
            name = names.node(f"{layer}.compared{number}")
            mark = ir.node(_MARK, [output], name=name, outputs=[ir.val(names.new(name), type=output.type)])
            model.graph.append(mark)
            marks.setdefault(layer, []).append(name)
    return marks


def compare_layers(model: ir.Model, quantized: ir.Model, marks: dict[str, list[str]], observer: Observer) -> None:
    """Add to the float `model` the layers of `quantized` and a comparison of each first output; `quantized` is used up.

    marks: of `mark_outputs`. observer: its `layers` are replaced by each layer in turn.
    """
    floats, rivals = index_graph(model), index_graph(quantized)
    pairs = {}
    for layer, names in marks.items():
        outputs = [output for output in floats.nodes[layer].outputs if output.name]
        pairs[layer] = list(zip(outputs, _marked(rivals, names), strict=True))
    quantized.graph.outputs.clear()
    _read_floats(floats, rivals, quantized.graph.inputs, pairs)
    mover = _Mover(model)
    for layer in reversed(marks):  # the last one first: see graph.instrument.observers
        output, rival = pairs[layer][0]
        mover.bring(rival)
        mover.compare(output, rival, replace(observer, layers=(layer,)))
    for domain, version in {**quantized.opset_imports, OBSERVER_DOMAIN: 1}.items():
        model.opset_imports.setdefault(domain, version)


def _marked(quantized: GraphIndex, names: Sequence[str]) -> list[ir.Value]:
    """What the marks read; the marks go."""
    marks = [quantized.nodes[name] for name in names]
    values = [input_of(mark, 0) for mark in marks]
    for mark in marks:
        graph_of(mark).remove(mark, safe=True)
    return values


def _read_floats(
    floats: GraphIndex,
    rivals: GraphIndex,
    inputs: Sequence[ir.Value],
    outputs: Mapping[str, Sequence[tuple[ir.Value, ir.Value]]],
) -> None:
    """Let every node of the quantized model, `rivals`, read the tensors of the float model where it has them.

    inputs: those of the quantized model. outputs: for each compared layer, its float outputs and their rivals.
    """
    pairs = [pair for found in outputs.values() for pair in found]
    pairs += [(floats.values[name], value) for value in inputs if (name := name_of(value)) in floats.values]
    for name, node in floats.nodes.items():
        rival = rivals.nodes.get(name)
        if rival is not None and name not in outputs and node.op_type == rival.op_type:
            pairs += zip(node.outputs, rival.outputs, strict=False)
    for value, other in pairs:
        for use in list(other.uses()):
            use.node.replace_input_with(use.idx, value)


class _Mover:
    """Appends nodes of another graph to a model, with what they read."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._graph, self._names = model, model.graph, ValueNames(model)

    def bring(self, value: ir.Value) -> None:
        """Append what computes `value`, as far as it is not there yet."""
        waiting, ready = [value], set[ir.Node]()
        while waiting:
            node = waiting[-1].producer()
            if node is None or node.graph is self._graph or node in ready:
                value = waiting.pop()
                if node is None:
                    self._bring_initializer(value)
                elif node.graph is not self._graph:
                    self._bring_node(node)
            else:
                ready.add(node)
                waiting += reversed(list(values_read(node)))

    def _bring_node(self, node: ir.Node) -> None:
        graph_of(node).remove(node)
        for output in node.outputs:
            if output.name:
                output.name = self._names.new(f"{output.name}.quantized")
        node.name = self._names.node(f"{node.name}.quantized")
        self._graph.append(node)

    def _bring_initializer(self, value: ir.Value) -> None:
        if value.graph is self._graph or not value.is_initializer():
            return
        del graph_of(value).initializers[name_of(value)]
        name = self._names.new(f"{value.name}.quantized")
        if value.const_value is not None:
            value.const_value = renamed(value.const_value, name)  # other models may have the tensor too
        value.name = name
        self._graph.register_initializer(value)

    def compare(self, output: ir.Value, rival: ir.Value, observer: Observer) -> None:
        """Append the observer of both."""
        branches = [
            Branch(self._model, self._names.node(f"{observer.layers[0]}.{kind}"), self._names)
            for kind in ("float", "int", "joined")
        ]
        float32 = [branch.as_float32(value) for branch, value in zip(branches, (output, rival), strict=False)]
        concat = branches[-1].op("Concat", float32, "concat", {"axis": 0}, ir.DataType.FLOAT)
        self._graph.append(observer_node(observer, concat, observer_name(observer, self._names), self._names))
