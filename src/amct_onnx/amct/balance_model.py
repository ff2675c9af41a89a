"""quantize_preprocess: the model that finds the balance factors of DMQ (amct_formats.md: quantize_preprocess, DMQ)."""

from __future__ import annotations

import os

from amct_onnx.amct.balancing import balance_tasks, balanced_layers, balancing_id
from amct_onnx.amct.calibration_model import CalibrationModel
from amct_onnx.errors import ModelError
from amct_onnx.files.config_json import read_config
from amct_onnx.graph.instrument.observers import Observer, insert_observers
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.plan.ascend_layers import decide_layers
from amct_onnx.plan.float_model import FloatModel


def quantize_preprocess(config_file: str, record_file: str, model_file: str, modified_onnx_file: str) -> None:
    """Write the model that finds balance factors (DMQ), and an empty record for them
    (amct_formats.md: quantize_preprocess).

    For a configuration with `dmq_balancer_param`. Run `modified_onnx_file` with `AMCT_SO` for at least one batch next:
    the factors are those of the largest magnitudes over all batches that run, and stand in `record_file` after the
    first. Then call quantize_model with the same record file. Mind the order of the arguments. Existing files are
    overwritten.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError when no layer is to be balanced, OSError
    when a result cannot be written.
    """
    source = FloatModel.open(model_file)
    facts = source.facts
    settings = read_config(config_file, facts)
    layers = [decision.layer for decision in decide_layers(facts, settings) if decision.quantized]
    wanted = balanced_layers(layers, settings)
    if not wanted:
        raise ModelError(
            "No dmq_balancer layer in quant config file, please check the quant config file: "
            f"{config_file} has no enabled layer with dmq_balancer_param. Create it from a simplified configuration "
            "with dmq_balancer, or call quantize_model directly."
        )
    fused = source.fuse(settings)
    model = fused.model
    normalize_layers(model, frozenset(wanted))
    tasks = balance_tasks(model, wanted, settings)
    calibration = balancing_id(tasks)
    observers = [
        Observer(
            layers=(layer,),
            task=task,
            batch_num=0,
            record_path=os.path.realpath(record_file),
            observers=len(tasks),
            calibration=calibration,
            op_data_type="FLOAT16" if facts.layers[layer].half else "FLOAT32",
        )
        for layer, task in tasks.items()
    ]
    insert_observers(model, observers)
    made = CalibrationModel(model=model, records={}, calibration=calibration, notes=fused.notes)
    made.write(modified_onnx_file, record_file)
