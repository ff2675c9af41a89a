"""quantize_model: the model that calibrates itself when it runs, and the record of what is known before it has run.

The float model is fused, its weights are rounded, and observers are attached to the tensors that need a scale.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from amct_onnx.amct.adaround import prepare_rounding
from amct_onnx.amct.balancing import read_balancing
from amct_onnx.files.config_json import read_config
from amct_onnx.files.onnx_file import save_model_file
from amct_onnx.files.record import format_record
from amct_onnx.files.whole_files import atomic_path
from amct_onnx.graph.instrument.observers import Observer, insert_observers
from amct_onnx.graph.passes.balance import balance_layers
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.numerics.settings import Settings
from amct_onnx.observe.calibration import begin
from amct_onnx.plan.ascend_layers import check_tensors, decide_layers, plan_ascend, refuse_fused_tensors
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.targets.ascend_weights import quantize_weights
from amct_onnx.values.layers import GraphFacts, LayerRecord, QuantPlan

FUSIONS_KEY = "amct_onnx.fusions"  # metadata of the calibration model: which nodes each fused node stands for
_DIGEST_LIMIT = 1 << 16
_log = logging.getLogger("amct_onnx.Config")


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationModel:
    """A model with observers, and what goes into its record before it has run.

    records: the factors of weights, and balance factors. calibration: the id of the call that made it. notes: what the
    user should know, as sentences.
    """

    model: ir.Model
    records: Mapping[str, LayerRecord]
    calibration: str
    notes: tuple[str, ...]

    def write(self, modified_onnx_file: str, record_file: str) -> None:
        """Tell the notes, write model and record, and forget what ran for that record before."""
        for note in self.notes:
            _log.warning("%s", note)
        record_path = os.path.realpath(record_file)
        with atomic_path(record_path) as file:  # moved into place when the model is written too
            file.write_bytes(format_record(self.records, calibration=self.calibration).encode())
            save_model_file(self.model, modified_onnx_file)
        begin(record_path)


def quantize_model(config_file: str, model_file: str, modified_onnx_file: str, record_file: str) -> None:
    """Write the calibration model and a record with the factors of the weights (amct_formats.md: quantize_model).

    Run `modified_onnx_file` with `AMCT_SO` for batch_num batches next; each completes the statistics of its tensors,
    and the last one completes `record_file`. Existing files are overwritten; only if the configuration has
    `dmq_balancer_param`, the record must be that of quantize_preprocess, and its balance factors are kept.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError when nothing is left to quantize, a weight
    cannot be quantized or balance factors are missing, OSError when a result cannot be written.
    """
    source = FloatModel.open(model_file)
    settings = read_config(config_file, source.facts)
    make_calibration_model(source, settings, record_file).write(modified_onnx_file, record_file)


def make_calibration_model(source: FloatModel, settings: Settings, record_file: str) -> CalibrationModel:
    """The calibration model of a float model, which reports to `record_file`.

    What is in that file already gives the balance factors, if the configuration asks for some. Raises ConfigError,
    ModelError, RecordError.
    """
    decisions = decide_layers(source.facts, settings)
    check_tensors(source.model, source.facts, settings)
    layers = [decision.layer for decision in decisions if decision.quantized]
    fused = source.fuse(settings)
    model = fused.model  # which nobody else holds
    if fused.origins is not None:
        model.metadata_props[FUSIONS_KEY] = json.dumps(fused.origins, ensure_ascii=False)
    refuse_fused_tensors(model, settings)
    balancing = read_balancing(record_file, model, source.facts, layers, settings)
    normalize_layers(model, frozenset(layers))
    balance_layers(model, balancing.arrays())
    plan = plan_ascend(model, decisions, settings)
    columns = prepare_rounding(model, plan)
    weights = quantize_weights(model, plan, source.facts)
    records = balancing.keep(weights.records)
    calibration = balancing.extend_id(_calibration_id(model, settings, format_record(records)))
    insert_observers(
        model, _observers(plan, columns, settings, os.path.realpath(record_file), calibration, source.facts)
    )
    return CalibrationModel(
        model=model,
        records=records,
        calibration=calibration,
        notes=(*fused.notes, *balancing.notes, *plan.notes, *weights.notes),
    )


def _calibration_id(model: ir.Model, settings: Settings, record: str) -> str:
    """16 hex digits that tell this call's model and settings from others: a digest, so that it is reproducible.

    Weights of more than _DIGEST_LIMIT bytes count by their scales in the record, so that a large model stays on disk.
    """
    digest = hashlib.blake2b(f"{settings!r}{record}".encode(), digest_size=8)
    for node in model.graph:
        digest.update(f"{node.op_type} {node.name} {[value and value.name for value in node.inputs]}".encode())
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= _DIGEST_LIMIT:
            digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


def _observers(
    plan: QuantPlan,
    columns: Mapping[str, LayerColumns],
    settings: Settings,
    record_path: str,
    calibration: str,
    facts: GraphFacts,
) -> list[Observer]:
    """One for each observed tensor, and one more for each layer whose rounding is learned."""
    members = Counter(tensor.joint for tensor in plan.observed if tensor.joint)
    half = {name for name, traits in facts.layers.items() if traits.half}
    observer = partial(
        Observer,
        batch_num=settings.batch_num,
        record_path=record_path,
        observers=len(plan.observed) + len(columns),
        calibration=calibration,
    )
    factors = [
        observer(
            layers=tensor.keys,
            task=tensor.activation,
            stamp=tensor.stamp,
            input_index=tensor.input_index,
            op_data_type="FLOAT32" if half.isdisjoint(tensor.keys) else "FLOAT16",
            precision_mode=settings.fakequant_precision_mode or "DEFAULT",
            joint=tensor.joint,
            members=members.get(tensor.joint, 1),
            node=tensor.node,
        )
        for tensor in plan.observed
    ]
    moments = [
        observer(layers=(layer,), task=task, op_data_type="FLOAT16" if layer in half else "FLOAT32")
        for layer, task in columns.items()
    ]
    return factors + moments
