"""From a model with QuantizeLinear nodes to the files that are deployed (amct_formats.md: QAT conversion)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from amct_onnx.errors import ModelError, listed
from amct_onnx.files.onnx_file import check_opset, load_model
from amct_onnx.files.record import format_record
from amct_onnx.files.whole_files import atomic_path
from amct_onnx.graph.constants import lift_ir3
from amct_onnx.graph.index import index_graph
from amct_onnx.graph.layers import quantized_nodes
from amct_onnx.graph.naming import name_nodes
from amct_onnx.graph.read.read_qdq import has_qdq, read_qdq
from amct_onnx.plan.float_model import SIMULATED_KEY
from amct_onnx.targets.ascend_model import AscendModel, write_ascend_files
from amct_onnx.targets.to_integers import integer_bias
from amct_onnx.values.ascend_table import ASCEND
from amct_onnx.values.layers import Kept, LayerRecord, QuantizedLayer

_log = logging.getLogger("amct_onnx.Convert")
_MAXIMUM_REASONS, _SHOWN_IN_ERROR = 20, 3
_RECORDED_TENSORS = ("Add", "MaxPool")
_QDQ_FAMILY = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def convert_qat_model(model_file: str, save_path: str, record_file: str | None = None) -> None:
    """Write the files of `save_model` for a model with QuantizeLinear and DequantizeLinear
    (amct_formats.md: convert_qat_model, QAT conversion).

    A layer whose activation and weight are both quantized to int8 or uint8 keeps its integers and its scales. Other
    quantized tensors stay quantized; what has no int8 form stays as it is, and the log counts it by reason (at level
    DEBUG each node). `record_file`: where to write the factors, nowhere if None.

    Raises TypeError or ValueError for wrong arguments or files, RuntimeError for a model without such nodes or one that
    AMCT made, OSError when a result cannot be written.
    """
    quantized, kept = read_qat_model(model_file)
    _log_summary(quantized, kept)
    if record_file is None:
        write_ascend_files(quantized, save_path)
        return
    if os.path.exists(record_file):
        _log.warning("The file already exists at %s and it will be overwritten by AMCT", record_file)
    with atomic_path(record_file) as file:  # moved into place when the models are written too
        file.write_text(format_record(_records(quantized)), encoding="utf-8")
        write_ascend_files(quantized, save_path)


def read_qat_model(model_file: str) -> tuple[AscendModel, tuple[Kept, ...]]:
    """The model of a file with its factors, and what could not be converted. Raises ModelError."""
    model = load_model(model_file)
    _refuse_others(model, model_file)
    check_opset(model, model_file)
    if model.functions:
        InlinePass()(model)
    lift_ir3(model)
    name_nodes(model)
    reading = read_qdq(model, ASCEND.judge, _why_not)
    if not (reading.layers or reading.tensors or reading.outputs):
        reasons = "; ".join(_reasons(reading.kept)[:_SHOWN_IN_ERROR]) or "its quantization nodes reach no layer"
        raise ModelError(f"Nothing in {model_file} can be converted: {reasons}.")
    origins = {**reading.origins, **{mul: (layer,) for layer, mul in reading.rescaled.items()}}
    quantized = AscendModel(
        model=model, layers=reading.layers, tensors=reading.tensors, outputs=reading.outputs, origins=origins
    )
    return quantized, reading.kept


def _refuse_others(model: ir.Model, path: str) -> None:
    """Raise ModelError for models that are quantized in another way, or not at all."""
    if SIMULATED_KEY in model.metadata_props:
        raise ModelError(f"{path} is a fake-quant model of amct_onnx: convert the Q/DQ model that training exported.")
    others = [node for node in quantized_nodes(model) if node.op_type not in _QDQ_FAMILY]
    ours = [node for node in others if node.op_type.startswith("Ascend") or node.domain]
    if ours:
        kind = "deploy" if ours[0].op_type.startswith("Ascend") else "calibration"
        raise ModelError(
            f"{path} is a {kind} model of AMCT already (it has {ours[0].op_type} {ours[0].name}): "
            "convert the Q/DQ model that training exported."
        )
    if not has_qdq(model):
        if others:
            raise ModelError(
                f"{path} holds integer operators ({others[0].op_type} {others[0].name}) and no QuantizeLinear or "
                "DequantizeLinear: export it in the Q/DQ format."
            )
        raise ModelError(
            f"{path} has no QuantizeLinear or DequantizeLinear: convert_qat_model takes models with quantization nodes "
            "(Q/DQ). Quantize a float model with create_quant_config and quantize_model."
        )


def _why_not(node: ir.Node, layer: QuantizedLayer) -> str | None:
    try:
        integer_bias(node, layer)
    except ModelError:
        return "its int32 bias or sums would leave the range of int32"
    return None


def _reasons(kept: Sequence[Kept]) -> list[str]:
    """One clause a reason: how many nodes it concerns, and the first of them."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for entry in kept:
        grouped.setdefault((entry.op_type, entry.reason), []).append(entry.name)
    clauses = []
    for (op_type, reason), names in grouped.items():
        clauses.append(f"{len(names)} {op_type} ({listed(names, 3)}): {reason}")
    return clauses


def _log_summary(quantized: AscendModel, kept: Sequence[Kept]) -> None:
    counts = len(quantized.layers), len(quantized.tensors), len(quantized.outputs)
    _log.info("Converted %d layers, %d other tensors and %d int8 outputs of the Q/DQ model.", *counts)
    clauses = _reasons(kept)
    for clause in clauses[:_MAXIMUM_REASONS]:
        _log.warning("Not converted, %s.", clause)
    if len(clauses) > _MAXIMUM_REASONS:
        _log.warning("Not converted for %d other reasons: see level DEBUG.", len(clauses) - _MAXIMUM_REASONS)
    for entry in kept:
        _log.debug("Not converted: %s %s: %s.", entry.op_type, entry.name, entry.reason)


def _records(quantized: AscendModel) -> dict[str, LayerRecord]:
    """The factors as save_model reads them; those of tensors where AMCT's record has a place: Add and MaxPool."""
    records: dict[str, LayerRecord] = {}
    for layer in quantized.layers:
        weight = layer.weight or layer.second
        records[layer.name] = LayerRecord(
            scale_d=float(layer.activation.scale[0]),
            offset_d=int(layer.activation.zero_point[0]),
            scale_w=(1.0,) if weight is None else tuple(float(scale) for scale in weight.scale),
            offset_w=(0,) * (1 if weight is None else weight.scale.size),
            act_type="INT8",
            wts_type=None if layer.weight is None else "INT8",
            op_data_type="FLOAT32",
        )
    nodes = index_graph(quantized.model).nodes
    for tensor in quantized.tensors:
        for use in nodes[tensor.node].outputs[0].uses():
            if use.node.op_type in _RECORDED_TENSORS and use.node.graph is quantized.model.graph:
                records[f"{use.node.name}:{use.idx}"] = LayerRecord(
                    scale_d=float(tensor.activation.scale[0]),
                    offset_d=int(tensor.activation.zero_point[0]),
                    is_tensor_quantize=True,
                    act_type="INT8",
                    op_data_type="FLOAT32",
                )
    return records
