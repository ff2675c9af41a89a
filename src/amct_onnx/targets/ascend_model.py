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
from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.graph.access import name_of
from amct_onnx.graph.passes.balance import balancing_mul, constant_first
from amct_onnx.graph.passes.share_weights import share_weights
from amct_onnx.numerics.arrays import Int8s
from amct_onnx.plan.float_model import SIMULATED_KEY
from amct_onnx.targets.ascend_dialect import AscendDialect
from amct_onnx.targets.simulation_dialect import SimulationDialect
from amct_onnx.targets.to_integers import lower
from amct_onnx.values.layers import QuantizedLayer, QuantizedOutput, QuantizedTensor

_log = logging.getLogger("amct_onnx.Utils")


@dataclass(frozen=True, kw_only=True)
class AscendModel(HoldsGraphs):
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
        return self.deployed()[0]

    def deployed(self) -> tuple[ir.Model, dict[str, str]]:
        """The same, and for each node that serves a layer, a tensor or an output, the node that it serves."""
        model = self.model.clone()
        dialect = AscendDialect(model, half=self.half)
        return model, lower(model, self.layers, dialect, tensors=self.tensors, outputs=self.outputs)

    def simulation(self) -> ir.Model:
        """A new model of standard operators that computes what `deploy()` computes."""
        model = self.model.clone()
        constant_first(model, {layer.name for layer in self.layers})
        dialect = SimulationDialect(model, half=self.half)
        lower(model, self.layers, dialect, tensors=self.tensors, outputs=self.outputs)
        model.metadata_props[SIMULATED_KEY] = json.dumps(self.names, ensure_ascii=False)
        return model


def ascend_files(save_path: str) -> tuple[str, ...]:
    """The files of `write_ascend_files`: deploy model, fake-quant model and quant.json."""
    folder, prefix = os.path.split(save_path)
    stem = os.path.join(folder, f"{prefix}_" if prefix else "")
    return f"{stem}deploy_model.onnx", f"{stem}fake_quant_model.onnx", f"{stem}quant.json"


def write_ascend_files(quantized: AscendModel, save_path: str, *, shared: bool = False) -> tuple[str, ...]:
    """Write all files of a quantized model (amct_formats.md: save_model), and return their paths.

    shared: a weight that several layers read is in a file once; AMCT's files have it for each of them.
    """
    paths, prefix = ascend_files(save_path), os.path.basename(save_path)
    deploy, served = quantized.deployed()
    files = {paths[0]: deploy, paths[1]: quantized.simulation()}
    for model in files.values() if shared else ():
        share_weights(model)
    # Weights of both may still be in the files of the calibrated model: one that takes its place is written last.
    for file in sorted(files, key=lambda file: is_source(quantized.model, file)):
        _save(files[file], file)
    name = prefix or deploy.graph.name or "default"
    write_fusion(paths[2], name, _fusion_ops(deploy, served, quantized))
    return paths


def _save(model: ir.Model, file: str) -> None:
    if os.path.exists(file):
        _log.warning("The file already exists at %s and it will be overwritten by AMCT", file)
    save_model_file(model, file)
    _log.info("The model file is saved in %s", file)


def _fusion_ops(deploy: ir.Model, served: Mapping[str, str], quantized: AscendModel) -> list[FusionOp]:
    """One entry a node of the deploy model (amct_formats.md: quant.json)."""
    layers = {layer.name for layer in quantized.layers}
    owners = {**served, **{name: name for name in layers}}
    for node in quantized.model.graph:
        if node.name in layers and (mul := balancing_mul(node)) is not None:
            owners[name_of(mul)] = node.name
    makers = _makers(quantized)
    inside = (node for node in deploy.graph.all_nodes() if node.graph is not deploy.graph)
    nodes = [*deploy.graph, *(node for node in inside if owners.get(name_of(node), node.name) in quantized.parts)]
    return [_fusion_op(node, owners.get(name_of(node)), quantized, makers) for node in nodes]


def _makers(quantized: AscendModel) -> set[tuple[str, str]]:
    """Which operators of the deploy model make what a layer or a marked pair of the original made, and for which."""
    moved = {nodes[-1] for name, nodes in quantized.origins.items() if nodes[-1] != name}  # a Mul of columns makes it
    layers = {("AscendDequant", layer.name) for layer in quantized.layers if layer.name not in moved}
    return layers | {("AscendAntiQuant", tensor.node) for tensor in quantized.tensors if tensor.marker}


def _fusion_op(
    node: ir.Node, owner: str | None, quantized: AscendModel, makers: Collection[tuple[str, str]]
) -> FusionOp:
    """`owner`: the layer or tensor that a node was made for, or the layer that it is; None for another node."""
    name, origins, number = name_of(node), quantized.origins, 0
    if (part := owner or name) in quantized.parts:
        given = quantized.parts.get(name)
        originals, produces, number = origins[part], given is not None, given or 0
    elif owner is not None:
        originals, produces = origins.get(owner, (owner,)), (node.op_type, owner) in makers
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
