"""What `make conformance` makes of a model of the suite before it quantizes it.

`frozen`: the model as it is, with all inputs but the first as weights. `sandwich`: between two products, so that the
operator has quantized neighbours. `default`: the sandwich, quantized with the recipe. `opset11`, `opset12`, ...: the
sandwich, converted to that opset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from conformance_models import Item
from onnx import helper, numpy_helper, version_converter

Feed = Mapping[str, Any]

OLDEST = 11  # that is quantized; older models are converted before they come into a sandwich
NEWEST = onnx.defs.onnx_opset_version()
_SHRINKS, _STRAYS = 0.85, 0.1  # of the product in front, so that its result is in the domain of what it goes to
_COLUMNS = 3  # of the product behind
_WIDEST = 4096  # channels of the product in front
_IR_VERSION = 8  # of converted models
_USUAL = 17  # the opset of models without or with an old one in a sandwich


class NotApplicableError(Exception):
    """A form cannot be made of a model; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model to quantize. feed: a value for each of its inputs; it is calibrated and compared with these."""

    model: onnx.ModelProto = field(repr=False)
    feed: Feed = field(repr=False)


def make_case(item: Item, form: str) -> Case:
    """The form of a model that has this name. Raises NotApplicableError."""
    if form == "frozen":
        return frozen(item)
    case = sandwich(item)
    if form in ("sandwich", "default"):
        return case
    return Case(model=_at_opset(case.model, int(form.removeprefix("opset"))), feed=case.feed)


def frozen(item: Item, kept: int = 0) -> Case:
    """The model with all inputs but one as initializers. Sequences and optional values cannot be, and stay inputs."""
    model = onnx.ModelProto()
    model.CopyFrom(item.model)
    feed: dict[str, Any] = {}
    for place, (value, given) in enumerate(zip(_inputs(model.graph), item.inputs, strict=True)):
        if given is None or isinstance(given, list):
            feed[value.name] = given
        elif place == kept:
            feed[value.name] = _array(given)
        else:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(given if isinstance(given, onnx.TensorProto) else numpy_helper.from_array(_array(given)))
            tensor.name = value.name
            model.graph.initializer.append(tensor)
            if model.ir_version >= 4:  # before, an initializer is an input as well
                model.graph.input.remove(value)
    return Case(model=model, feed=feed)


def sandwich(item: Item) -> Case:
    """before -> product -> model -> product -> after: at its first float input and its first float output.

    The other inputs are weights, the other outputs stay. Raises NotApplicableError.
    """
    taken, read = _places(item)
    if taken is None or read is None:
        raise NotApplicableError("no float input or no float output that has dimensions")
    case = frozen(item, taken)
    model = case.model
    if not _opset(model):
        model.opset_import.append(helper.make_operatorsetid("", _USUAL))
    model = _at_opset(model, _USUAL) if _opset(model) < OLDEST else _without_inputs(model)
    x = _inputs(item.model.graph)[taken].name
    y = item.model.graph.output[read].name
    inner = list(model.graph.node)
    front, before = _in_front(model.graph, x, np.shape(case.feed[x]))
    behind, after = _behind(model.graph, y, np.shape(_array(item.outputs[read])))
    del model.graph.node[:]
    model.graph.node.extend([*front, *inner, *behind])
    next(value for value in model.graph.input if value.name == x).CopyFrom(before)
    next(value for value in model.graph.output if value.name == y).CopyFrom(after)
    fed = case.feed[x].reshape([dim.dim_value for dim in before.type.tensor_type.shape.dim])
    feed = {name: given for name, given in case.feed.items() if name != x}
    return Case(model=model, feed={before.name: fed, **feed})


def fits_sandwich(item: Item) -> bool:
    """Whether a product can be in front of it and another one behind it."""
    return None not in _places(item)


def _places(item: Item) -> tuple[int | None, int | None]:
    """The places of the first float input and of the first float output."""
    first = [
        next((place for place, given in enumerate(values) if _is_float(given)), None)
        for values in (item.inputs, item.outputs)
    ]
    return first[0], first[1]


def _in_front(
    graph: onnx.GraphProto, name: str, shape: Sequence[int]
) -> tuple[list[onnx.NodeProto], onnx.ValueInfoProto]:
    """Nodes that make a tensor of this name and shape by a product, and what they read; a vector is a row before."""
    size = shape[1] if len(shape) == 4 else shape[-1]
    if size > _WIDEST:
        raise NotApplicableError("too wide for a product")
    weight = _SHRINKS * np.eye(size) + np.random.default_rng(1).uniform(0, _STRAYS / size, (size, size))
    whole = shape if len(shape) > 1 else (1, *shape)
    made = name if len(shape) > 1 else "row_in_front"
    nodes = [_product(graph, "in_front", "before", made, weight, len(shape))]
    if len(shape) == 1:
        nodes.append(_reshape(graph, "in_front", made, name, shape))
    return nodes, helper.make_tensor_value_info("before", onnx.TensorProto.FLOAT, whole)


def _behind(
    graph: onnx.GraphProto, name: str, shape: Sequence[int]
) -> tuple[list[onnx.NodeProto], onnx.ValueInfoProto]:
    """Nodes that read a tensor of this name and shape by a product, and what they make."""
    size = shape[1] if len(shape) == 4 else shape[-1]
    weight = np.random.default_rng(2).normal(0, 1, (size, _COLUMNS))
    nodes = [] if len(shape) > 1 else [_reshape(graph, "behind", name, "row_behind", (1, *shape))]
    whole = list(shape) if len(shape) > 1 else [1, *shape]
    whole[1 if len(shape) == 4 else -1] = _COLUMNS
    nodes.append(_product(graph, "behind", name if len(shape) > 1 else "row_behind", "after", weight, len(shape)))
    return nodes, helper.make_tensor_value_info("after", onnx.TensorProto.FLOAT, whole)


def _product(graph: onnx.GraphProto, name: str, x: str, y: str, weight: np.ndarray, rank: int) -> onnx.NodeProto:
    """y = x times a weight [K, M]: a convolution of one pixel for images, and else a MatMul."""
    stored = weight.T[:, :, None, None] if rank == 4 else weight
    graph.initializer.append(numpy_helper.from_array(stored.astype(np.float32), f"weight_{name}"))
    return helper.make_node("Conv" if rank == 4 else "MatMul", [x, f"weight_{name}"], [y], name=f"product_{name}")


def _reshape(graph: onnx.GraphProto, name: str, x: str, y: str, shape: Sequence[int]) -> onnx.NodeProto:
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"shape_{name}"))
    return helper.make_node("Reshape", [x, f"shape_{name}"], [y], name=f"reshape_{name}")


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are no initializers."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _is_float(given: Any) -> bool:
    """Whether it is a float32 tensor that has dimensions and values."""
    array = given if given is None or isinstance(given, list) else _array(given)
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim > 0 and array.size > 0


def _array(given: Any) -> np.ndarray:
    return numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else np.asarray(given)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        converted = version_converter.convert_version(model, opset)
    except Exception as error:  # the converter is in C++, and has no class of its own
        raise NotApplicableError(f"onnx cannot convert it: {' '.join(str(error).split())[:200]}") from error
    return _without_inputs(converted)


def _without_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed: its initializers are no inputs."""
    kept = _inputs(model.graph)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return model
