"""The second half of the job: from the calibrated model and its record to the files that are deployed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx_ir as ir

from amct_onnx.amct.adaround import Integers, finish_rounding
from amct_onnx.amct.balancing import check_balanced
from amct_onnx.amct.calibration_model import FUSIONS_KEY, SIMULATED_KEY
from amct_onnx.amct.recurrent import split_recurrent
from amct_onnx.errors import ModelError, RecordError
from amct_onnx.files.fusion_json import FusionOp, write_fusion
from amct_onnx.files.onnx_file import is_source, load_model, save_model_file
from amct_onnx.files.record import check_record, read_calibration, read_notes, read_record
from amct_onnx.graph.constants import constant_value
from amct_onnx.graph.instrument.observers import Observer, remove_observers
from amct_onnx.graph.passes.balance import constant_first
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.graph.weights import weight_rows
from amct_onnx.numerics.grid import QParams, QSpec
from amct_onnx.numerics.rounding import is_on_grid
from amct_onnx.observe.calibration import finish
from amct_onnx.plan.ascend_layers import graph_facts
from amct_onnx.progress import Progress, silent
from amct_onnx.targets.ascend_dialect import AscendDialect
from amct_onnx.targets.simulation_dialect import SimulationDialect
from amct_onnx.targets.to_integers import integer_weight, layer_owner, lower, weight_spec
from amct_onnx.values.ascend_table import ASCEND
from amct_onnx.values.layers import (
    CalibrationNote,
    GraphFacts,
    LayerRecord,
    QuantizedLayer,
    QuantizedOutput,
    QuantizedTensor,
)
from amct_onnx.values.observer_tasks import Balance

_log = logging.getLogger("amct_onnx.Utils")
_SUFFIXES = {"AscendQuant": ".quant", "AscendDequant": ".dequant", "AscendAntiQuant": ".anti_quant", "Mul": ".mul"}


@dataclass(frozen=True, kw_only=True)
class FactoredModel:
    """A calibrated model: float graph with fake-quantized weights, and the factors of its layers and tensors.

    `origins` tells for each node that absorbed others the original nodes that it stands for. `half`: the chip
    quantizes in float16 (FORCE_FP16_QUANT). `parts` holds the nodes that recurrent layers were decomposed into, each
    with the number of the layer's output that it gives, or None. `outputs` are int8 outputs of
    the model. `rounding`: what `finish_rounding` has learned, by layer.
    """

    model: ir.Model
    layers: tuple[QuantizedLayer, ...]
    origins: Mapping[str, tuple[str, ...]]
    tensors: tuple[QuantizedTensor, ...] = ()
    half: bool = False
    parts: Mapping[str, int | None] = field(default_factory=dict)
    outputs: tuple[QuantizedOutput, ...] = ()
    rounding: Mapping[str, Integers] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What is quantized: layers, nodes in front of which a tensor is, and those that made outputs."""
        tensors, outputs = ([part.node for part in parts] for parts in (self.tensors, self.outputs))
        return [*dict.fromkeys(layer.layer for layer in self.layers), *tensors, *outputs]

    def deploy(self) -> ir.Model:
        """A new model with Ascend operators and int8 weights."""
        model = self.model.clone()
        dialect = AscendDialect(model, half=self.half)
        lower(model, self.layers, dialect, tensors=self.tensors, outputs=self.outputs)
        return model

    def simulation(self) -> ir.Model:
        """A new model of standard operators that computes what `deploy()` computes."""
        model = self.model.clone()
        constant_first(model, {layer.name for layer in self.layers})
        dialect = SimulationDialect(model, half=self.half)
        lower(model, self.layers, dialect, tensors=self.tensors, outputs=self.outputs)
        model.metadata_props[SIMULATED_KEY] = json.dumps(self.names, ensure_ascii=False)
        return model


def save_quantized(modified_onnx_file: str, record_file: str, save_path: str, *, progress: Progress = silent) -> None:
    """Write the deploy model, the fake-quant model and the fusion file of a calibrated model."""
    write_quantized(read_quantized(modified_onnx_file, record_file, progress=progress), save_path)


def write_quantized(quantized: FactoredModel, save_path: str) -> tuple[str, ...]:
    """Write all files of a quantized model (spec section 1.6), and return their paths."""
    folder, prefix = os.path.split(save_path)
    stem = os.path.join(folder, f"{prefix}_" if prefix else "")
    deploy = quantized.deploy()
    files = {f"{stem}deploy_model.onnx": deploy, f"{stem}fake_quant_model.onnx": quantized.simulation()}
    # Weights of both may still be in the files of the calibrated model: one that takes its place is written last.
    for file in sorted(files, key=lambda file: is_source(quantized.model, file)):
        _save(files[file], file)
    name = prefix or deploy.graph.name or "default"
    write_fusion(f"{stem}quant.json", name, _fusion_ops(deploy, quantized))
    return (*files, f"{stem}quant.json")


def _save(model: ir.Model, file: str) -> None:
    if os.path.exists(file):
        _log.warning("The file already exists at %s and it will be overwritten by AMCT", file)
    save_model_file(model, file)
    _log.info("The model file is saved in %s", file)


def read_quantized(modified_onnx_file: str, record_file: str, *, progress: Progress = silent) -> FactoredModel:
    """The calibrated model of `quantize_model`'s file and its record, with rounding learned where that is wanted.

    Raises ModelError when the file is not one of `quantize_model`, RecordError when the record is empty, incomplete,
    out of range or belongs to another model.
    """
    model = load_model(modified_onnx_file)
    observers = remove_observers(model)
    if any(isinstance(observer.task, Balance) for observer in observers):
        raise ModelError(
            f"{modified_onnx_file} was written by quantize_preprocess: run quantize_model with the same record file, "
            "and pass the modified_onnx_file that it writes."
        )
    if not observers:
        raise ModelError(
            f"{modified_onnx_file} was not written by quantize_model (it has no calibration operators): "
            "pass its modified_onnx_file."
        )
    finish(observers[0].record_path)
    records = read_record(record_file)
    noted = read_calibration(record_file)
    if noted and observers[0].calibration and noted != observers[0].calibration:
        raise RecordError(
            f"{record_file} belongs to another quantize_model call than {modified_onnx_file}: pass the two files of "
            "one call, and give each model a record file of its own."
        )
    _refuse_unfinished(observers, records, read_notes(record_file), record_file)
    return assemble(model, observers, records, record_file, progress=progress)


def assemble(
    model: ir.Model,
    observers: Sequence[Observer],
    records: Mapping[str, LayerRecord],
    record_file: str,
    *,
    rounding: Mapping[str, Integers] | None = None,
    progress: Progress = silent,
) -> FactoredModel:
    """The layers of `observers`, taken out of the calibration model `model`, with their factors of `record_file`.

    `rounding`: that of a model of the same calibration, so that none is learned again. Raises RecordError when the
    factors are out of range or belong to another model, or the moments for rounding to be learned from are missing.
    """
    facts = graph_facts(model, ASCEND)
    check_record(records, facts, path=record_file)
    origins = {k: tuple(v) for k, v in json.loads(model.metadata_props.pop(FUSIONS_KEY, "{}")).items()}
    keys = dict.fromkeys(key for observer in observers if observer.stamp == "data" for key in observer.layers)
    tensors = [key for key in keys if records[key].is_tensor_quantize]
    layers = [key for key in keys if not records[key].is_tensor_quantize]
    check_balanced(model, layers, records, record_file)
    recurrent = [layer for layer in layers if facts.layers[layer].op_type in RECURRENT_OPS]
    plain = [layer for layer in layers if layer not in recurrent]
    quantized = _quantized_layers(model, facts, plain, records, record_file)
    learned = finish_rounding(model, observers, quantized, record_file, rounding, progress)
    halves, decomposed = split_recurrent(model, records, recurrent, record_file)
    parts = {name: number for whole in decomposed for name, number in whole.nodes.items()}
    origins |= {name: origins.get(whole.layer, (whole.layer,)) for whole in decomposed for name in whole.nodes}
    return FactoredModel(
        model=model,
        layers=(*quantized, *halves),
        origins=origins,
        tensors=tuple(_quantized_tensor(key, records[key]) for key in tensors),
        half=observers[0].precision_mode == "FORCE_FP16_QUANT",
        parts=parts,
        rounding=learned,
    )


def _refuse_unfinished(
    observers: list[Observer], records: Mapping[str, LayerRecord], notes: list[CalibrationNote], record_file: str
) -> None:
    """Name the layers without activation factors, and what each of them waits for."""
    noted = {note.layer: note for note in notes}
    waiting = [
        o for o in observers if any(getattr(records.get(n), _factor_of(o), None) in (None, ()) for n in o.layers)
    ]
    waiting = waiting or [o for o in observers if any(n in noted for n in o.layers)]  # for moments of their inputs
    if not waiting:
        return
    failed = [note for note in notes if note.error]
    if failed:
        first = failed[0]
        others = f" (and {len(failed) - 1} more layers)" if len(failed) > 1 else ""
        raise RecordError(f'Calibration of layer "{first.layer}"{others} failed: {first.error}.')
    if not any(records.values()) or all(record.is_empty for record in records.values()):
        raise RecordError(
            f"{record_file}: record_file is empty, no layers to be quantized. "
            "Please ensure calibration is finished by checking information!"
        )
    layer = waiting[0].layers[0]
    seen, needed = noted[layer].seen if layer in noted else 0, waiting[0].batch_num
    names = list(dict.fromkeys(name for observer in waiting for name in observer.layers))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    field = _factor_of(waiting[0])
    raise RecordError(
        f"cannot find {field} of layer {layer} in record_file, please check data calibration process! "
        f"{seen} of {needed} batches have run for {record_file}; waiting for {needed - seen} more: {shown}. "
        f"All {needed} batches must run in one process."
    )


def _factor_of(observer: Observer) -> str:
    """The field of a record that an observer fills."""
    return {"weight": "scale_w", "initial_h": "scale_h"}.get(observer.stamp, "scale_d")


def _quantized_tensor(key: str, record: LayerRecord) -> QuantizedTensor:
    node, _, index = key.rpartition(":")
    return QuantizedTensor(node=node, input_index=int(index), activation=_activation_params(record))


def _quantized_layers(
    model: ir.Model,
    facts: GraphFacts,
    wanted: list[str],
    records: Mapping[str, LayerRecord],
    record_file: str,
) -> tuple[QuantizedLayer, ...]:
    order = {name: position for position, name in enumerate(facts.layers)}
    nodes = {node.name: node for node in model.graph}
    layers = []
    for name in sorted(wanted, key=lambda layer: order[layer]):
        record = records[name]
        activation = _activation_params(record)
        weight = None
        if facts.layers[name].has_weight:
            weight = _weight_params(record)
            _check_grid(nodes[name], weight, record_file)
            _check_levels(nodes[name], weight, record.cluster, record_file)
        second = _weight_params(record) if facts.layers[name].two_operands else None
        layers.append(QuantizedLayer(name=name, activation=activation, weight=weight, second=second))
    return tuple(layers)


def _bits(type_name: str | None) -> int:
    return int((type_name or "INT8").removeprefix("INT"))


def _activation_params(record: LayerRecord) -> QParams:
    spec = QSpec(bits=_bits(record.act_type), symmetric=False)
    scale, offset = cast(float, record.scale_d), record.offset_d or 0
    return QParams(scale=np.float32(scale), zero_point=np.int32(offset), spec=spec)


def _weight_params(record: LayerRecord) -> QParams:
    spec = weight_spec(_bits(record.wts_type), channel_wise=len(record.scale_w) > 1)
    scale = np.asarray(record.scale_w, np.float32)
    return QParams(scale=scale, zero_point=np.zeros(scale.shape, np.int32), spec=spec)


def _check_grid(node: ir.Node, params: QParams, record_file: str) -> None:
    """A record of another model, or an edited scale_w, does not reproduce the weights that calibration saw."""
    weight = constant_value(node.inputs[1])
    assert weight is not None  # remove_observers leaves the weights of quantize_model
    if not is_on_grid(weight_rows(weight, node), params):
        raise RecordError(
            f"{record_file}: scale_w of layer {node.name} does not fit the weights of the model. The record belongs to "
            "another model or was edited: run quantize_model and the calibration again."
        )


def _check_levels(node: ir.Node, params: QParams, cluster: tuple[int, ...], record_file: str) -> None:
    """The weights of a layer with `cluster` take its values only."""
    weight = constant_value(node.inputs[1])
    if not cluster or weight is None:
        return
    strange = np.setdiff1d(integer_weight(weight, node, params), cluster)
    if strange.size:
        raise RecordError(
            f"{record_file}: the weights of layer {node.name} take the value {strange[0]}, which its cluster lacks. "
            "The record belongs to another model or was edited: run quantize_model and the calibration again."
        )


def _fusion_ops(deploy: ir.Model, quantized: FactoredModel) -> list[FusionOp]:
    """One entry a node of the deploy model (spec section 7.7)."""
    owners = {layer_owner(layer, index): layer.name for layer in quantized.layers for index in (0, 1)}
    owners |= {tensor.owner: tensor.node for tensor in quantized.tensors}
    owners |= {output.node: output.node for output in quantized.outputs}
    makers = _makers(quantized)
    inside = (node for node in deploy.graph.all_nodes() if node.graph is not deploy.graph)
    nodes = [*deploy.graph, *(node for node in inside if _owner(node, owners) in quantized.parts)]
    return [_fusion_op(node, owners, quantized, makers) for node in nodes]


def _makers(quantized: FactoredModel) -> set[str]:
    """The nodes of the deploy model that make what a layer or a marked pair of the original made."""
    layers = {layer.name for layer in quantized.layers if f"{layer.name}.columns" not in quantized.origins}
    markers = (tensor.owner for tensor in quantized.tensors if tensor.marker)
    return {f"{name}.dequant" for name in layers} | {f"{owner}.anti_quant" for owner in markers}


def _owner(node: ir.Node, owners: Mapping[str, str]) -> str:
    """The layer or tensor that a node was made for, otherwise the node itself."""
    name = node.name or ""
    return owners.get(name.removesuffix(_SUFFIXES.get(node.op_type, "")), name)


def _fusion_op(node: ir.Node, owners: Mapping[str, str], quantized: FactoredModel, makers: Collection[str]) -> FusionOp:
    """`owners` maps the names that quantizing nodes begin with to the nodes that they serve."""
    name, origins, part = node.name or "", quantized.origins, _owner(node, owners)
    number = 0
    if part in quantized.parts:
        given = quantized.parts.get(name)
        originals, produces, number = origins[part], given is not None, given or 0
    elif (owner := owners.get(name.removesuffix(_SUFFIXES.get(node.op_type, "")))) is not None:
        originals, produces = origins.get(owner, (owner,)), name in makers
    else:
        originals, produces = origins.get(name, ()), name in origins
    return FusionOp(
        name=name,
        type=node.op_type,
        original_names=originals,
        output_of=originals[-1] if produces else None,
        output_index=number,
        data_type="DT_FLOAT16" if _gives_half(node) else "DT_FLOAT",
    )


def _gives_half(node: ir.Node) -> bool:
    if node.op_type == "AscendDequant":
        return node.attributes.get_int("dtype", 0) == 1
    return node.outputs[0].dtype == ir.DataType.FLOAT16
