"""The form in which a network comes: names, the order of nodes, what is said of dimensions, shapes in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
from graphs import graphs
from onnx import shape_inference

from networks.scope import Draws

_WORDS = ("layer 1/conv", "слой", "层.卷积", "a:0", "é b", "model/ünit/Relu:0", "x{0}", "%1", "a\\b")
# How new nodes and tensors of quantized models are named, behind the names that they come from.
_OURS = (
    *(".quantize", ".dequantize", ".integers", ".dequantized", ".scale", ".zero_point", ".float", ".clamp", ".fence"),
    *(".quant", ".quant.mul", ".quant.output0", ".dequant", ".dequant.param", ".anti_quant", ".constant1", "_output0"),
    *(".transpose", ".float_weight", "_quantized", "__bias", ".output0", ".columns", ".smooth", ".mul"),
)


@dataclass(frozen=True, kw_only=True)
class Dress:
    """What was chosen. names: of values and of nodes. dims: of a batch that is open, and of the rest of inputs."""

    names: str = "plain"
    nodes: str = "plain"
    dims: str = "named"
    shapes: str = "none"
    order: str = "sorted"
    outputs: str = "shaped"
    renamed: dict[str, str] = field(default_factory=dict, repr=False)


def dress(
    draws: Draws, plain: onnx.ModelProto, inputs: Sequence[str], is_open: bool
) -> tuple[Dress, onnx.ModelProto, dict[str, str]]:
    """`plain` in another form, which is told, and the new names of its values."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    worn = Dress(
        shapes=draws.pick("none", "inferred"),
        dims=draws.pick("named", "nameless", "minus", "all") if is_open else "named",
        outputs=draws.pick("shaped", "shaped", "bare"),
        names=draws.pick("plain", "words", "ours"),
        nodes=draws.pick("plain", "none", "same", "ours", "tensors"),
        order=draws.pick("sorted", "sorted", "reversed"),
    )
    if worn.shapes == "inferred":
        known = shape_inference.infer_shapes(model).graph.value_info
        model.graph.value_info.extend(known)
    _write_dimensions(model, worn, inputs)
    _name_nodes(model, worn.nodes)
    renamed = _new_names(model, worn.names)
    for graph in graphs(model.graph):
        _rename(graph, renamed)
    if worn.order == "reversed":
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return worn, model, renamed


def _write_dimensions(model: onnx.ModelProto, worn: Dress, inputs: Sequence[str]) -> None:
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param == "N":
                if worn.dims == "nameless":
                    dim.Clear()
                elif worn.dims == "minus":
                    dim.dim_value = -1
            elif worn.dims == "all" and axis and value.name in inputs:
                dim.Clear()
    if worn.outputs == "bare":
        made = {name for node in model.graph.node for name in node.output}
        for value in model.graph.output:
            if value.name in made:
                value.type.tensor_type.ClearField("shape")


def _name_nodes(model: onnx.ModelProto, kind: str) -> None:
    tensors = [name for node in model.graph.node for name in node.output if name]
    number = 0
    for graph in graphs(model.graph):
        for node in graph.node:
            if kind == "none":
                node.name = ""
            elif kind == "same":
                node.name = "node" if number % 2 else node.name
            elif kind == "tensors":
                node.name = tensors[number % len(tensors)]  # those of values, which are another kind of name
            elif kind == "ours" and number % 2:
                node.name = f"{tensors[number // 2 % len(tensors)]}{_OURS[number % len(_OURS)]}"
            number += 1


def _new_names(model: onnx.ModelProto, kind: str) -> dict[str, str]:
    """Other names for all values."""
    if kind == "plain":
        return {}
    names: dict[str, str] = {}
    for graph in graphs(model.graph):
        made = [v.name for v in graph.input] + [t.name for t in graph.initializer]
        made += [name for node in graph.node for name in node.output if name]
        names.update(dict.fromkeys(made, ""))
    taken: list[str] = []
    nodes = [node.name or "n" for node in model.graph.node]
    for place, name in enumerate(names):
        if kind == "words":
            new = _WORDS[place % len(_WORDS)] + (f" {place}" if place >= len(_WORDS) else "")
        elif place % 2 and taken:
            base = taken[place // 2] if place % 4 == 1 else nodes[place // 4 % len(nodes)]
            new = base + _OURS[place // 2 % len(_OURS)]
        else:
            new = name
        while new in taken:
            new += "_"
        names[name] = new
        taken.append(new)
    return names


def _rename(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
