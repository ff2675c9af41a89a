"""A model with the factors of its layers: what both files for Ascend are lowered from, and the files themselves.

The deploy model and the fake-quant model are lowered from the same layers and factors, so what is simulated is what is
deployed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from amct_onnx.files.fusion_json import FusionOp, write_fusion
from amct_onnx.files.onnx_file import is_source, save_model_file
from amct_onnx.graph.access import name_of
from amct_onnx.graph.passes.balance import constant_first
from amct_onnx.numerics.arrays import Int8s
from amct_onnx.plan.float_model import SIMULATED_KEY
from amct_onnx.targets.ascend_dialect import AscendDialect
from amct_onnx.targets.simulation_dialect import SimulationDialect
from amct_onnx.targets.to_integers import layer_owner, lower
from amct_onnx.values.layers import QuantizedLayer, QuantizedOutput, QuantizedTensor

_log = logging.getLogger("amct_onnx.Utils")
_SUFFIXES = {"AscendQuant": ".quant", "AscendDequant": ".dequant", "AscendAntiQuant": ".anti_quant", "Mul": ".mul"}


@dataclass(frozen=True, kw_only=True)
class AscendModel:
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
    rounding: Mapping[str, Int8s] = field(default_factory=dict)

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


def write_ascend_files(quantized: AscendModel, save_path: str) -> tuple[str, ...]:
    """Write all files of a quantized model (amct_formats.md: save_model), and return their paths."""
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


def _fusion_ops(deploy: ir.Model, quantized: AscendModel) -> list[FusionOp]:
    """One entry a node of the deploy model (amct_formats.md: quant.json)."""
    owners = {layer_owner(layer, index): layer.name for layer in quantized.layers for index in (0, 1)}
    owners |= {tensor.owner: tensor.node for tensor in quantized.tensors}
    owners |= {output.node: output.node for output in quantized.outputs}
    makers = _makers(quantized)
    inside = (node for node in deploy.graph.all_nodes() if node.graph is not deploy.graph)
    nodes = [*deploy.graph, *(node for node in inside if (_owner(node, owners) or node.name) in quantized.parts)]
    return [_fusion_op(node, owners, quantized, makers) for node in nodes]


def _makers(quantized: AscendModel) -> set[str]:
    """The nodes of the deploy model that make what a layer or a marked pair of the original made."""
    layers = {layer.name for layer in quantized.layers if f"{layer.name}.columns" not in quantized.origins}
    markers = (tensor.owner for tensor in quantized.tensors if tensor.marker)
    return {f"{name}.dequant" for name in layers} | {f"{owner}.anti_quant" for owner in markers}


def _owner(node: ir.Node, owners: Mapping[str, str]) -> str | None:
    """The layer or tensor that a node was made for, None for a node of the original model."""
    return owners.get(name_of(node).removesuffix(_SUFFIXES.get(node.op_type, "")))


def _fusion_op(node: ir.Node, owners: Mapping[str, str], quantized: AscendModel, makers: Collection[str]) -> FusionOp:
    """`owners` maps the names that quantizing nodes begin with to the nodes that they serve."""
    name, origins, owner, number = name_of(node), quantized.origins, _owner(node, owners), 0
    if (part := owner or name) in quantized.parts:
        given = quantized.parts.get(name)
        originals, produces, number = origins[part], given is not None, given or 0
    elif owner is not None:
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
