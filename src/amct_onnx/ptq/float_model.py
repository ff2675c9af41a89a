"""The float model that `quantize` begins with, in whatever form the user has it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from amct_onnx.amct.calibration_model import FUSIONS_KEY, fuse_model, make_ready
from amct_onnx.errors import ArgumentTypeError, ModelFileError, StatisticsError
from amct_onnx.files.config_json import read_config
from amct_onnx.files.config_text import read_cfg
from amct_onnx.files.onnx_file import load_model
from amct_onnx.graph.access import is_standard
from amct_onnx.graph.constants import constant_tensor
from amct_onnx.graph.layers import is_product
from amct_onnx.graph.passes.equalize import channel_groups, equalize_channels
from amct_onnx.graph.passes.smooth import product_inputs, smooth_inputs
from amct_onnx.graph.recurrent import RECURRENT_OPS
from amct_onnx.numerics.settings import Settings
from amct_onnx.plan.ascend_layers import graph_facts
from amct_onnx.plan.qdq_nodes import plan_qdq
from amct_onnx.values.ascend_table import ASCEND
from amct_onnx.values.layers import GraphFacts
from amct_onnx.values.qdq_tables import QDQ_TARGETS

# Operators that move elements and keep all of them: what goes in has the statistic of what comes out.
_MOVES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout"})


@dataclass(frozen=True, kw_only=True)
class FloatSource:
    """A float model before anything is done to it, and with its batch normalizations fused.

    `model` has names on all nodes. `path` is its file, None for one in memory. Both models are not to be changed.
    `fusions`: the nodes that fused ones stand for, as JSON. `factors`: by what channels of `fused` were divided.
    """

    model: ir.Model
    fused: ir.Model
    facts: GraphFacts
    path: str | None
    fusions: str = "{}"
    factors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def open(cls, model: Any) -> FloatSource:
        """From a path, an `onnx.ModelProto` or an `onnx_ir.Model`, which stays as it is; or what `open` gave before.

        Raises ArgumentTypeError, FileMissingError, ModelFileError, ModelError.
        """
        if isinstance(model, cls):
            return model
        path = os.fspath(model) if isinstance(model, str | os.PathLike) else None
        if isinstance(model, ir.Model):
            opened = model.clone()
        elif path is not None:
            opened = load_model(path)
        elif type(model).__name__ == "ModelProto":
            try:
                opened = ir.from_proto(model)
            except Exception as error:  # onnx_ir has many ways to refuse a malformed model
                raise ModelFileError(f"The ModelProto is not a valid ONNX model: {error}.") from error
        else:
            text = "quantize takes a model as a path, an onnx.ModelProto or an onnx_ir.Model, got"
            raise ArgumentTypeError(f"{text} {type(model).__name__}")
        make_ready(opened, path or "in memory")
        facts = graph_facts(opened, ASCEND)
        fused = opened.clone()
        fuse_model(fused, Settings())
        fusions = fused.metadata_props.pop(FUSIONS_KEY, "{}")
        return cls(model=opened, fused=fused, facts=facts, path=path, fusions=fusions)

    @property
    def start(self) -> ir.Model:
        """What target ascend begins with: the model as it was, unless channels were divided."""
        return self.fused if self.factors else self.model

    def equalized(self, factors: Mapping[str, npt.NDArray[np.float32]]) -> FloatSource:
        """This model with the channels of some tensors divided by factors. Raises StatisticsError where they misfit.

        factors: of groups of channels (`graph.passes.equalize`), and of inputs of products (`graph.passes.smooth`).
        """
        if not factors:
            return self
        fused = self.fused.clone()
        try:
            groups = {group.key for group in channel_groups(fused)}
            inputs = product_inputs(fused)
            smoothed = {name: values for name, values in factors.items() if name in inputs and name not in groups}
            equalize_channels(fused, {name: values for name, values in factors.items() if name not in smoothed})
            smooth_inputs(fused, smoothed)
        except (KeyError, ValueError) as error:
            raise StatisticsError("The factors of equalization belong to another model: calibrate this one.") from error
        found = replace(self, fused=fused, factors={**self.factors, **factors})
        if "observed" in self.__dict__ and len(fused.graph) == len(self.fused.graph):
            found.__dict__["observed"] = self.observed  # only the numbers of weights are others
        return found

    @property
    def name(self) -> str:
        """What messages call the model."""
        return "The model" if self.path is None else f"The model {self.path}"

    def read_settings(self, settings: Settings | str | os.PathLike[str] | None) -> Settings | None:
        """`settings`, read where it is a config.json or (by its suffix) a .cfg. Raises ConfigError."""
        if settings is None or isinstance(settings, Settings):
            return settings
        if not isinstance(settings, str | os.PathLike):
            raise ArgumentTypeError(f"settings must be Settings, a path or None, got {type(settings).__name__}")
        return (read_cfg if Path(settings).suffix == ".cfg" else read_config)(settings, self.facts)

    @cached_property
    def observed(self) -> tuple[str, ...]:
        """The tensors whose statistics serve every target: each is the source of what a target quantizes."""
        wanted: dict[str, None] = {}
        for target in QDQ_TARGETS.values():
            wanted.update(dict.fromkeys(plan_qdq(self.fused, target).observed))
        for node in self.fused.graph:
            traits = self.facts.supported.get(node.name or "") if is_standard(node) else None
            if traits is not None and not is_product(node) and node.op_type not in RECURRENT_OPS:
                wanted[(node.inputs[0] and node.inputs[0].name) or ""] = None
        values = values_by_name(self.fused)
        sources = (source_of(values[name]) for name in wanted if name in values)
        return tuple(dict.fromkeys(value.name or "" for value in sources if constant_tensor(value) is None))

    def product_channels(self) -> dict[str, int]:
        """The tensors whose channels may have to be smoothed, with the number of channels."""
        values = values_by_name(self.fused)
        return {
            name: tensor.channels
            for name, tensor in product_inputs(self.fused).items()
            if values[name].dtype in (None, ir.DataType.FLOAT)
        }


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """The variable tensors of the main graph."""
    found = {value.name: value for value in model.graph.inputs if value.name}
    return found | {value.name: value for node in model.graph for value in node.outputs if value.name}


def source_of(value: ir.Value) -> ir.Value:
    """The tensor whose elements `value` has, behind operators that only move them."""
    while (node := value.producer()) is not None and is_standard(node) and node.op_type in _MOVES:
        source = node.inputs[0]
        if source is None or value is not node.outputs[0] or constant_tensor(source) is not None:
            break
        value = source
    return value
