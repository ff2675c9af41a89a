"""Put calibration observers into a model, and take them out again.

Before          After
x -> Conv       x -> Conv
                x -> amct.customop.IFMR -> (nobody)

An observer is a side branch: the float path is untouched. The observers stand at the end of the graph, those of the
last layers first. ONNX Runtime orders a graph by walking back from its leaves, the last leaf first: in this order each
observer runs as soon as its tensor exists, and the tensor can be freed; in the natural order all observers would run
after the whole network, with every activation kept until then. Attributes follow amct_formats.md: Calibration model;
the layers are one JSON list, since a Python operator reads only attributes that were declared for its type.

What an observer collects is its task. `ActivationSettings` become IFMR and HFMG with AMCT's attributes; another task
is a frozen dataclass of `_TASKS`, which travels as JSON in the attribute `settings`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx_ir as ir

from amct_onnx.graph.access import input_of, name_of
from amct_onnx.graph.constants import ValueNames
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.instrument.side_branches import Branch, remove_branch
from amct_onnx.graph.layers import OBSERVER_DOMAIN
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.numerics.settings import ActivationSettings, Hfmg, Ifmr
from amct_onnx.values.observer_tasks import Balance, Comparison

Stamp = Literal["data", "weight", "initial_h"]
DataType = Literal["FLOAT32", "FLOAT16"]
Task = ActivationSettings | Balance | Comparison | LayerColumns
# Operator type of every task but ActivationSettings, and the class that its JSON is read into.
_TASKS: Mapping[str, type[Balance] | type[Comparison] | type[LayerColumns]] = {
    "DMQBalancer": Balance,
    "Compare": Comparison,
    "Moments": LayerColumns,
}
TASK_OPERATORS = tuple(_TASKS)
# Attributes of an operator, and the fields of `Observer` and of `Ifmr` that they hold.
_FIELDS = {
    "input_stamp": "stamp",
    "input_index": "input_index",
    "op_data_type": "op_data_type",
    "batch_num": "batch_num",
    "record_file_path": "record_path",
    "object_layers": "layers",
    "observers": "observers",
    "calibration": "calibration",
    "fakequant_precision_mode": "precision_mode",
    "joint_group": "joint",
    "joint_members": "members",
}
_IFMR = {
    "start_ratio": "search_start",
    "end_ratio": "search_end",
    "step": "search_step",
    "max_percentile": "max_percentile",
    "min_percentile": "min_percentile",
}


@dataclass(frozen=True, kw_only=True)
class Observer:
    """One observed tensor: the layers that read it and share its factors.

    `stamp` is AMCT's word for what the tensor is to its layers: it decides which fields of the record the factors fill.
    `input_index` is the input of the layers that is observed; `initial_h` means all states h of a recurrent layer.
    `op_data_type` is the type of the layers' tensors, which observers read as float32. `observers` is the number of
    observers in the model: the record is complete when all of them are. `calibration` is the id of the quantize_model
    call that made them. With `batch_num` 0 every batch counts: the factors are solved anew after each. The `members`
    observers of one `joint` group ("" for none) merge what they saw and get the same factors. `node` is the node whose
    input is observed where that is not the first layer: a `tensor_quantize` entry has a key of its own.
    """

    layers: tuple[str, ...]
    task: Task
    batch_num: int
    record_path: str
    observers: int
    calibration: str = ""
    stamp: Stamp = "data"
    input_index: int = 0
    op_data_type: DataType = "FLOAT32"
    precision_mode: str = "DEFAULT"
    joint: str = ""
    members: int = 1
    node: str | None = None

    @property
    def reader(self) -> str:
        """The node whose input is observed."""
        return self.layers[0] if self.node is None else self.node

    @property
    def open_ended(self) -> bool:
        return self.batch_num == 0


def insert_observers(model: ir.Model, observers: Sequence[Observer]) -> None:
    """Attach each observer to the observed input of its first reader, in place."""
    index, names = index_graph(model), ValueNames(model)
    for observer in sorted(observers, key=lambda observer: index.positions[observer.reader], reverse=True):
        node, name = index.nodes[observer.reader], observer_name(observer, names)
        branch = Branch(model, name, names)
        value = branch.states_of(node) if observer.stamp == "initial_h" else input_of(node, observer.input_index)
        value = branch.as_float32(value) if observer.op_data_type == "FLOAT16" else value
        model.graph.append(observer_node(observer, value, name, names))
    model.opset_imports[OBSERVER_DOMAIN] = 1


def remove_observers(model: ir.Model) -> list[Observer]:
    """Take the observers out, in place, and say what they were, in the order of their layers."""
    found = [node for node in reversed(model.graph) if node.domain == OBSERVER_DOMAIN]
    observers = [parse_observer(node.op_type, {a.name: a.value for a in node.attributes.values()}) for node in found]
    for node in found:
        value = input_of(node, 0)
        model.graph.remove(node, safe=True)
        remove_branch(value, name_of(node))
    model.opset_imports.pop(OBSERVER_DOMAIN, None)
    return observers


def observer_name(observer: Observer, names: ValueNames) -> str:
    """A name for the node of an observer."""
    kind = "_moments" if isinstance(observer.task, LayerColumns) else ""
    kind += f"_{observer.stamp}" if observer.stamp != "data" else ""
    return names.node(f"{observer.layers[0]}.observer{kind}")


def observer_node(observer: Observer, value: ir.Value, name: str, names: ValueNames) -> ir.Node:
    """A node called `name`, in no graph yet, that observes `value`."""
    op_type, own = _task_attributes(observer.task)
    attributes = {key: getattr(observer, field) for key, field in _FIELDS.items()}
    attributes["object_layers"] = json.dumps(list(observer.layers), ensure_ascii=False)
    return ir.node(
        op_type,
        [value],
        attributes | own,
        domain=OBSERVER_DOMAIN,
        name=name,
        outputs=[ir.val(names.new(f"{name}.output0"), dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))],
    )


def _task_attributes(task: Task) -> tuple[str, dict[str, str | int | float]]:
    """Operator type of a task, and the attributes that only this type has."""
    if not isinstance(task, ActivationSettings):
        op_type = next(name for name, kind in _TASKS.items() if kind is type(task))
        return op_type, {"settings": json.dumps(asdict(task), ensure_ascii=False)}
    common: dict[str, str | int | float] = {"num_bits": task.num_bits, "with_offset": int(task.asymmetric)}
    solver = task.solver
    if isinstance(solver, Hfmg):
        return "HFMG", common | {"nbins": solver.num_of_bins}
    if not isinstance(solver, Ifmr):
        raise ValueError(f"{type(solver).__name__} has no operator of AMCT")
    return "IFMR", common | {key: getattr(solver, field) for key, field in _IFMR.items()}


def parse_observer(op_type: str, attributes: Mapping[str, Any]) -> Observer:
    """The observer that a node of `op_type` with these attribute values stands for."""
    values = {field: attributes[key] for key, field in _FIELDS.items() if key in attributes}
    values["layers"] = tuple(json.loads(attributes["object_layers"]))
    return Observer(task=_parse_task(op_type, attributes), **values)


def _parse_task(op_type: str, attributes: Mapping[str, Any]) -> Task:
    if op_type in _TASKS:
        return _TASKS[op_type](**json.loads(attributes["settings"]))
    solver: Ifmr | Hfmg
    if op_type == "HFMG":
        solver = Hfmg(num_of_bins=attributes["nbins"])
    else:
        # ONNX stores float32; the shortest decimal of it is what the user wrote.
        solver = Ifmr(**{field: float(f"{attributes[key]:.7g}") for key, field in _IFMR.items()})
    return ActivationSettings(
        num_bits=attributes["num_bits"], asymmetric=bool(attributes["with_offset"]), solver=solver
    )
