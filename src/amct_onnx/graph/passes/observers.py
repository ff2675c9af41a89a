"""Put calibration observers into a model, and take them out again.

Before          After
x -> Conv       x -> Conv
                x -> amct.customop.IFMR -> (nobody)

An observer is a side branch: the float path is untouched. The observers stand at the end of the graph, those of the
last layers first. ONNX Runtime orders a graph by walking back from its leaves, the last leaf first: in this order each
observer runs as soon as its tensor exists, and the tensor can be freed; in the natural order all observers would run
after the whole network, with every activation kept until then. Attributes follow spec section 7.2; the layers are one
JSON list, since a Python operator reads only attributes that were declared for its type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from amct_onnx.core.settings import ActivationSettings, Hfmg, Ifmr
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.layers import OBSERVER_DOMAIN


@dataclass(frozen=True, kw_only=True)
class Observer:
    """One observed tensor: the layers that read it and share its factors."""

    layers: tuple[str, ...]
    activation: ActivationSettings
    batch_num: int
    record_path: str
    observers: int
    """Number of observers in the model: the record is complete when all of them are."""


def insert_observers(model: ir.Model, observers: Sequence[Observer]) -> None:
    """Attach each observer to the first input of its layers, in place."""
    nodes = {node.name: node for node in model.graph}
    order = {node.name: position for position, node in enumerate(model.graph)}
    names = ValueNames(model)
    for observer in sorted(observers, key=lambda observer: order[observer.layers[0]], reverse=True):
        value = nodes[observer.layers[0]].inputs[0]
        assert value is not None  # every layer's first input is required
        model.graph.append(_observer_node(observer, value, names))
    model.opset_imports[OBSERVER_DOMAIN] = 1


def remove_observers(model: ir.Model) -> list[Observer]:
    """Take the observers out, in place, and say what they were, in the order of their layers."""
    found = [node for node in reversed(model.graph) if node.domain == OBSERVER_DOMAIN]
    observers = [_parse(node) for node in found]
    for node in found:
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(OBSERVER_DOMAIN, None)
    return observers


def _observer_node(observer: Observer, value: ir.Value, names: ValueNames) -> ir.Node:
    name = f"{observer.layers[0]}.observer"
    activation = observer.activation
    attributes: dict[str, str | int | float] = {
        "input_stamp": "data",
        "batch_num": observer.batch_num,
        "num_bits": activation.num_bits,
        "with_offset": int(activation.asymmetric),
        "record_file_path": observer.record_path,
        "object_layers": json.dumps(list(observer.layers), ensure_ascii=False),
        "observers": observer.observers,
    }
    if isinstance(activation.solver, Ifmr):
        solver = activation.solver
        attributes |= {
            "start_ratio": solver.search_start,
            "end_ratio": solver.search_end,
            "step": solver.search_step,
            "max_percentile": solver.max_percentile,
            "min_percentile": solver.min_percentile,
        }
    else:
        attributes["nbins"] = activation.solver.num_of_bins
    return ir.node(
        type(activation.solver).__name__.upper(),
        [value],
        attributes,
        domain=OBSERVER_DOMAIN,
        name=name,
        outputs=[ir.val(names.new(f"{name}.output0"), dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))],
    )


def _parse(node: ir.Node) -> Observer:
    values = {a.name: a.value for a in node.attributes.values() if isinstance(a, ir.Attr)}
    return parse_observer(node.op_type, values)


def parse_observer(op_type: str, attributes: dict[str, object]) -> Observer:
    """The observer that a node of `op_type` with these attribute values stands for."""

    def number(name: str) -> float:
        value = attributes[name]
        assert isinstance(value, int | float)
        # ONNX stores float32; the shortest decimal of it is what the user wrote.
        return float(f"{value:.7g}")

    def integer(name: str) -> int:
        value = attributes[name]
        assert isinstance(value, int)
        return value

    solver: Ifmr | Hfmg
    if op_type == "IFMR":
        solver = Ifmr(
            max_percentile=number("max_percentile"),
            min_percentile=number("min_percentile"),
            search_start=number("start_ratio"),
            search_end=number("end_ratio"),
            search_step=number("step"),
        )
    else:
        solver = Hfmg(num_of_bins=integer("nbins"))
    return Observer(
        layers=tuple(json.loads(str(attributes["object_layers"]))),
        activation=ActivationSettings(
            num_bits=integer("num_bits"), asymmetric=bool(attributes["with_offset"]), solver=solver
        ),
        batch_num=integer("batch_num"),
        record_path=str(attributes["record_file_path"]),
        observers=integer("observers"),
    )
