"""The first half of the job: a configuration for a model, then the model with observers (spec sections 1.3, 1.4)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from amct_onnx.amct.adaround import prepare_rounding
from amct_onnx.amct.balancing import read_balancing
from amct_onnx.amct.recurrent import quantize_recurrent
from amct_onnx.errors import ConfigError, ModelError
from amct_onnx.files.config_json import default_settings, format_config, read_config
from amct_onnx.files.config_text import read_cfg
from amct_onnx.files.onnx_file import check_opset, load_model, save_model_file
from amct_onnx.files.record import format_record
from amct_onnx.files.whole_files import atomic_path
from amct_onnx.graph.constants import ValueNames, constant_tensor, constant_value, lift_ir3, own_constant
from amct_onnx.graph.instrument.observers import Observer, insert_observers
from amct_onnx.graph.layers import quantized_nodes
from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.passes.balance import balance_layers
from amct_onnx.graph.passes.fuse_affine import fuse_affine_into_batch_norm
from amct_onnx.graph.passes.fuse_batch_norm import fuse_batch_norm_into_conv
from amct_onnx.graph.passes.fusion import original_nodes
from amct_onnx.graph.passes.normalize_layers import normalize_layers
from amct_onnx.graph.read.read_qdq import has_qdq
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.graph.tensors import array_of
from amct_onnx.graph.weights import fake_quantized, weight_rows
from amct_onnx.numerics.im2col import LayerColumns
from amct_onnx.numerics.rounding import fake_quantize
from amct_onnx.numerics.settings import AdaRound, LayerSettings, Nuq, Settings
from amct_onnx.numerics.weights.adaround import solve_scale
from amct_onnx.numerics.weights.arq import solve_arq
from amct_onnx.numerics.weights.nuq import cluster_levels
from amct_onnx.observe.calibration import begin
from amct_onnx.plan.ascend_layers import check_tensors, decide, graph_facts, make_plan
from amct_onnx.targets.to_integers import weight_spec
from amct_onnx.values.ascend_table import ASCEND
from amct_onnx.values.layers import GraphFacts, LayerRecord, QuantPlan

FUSIONS_KEY = "amct_onnx.fusions"
SIMULATED_KEY = "amct_onnx.fake_quant"  # the layers of a fake-quant model, whose operators do not show that it is one
_SHOWN_LAYERS = 5
_DIGEST_LIMIT = 1 << 16
_log = logging.getLogger("amct_onnx.Config")


@dataclass(frozen=True, kw_only=True)
class ConfigRequest:
    """The arguments of `create_quant_config`."""

    config_file: str
    model_file: str
    skip_layers: Sequence[str]
    batch_num: int
    activation_offset: bool
    config_defination: str | None
    updated_model: str | None


def create_config(request: ConfigRequest) -> None:
    """Write the configuration of a model, and the model with its nodes named when that is asked for."""
    model = load_float_model(request.model_file)
    facts = graph_facts(model, ASCEND)
    if request.config_defination is not None:
        if request.skip_layers:
            _log.warning("skip_layers is ignored, since config_defination is given.")
        settings = read_cfg(request.config_defination, facts)
    else:
        settings = default_settings(
            facts,
            skip_layers=request.skip_layers,
            batch_num=request.batch_num,
            activation_offset=request.activation_offset,
        )
    check_tensors(model, facts, settings)
    _report_products(facts, settings)
    _report_float(facts)
    with atomic_path(request.config_file) as file:  # moved into place when the model is written too
        file.write_bytes(format_config(settings, facts).encode())
        if request.updated_model is not None:
            save_model_file(model, request.updated_model)
    _log.info("Generate config file:%s success!", request.config_file)


def _report_products(facts: GraphFacts, settings: Settings) -> None:
    """config.json has no comments: the log says why these layers are off."""
    products = [name for name, traits in facts.supported.items() if traits.two_operands]
    off = [name for name in products if not settings.layers[name].quant_enable]
    if off:
        _log.info(
            "%d MatMul layers multiply two activations (first: %s) and stay in float: quantizing them costs accuracy "
            "and pays on few chips. Set quant_enable to true in the config file for those to be quantized.",
            len(off),
            off[0],
        )


def _report_float(facts: GraphFacts) -> None:
    """config.json does not name these layers: the log says why."""
    left = {name: traits.reason for name, traits in facts.layers.items() if traits.reason is not None}
    if left:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:_SHOWN_LAYERS])
        more = f"; and {len(left) - _SHOWN_LAYERS} more" if len(left) > _SHOWN_LAYERS else ""
        text = "%d of %d layers cannot be quantized, and stay in float: %s%s."
        _log.info(text, len(left), len(facts.layers), shown, more)


def load_float_model(path: str) -> ir.Model:
    """A model that can be quantized, every node named. Raises ModelError for one that is quantized already."""
    model = load_model(path)
    make_ready(model, path)
    return model


def make_ready(model: ir.Model, path: str) -> None:
    """Name the nodes of a float model that is called `path` in messages, in place. Raises like `load_float_model`."""
    check_opset(model, path)
    lift_ir3(model)
    name_nodes(model)
    found = [f"{node.op_type} {node.name}" for node in quantized_nodes(model)]
    found = found or json.loads(model.metadata_props.get(SIMULATED_KEY, "[]"))
    if found:
        names = ", ".join(found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        advice = "Start from the float model"
        if has_qdq(model):
            advice += ", or turn a model that was trained with quantization nodes by convert_qat_model"
        raise ModelError(
            f"The model cannot be quantized for following quant layers are in the model {path}: {names}{more}. "
            f"{advice}."
        )


def prepare_calibration(config_file: str, model_file: str, modified_onnx_file: str, record_file: str) -> None:
    """Fuse, quantize weights, attach observers; write the calibration model and the record of the weights."""
    model = load_float_model(model_file)
    facts = graph_facts(model, ASCEND)
    settings = read_config(config_file, facts)
    record_path = os.path.realpath(record_file)
    record = prepare_model(model, facts, settings, record_file)
    with atomic_path(record_path) as file:  # moved into place when the model is written too
        file.write_bytes(record.encode())
        save_model_file(model, modified_onnx_file)
    begin(record_path)


def prepare_model(model: ir.Model, facts: GraphFacts, settings: Settings, record_file: str) -> str:
    """Turn `model`, of which `facts` are, into a calibration model, in place; the text for its `record_file`.

    What is in that file already gives the balance factors, if the configuration asks for some.
    """
    records, calibration = prepare_records(model, facts, settings, record_file)
    return format_record(records, calibration=calibration)


def prepare_records(
    model: ir.Model, facts: GraphFacts, settings: Settings, record_file: str
) -> tuple[dict[str, LayerRecord], str]:
    """`prepare_model`, with what goes into the record instead of its text: factors, and the id of the calibration."""
    decisions = decide(facts, settings)
    check_tensors(model, facts, settings)
    layers = [decision.layer for decision in decisions if decision.quantized]
    if settings.do_fusion:
        fuse_model(model, settings)
        _refuse_fused_tensors(model, settings)
    balancing = read_balancing(record_file, model, facts, layers, settings)
    normalize_layers(model, frozenset(layers))
    balance_layers(model, balancing.arrays())
    plan = make_plan(model, ASCEND, decisions, settings)
    columns = prepare_rounding(model, plan)
    records = balancing.keep(_quantize_weights(model, plan, facts))
    text = format_record(records) if record_file else ""  # which takes time, and tells calibrations of files apart
    calibration = balancing.extend_id(_calibration_id(model, settings, text))
    insert_observers(model, _observers(plan, columns, settings, os.path.realpath(record_file), calibration, facts))
    return records, calibration


def fuse_model(model: ir.Model, settings: Settings) -> None:
    """Fuse what `settings` allow, in place, and note the original nodes in the model."""
    skip = frozenset(settings.skip_fusion_layers)
    affine = fuse_affine_into_batch_norm(model, skip=skip)
    batch_norm = fuse_batch_norm_into_conv(model, skip=skip)
    for skipped in batch_norm.skipped:
        if "finite" in skipped.reason:
            _log.warning("%s is not fused: %s", skipped.node, skipped.reason)
    origins = original_nodes((*affine.fused, *batch_norm.fused))
    model.metadata_props[FUSIONS_KEY] = json.dumps(origins, ensure_ascii=False)


def _refuse_fused_tensors(model: ir.Model, settings: Settings) -> None:
    left = {node.name for node in model.graph}
    fused = [tensor.key for tensor in settings.tensor_quantize if tensor.layer_name not in left]
    if fused:
        raise ConfigError(
            f"tensor_quantize names nodes that are fused into a BatchNormalization: {', '.join(fused)}. Remove the "
            "entries, or name the BatchNormalization or its convolution in skip_fusion_layers."
        )


def _quantize_weights(model: ir.Model, plan: QuantPlan, facts: GraphFacts) -> dict[str, LayerRecord]:
    """Replace weights by their fake-quantized values, so that calibration sees the error of the weights."""
    names, nodes = ValueNames(model), {node.name: node for node in model.graph}
    records: dict[str, LayerRecord] = {}
    vanished: dict[str, int] = {}
    for layer in plan.layers:
        entry = plan.settings[layer]
        if facts.layers[layer].two_operands:
            records[layer] = LayerRecord(act_type=f"INT{entry.activation.num_bits}")
            continue
        if not facts.layers[layer].has_weight:
            records[layer] = LayerRecord(act_type=f"INT{entry.activation.num_bits}", scale_w=(1.0,), offset_w=(0,))
            continue
        solve = quantize_recurrent if nodes[layer].op_type in RECURRENT_OPS else _quantize_weight
        records[layer], lost = solve(nodes[layer], entry, names)
        if lost:
            vanished[layer] = lost
    for key, tensor in plan.tensors.items():
        records[key] = LayerRecord(is_tensor_quantize=True, act_type=f"INT{tensor.activation.num_bits}")
    if vanished:
        first = next(iter(vanished))
        text = "%d channels in %d layers (first: %s) have weights so small that int8 makes them 0, as AMCT does."
        _log.warning(text, sum(vanished.values()), len(vanished), first)
    return records


def _quantize_weight(node: ir.Node, entry: LayerSettings, names: ValueNames) -> tuple[LayerRecord, int]:
    """The record of a layer's weight, and how many of its channels are not zero and become zero."""
    weight = constant_tensor(node.inputs[1])
    assert weight is not None  # a planned layer's weight is constant
    spec = weight_spec(entry.weight.num_bits, channel_wise=entry.weight.channel_wise)
    rows = weight_rows(array_of(weight), node)
    try:
        params = (solve_scale if isinstance(entry.weight.solver, AdaRound) else solve_arq)(rows, spec)
    except ValueError as error:
        raise ModelError(f'Layer "{node.name}": {error}. Correct the model or add the layer to skip_layers.') from error
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    if bias is not None and not np.isfinite(bias).all():
        text = "the bias holds NaN or Inf. Correct the model or add the layer to skip_layers."
        raise ModelError(f'Layer "{node.name}": {text}')
    extremes = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True))
    lost = int(((extremes > 0) & (fake_quantize(extremes, params) == 0)).sum())
    solver = entry.weight.solver
    cluster = cluster_levels(rows, params, solver) if isinstance(solver, Nuq) else ()
    own_constant(node, 1, fake_quantized(weight, node, params, levels=cluster), f"{node.name}.weight", names=names)
    record = LayerRecord(
        scale_w=tuple(float(s) for s in params.scale),
        offset_w=(0,) * params.scale.size,
        wts_type=f"INT{entry.weight.num_bits}",
        cluster=cluster,
    )
    return record, lost


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
    count = len(plan.observed) + len(columns)
    factors = [
        Observer(
            layers=tensor.keys,
            task=tensor.activation,
            batch_num=settings.batch_num,
            record_path=record_path,
            observers=count,
            calibration=calibration,
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
        Observer(
            layers=(layer,),
            task=task,
            batch_num=settings.batch_num,
            record_path=record_path,
            observers=count,
            calibration=calibration,
            op_data_type="FLOAT16" if layer in half else "FLOAT32",
        )
        for layer, task in columns.items()
    ]
    return factors + moments
