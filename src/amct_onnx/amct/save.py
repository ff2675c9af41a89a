"""save_model, its first half: a calibrated model and its record become layers with all their factors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from amct_onnx.amct.adaround import finish_rounding
from amct_onnx.amct.balancing import check_balanced, refuse_failed
from amct_onnx.amct.calibration_model import FUSIONS_KEY
from amct_onnx.errors import ModelError, RecordError, listed
from amct_onnx.files.onnx_file import load_model
from amct_onnx.files.record import check_keys, check_record, read_calibration, read_notes, read_record
from amct_onnx.graph.access import name_of
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.instrument.observers import Observer, remove_observers
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.graph.weights import channel_rows
from amct_onnx.numerics.arrays import Int8s
from amct_onnx.numerics.rounding import is_on_grid
from amct_onnx.observe.calibration import finish
from amct_onnx.plan.ascend_layers import graph_facts
from amct_onnx.progress import Progress, show_on_terminal, silent
from amct_onnx.targets.ascend_model import AscendModel, write_ascend_files
from amct_onnx.targets.record_factors import quantized_layers, quantized_tensor
from amct_onnx.targets.recurrent_layers import split_recurrent
from amct_onnx.targets.to_integers import integer_weight
from amct_onnx.values.layers import CalibrationNote, LayerRecord, QuantizedLayer
from amct_onnx.values.observer_tasks import Balance


def save_model(modified_onnx_file: str, record_file: str, save_path: str) -> None:
    """Write `<save_path>_deploy_model.onnx`, `<save_path>_fake_quant_model.onnx` and `<save_path>_quant.json`.

    `save_path` is a folder and a prefix; without a prefix the files are named deploy_model.onnx and so on
    (amct_formats.md: save_model). It may run in another process than the calibration.

    Raises TypeError or ValueError for wrong arguments, files or factors, RuntimeError when calibration is not finished
    or the record does not belong to the model, OSError when a result cannot be written.
    """
    write_ascend_files(read_calibrated(modified_onnx_file, record_file, progress=show_on_terminal), save_path)


def read_calibrated(modified_onnx_file: str, record_file: str, *, progress: Progress = silent) -> AscendModel:
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
    nodes = {name_of(node): node.op_type for node in model.graph.all_nodes()}
    expected = dict.fromkeys(key for observer in observers for key in observer.layers)
    check_keys(records, nodes, path=record_file, layers=expected)
    _refuse_unfinished(observers, records, read_notes(record_file), record_file)
    return assemble(model, observers, records, record_file, progress=progress)


def assemble(
    model: ir.Model,
    observers: Sequence[Observer],
    records: Mapping[str, LayerRecord],
    record_file: str,
    *,
    rounding: Mapping[str, Int8s] | None = None,
    progress: Progress = silent,
) -> AscendModel:
    """The layers of `observers`, taken out of the calibration model `model`, with their factors of `record_file`.

    `rounding`: that of a model of the same calibration, so that none is learned again. Raises RecordError when the
    factors are out of range or belong to another model, or the moments for rounding to be learned from are missing.
    """
    facts = graph_facts(model)
    check_record(records, facts, path=record_file)
    origins = {k: tuple(v) for k, v in json.loads(model.metadata_props.pop(FUSIONS_KEY, "{}")).items()}
    keys = dict.fromkeys(key for observer in observers if observer.stamp == "data" for key in observer.layers)
    tensors = [key for key in keys if records[key].is_tensor_quantize]
    layers = [key for key in keys if not records[key].is_tensor_quantize]
    check_balanced(model, layers, records, record_file)
    recurrent = [layer for layer in layers if facts.layers[layer].op_type in RECURRENT_OPS]
    plain = [layer for layer in layers if layer not in recurrent]
    quantized = quantized_layers(facts, records, plain)
    _check_weights(model, quantized, records, record_file)
    learned = finish_rounding(model, observers, quantized, record_file, rounding, progress)
    halves, decomposed = split_recurrent(model, records, recurrent, record_file)
    parts = {name: number for whole in decomposed for name, number in whole.nodes.items()}
    origins |= {name: origins.get(whole.layer, (whole.layer,)) for whole in decomposed for name in whole.nodes}
    return AscendModel(
        model=model,
        layers=(*quantized, *halves),
        origins=origins,
        tensors=tuple(quantized_tensor(key, records[key]) for key in tensors),
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
    refuse_failed(notes, "Calibration")
    if not any(records.values()) or all(record.is_empty for record in records.values()):
        raise RecordError(
            f"{record_file}: record_file is empty, no layers to be quantized. "
            "Please ensure calibration is finished by checking information!"
        )
    layer = waiting[0].layers[0]
    seen, needed = noted[layer].seen if layer in noted else 0, waiting[0].batch_num
    names = list(dict.fromkeys(name for observer in waiting for name in observer.layers))
    field = _factor_of(waiting[0])
    raise RecordError(
        f"cannot find {field} of layer {layer} in record_file, please check data calibration process! "
        f"{seen} of {needed} batches have run for {record_file}; waiting for {needed - seen} more: {listed(names, 5)}. "
        f"All {needed} batches must run in one process."
    )


def _factor_of(observer: Observer) -> str:
    """The field of a record that an observer fills."""
    return {"weight": "scale_w", "initial_h": "scale_h"}.get(observer.stamp, "scale_d")


def _check_weights(
    model: ir.Model, layers: Sequence[QuantizedLayer], records: Mapping[str, LayerRecord], record_file: str
) -> None:
    """A record of another model, or an edited one, does not reproduce the weights that calibration saw.

    Weights are on the grid of the record, and those of a layer with `cluster` take its values only.
    """
    index = index_graph(model)
    for layer in layers:
        if layer.weight is None:
            continue
        view, cluster = index.layer(layer.name), records[layer.name].cluster
        wrong = ""
        if not is_on_grid(channel_rows(view.array(), view.node), layer.weight):
            wrong = f"scale_w of layer {layer.name} does not fit the weights of the model"
        elif cluster:
            strange = np.setdiff1d(integer_weight(view.weight, view.node, layer.weight), np.array(cluster))
            if strange.size:
                wrong = f"the weights of layer {layer.name} take the value {strange[0]}, which its cluster lacks"
        if wrong:
            raise RecordError(
                f"{record_file}: {wrong}. The record belongs to another model or was edited: run quantize_model and "
                "the calibration again."
            )
