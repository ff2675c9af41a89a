"""The float model that everything begins with: read, its nodes named, and its batch normalizations fused.

Both doors use it: AMCT's functions read it from a file and fuse what a configuration allows; `quantize` takes it in
whatever form the user has it and fuses all that can be fused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from amct_onnx.errors import ArgumentTypeError, ModelError, StatisticsError, listed
from amct_onnx.files.onnx_file import IN_MEMORY, check_opset, load_model, take_model
from amct_onnx.files.packed_model import HoldsGraphs
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.constants import lift_ir3
from amct_onnx.graph.layers import quantized_nodes
from amct_onnx.graph.naming import name_nodes, name_values
from amct_onnx.graph.passes.equalize import channel_groups, equalize_channels
from amct_onnx.graph.passes.fuse_affine import fuse_affine_into_batch_norm
from amct_onnx.graph.passes.fuse_batch_norm import fuse_batch_norm_into_conv
from amct_onnx.graph.passes.fusion import original_nodes
from amct_onnx.graph.passes.gather_channels import with_gathered_channels
from amct_onnx.graph.passes.normalize_layers import turn_inputs
from amct_onnx.graph.passes.smooth import product_inputs, smooth_inputs
from amct_onnx.graph.read.read_qdq import has_qdq
from amct_onnx.numerics.arrays import Floats
from amct_onnx.numerics.settings import Settings
from amct_onnx.plan.ascend_layers import graph_facts
from amct_onnx.values.layers import GraphFacts

SIMULATED_KEY = "amct_onnx.fake_quant"  # the layers of a fake-quant model, whose operators do not show that it is one


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatModel(HoldsGraphs):
    """A float model whose nodes have names, and nothing else is done to it.

    model: not to be changed; whoever changes it makes a copy. facts: what the graph says of each layer. path: its file,
    None for a model that was in memory.
    """

    model: ir.Model
    facts: GraphFacts
    path: str | None = None

    @classmethod
    def open(cls, model: Any) -> FloatModel:
        """From a path, an `onnx.ModelProto` or an `onnx_ir.Model`, which stays as it is.

        Raises ArgumentTypeError, FileMissingError, ModelFileError, and ModelError for a model that is quantized
        already.
        """
        path = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        if path is not None:
            opened = load_model(path)
        elif isinstance(model, ir.Model) or type(model).__name__ == "ModelProto":
            opened = take_model(model)
        else:
            text = "quantize takes a model as a path, an onnx.ModelProto or an onnx_ir.Model, got"
            raise ArgumentTypeError(f"{text} {type(model).__name__}")
        called = path or IN_MEMORY
        check_opset(opened, called)
        lift_ir3(opened)
        name_nodes(opened)
        name_values(opened)
        _refuse_quantized(opened, called)
        return cls(model=opened, facts=graph_facts(opened), path=path)

    @property
    def name(self) -> str:
        """What messages call the model."""
        return "The model" if self.path is None else f"The model {self.path}"

    def prepared(self) -> FusedModel:
        """The model that every target is solved from: all is fused that can be, and data are read row by row."""
        fused = self.fuse(Settings())
        turn_inputs(fused.model, self.facts.supported)
        return fused

    def fuse(self, settings: Settings) -> FusedModel:
        """The model with those batch normalizations fused that `settings` allow."""
        model = self.model.clone()
        if not settings.do_fusion:
            return FusedModel(source=self, model=model)
        skip = frozenset(settings.skip_fusion_layers)
        affine = fuse_affine_into_batch_norm(model, skip=skip)
        batch_norm, infinite = fuse_batch_norm_into_conv(model, skip=skip)
        return FusedModel(
            source=self,
            model=model,
            origins=original_nodes((*affine, *batch_norm)),
            notes=tuple(f"{name} is not fused: fused weights are not finite" for name in infinite),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedModel(HoldsGraphs):
    """A float model after fusion: `model`, not to be changed either.

    origins: the nodes of the source that a fused node stands for, None where nothing was to be fused. factors:
    float32[C] by which the channels of some tensors of `model` were divided. notes: what a user should know of the
    fusion, as sentences.
    """

    source: FloatModel
    model: ir.Model
    origins: Mapping[str, tuple[str, ...]] | None = None
    factors: Mapping[str, Floats] = field(default_factory=FrozenDict)
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> GraphFacts:
        """What the graph says of the layers of the source."""
        return self.source.facts

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.source.name

    @cached_property
    def gathered(self) -> ir.Model:
        """`model` with its shuffles of channels as Gathers, not to be changed either."""
        return with_gathered_channels(self.model)

    def divided(self, factors: Mapping[str, Floats]) -> FusedModel:
        """This model with the channels of some tensors divided by factors, and the weights behind them multiplied.

        factors: of groups of channels (`graph.passes.equalize`), and of inputs of products (`graph.passes.smooth`).
        Raises StatisticsError where they do not fit the model.
        """
        if not factors:
            return self
        model = self.model.clone()
        try:
            groups = {group.key for group in channel_groups(model)}
            inputs = product_inputs(model)
            smoothed = {name: values for name, values in factors.items() if name in inputs and name not in groups}
            equalize_channels(model, {name: values for name, values in factors.items() if name not in smoothed})
            smooth_inputs(model, smoothed)
        except (KeyError, ValueError) as error:
            raise StatisticsError("The factors of equalization belong to another model: calibrate this one.") from error
        return replace(self, model=model, factors=FrozenDict({**self.factors, **factors}))


def _refuse_quantized(model: ir.Model, called: str) -> None:
    found = [f"{node.op_type} {node.name}" for node in quantized_nodes(model)]
    found = found or json.loads(model.metadata_props.get(SIMULATED_KEY, "[]"))
    called = called if called == IN_MEMORY else f"the model {called}"
    if found:
        advice = "Start from the float model"
        if has_qdq(model):
            advice += ", or turn a model that was trained with quantization nodes by convert_qat_model"
        raise ModelError(
            f"The model cannot be quantized for following quant layers are in {called}: {listed(found, 3)}. {advice}."
        )
