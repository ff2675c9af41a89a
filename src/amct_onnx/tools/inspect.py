"""`inspect`: what a model is, what each target would quantize of it, and what may be unexpected. No data is needed."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from amct_onnx.errors import AmctError, ArgumentTypeError, ModelError, listed
from amct_onnx.files.onnx_file import MINIMUM_OPSET, file_bytes, load_model, model_bytes, take_model
from amct_onnx.graph.access import all_nodes
from amct_onnx.graph.layers import default_opset, quantized_nodes
from amct_onnx.graph.tensors import array_of, shape_of
from amct_onnx.plan.float_model import FloatModel, FusedModel
from amct_onnx.targets.table import TARGETS
from amct_onnx.targets.target import Target
from amct_onnx.values.layers import Decision, GraphFacts
from amct_onnx.values.model_summary import ModelSummary, TargetSummary, TensorSummary
from amct_onnx.values.request import Request

_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_BRANCHES = frozenset({"If", "Loop", "Scan"})
_RANDOM = ("Random", "Multinomial", "Bernoulli")
_LARGE = 2 * 10**9  # bytes, of a file without external data
_READ = 1 << 28  # bytes of weights that are looked at
_NAMED = 3


def inspect(model: Any) -> ModelSummary:
    """What `quantize` would find in a model, without data.

    model: a path, an onnx.ModelProto or an onnx_ir.Model.

    The decisions are those of the graph alone: data may show more tensors that int8 has no grid for, and with
    effort="default" some of the first layers may stay in float for the sake of accuracy.

    Raises ArgumentTypeError, FileMissingError and ModelFileError. What keeps a readable model from being quantized is
    among its `surprises` or the `error` of a target.
    """
    path = os.fspath(model) if isinstance(model, str | os.PathLike) else None
    if path is None and not (isinstance(model, ir.Model) or type(model).__name__ == "ModelProto"):
        text = "inspect takes a model as a path, an onnx.ModelProto or an onnx_ir.Model, got"
        raise ArgumentTypeError(f"{text} {type(model).__name__}")
    opened = take_model(model) if path is None else load_model(path)
    refused = ""
    source: FusedModel | None = None
    quantized = bool(quantized_nodes(opened))
    try:
        source = FloatModel.open(opened).prepared()
    except ModelError as error:
        refused = str(error).replace("the model in memory", "it")
    operators = Counter(node.op_type for node in opened.graph.all_nodes())
    tensors = [value.const_value for graph in opened.graphs() for value in graph.initializers.values()]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return ModelSummary(
        model=path or "The model in memory",
        opset=default_opset(opened),
        ir_version=opened.ir_version,
        producer=" ".join(part for part in (opened.producer_name, opened.producer_version) if part),
        bytes=model_bytes(opened) if path is None else file_bytes(opened, path),
        elements=sum(math.prod(shape_of(tensor)) for tensor in tensors if tensor is not None),
        nodes=sum(operators.values()),
        operators=dict(operators.most_common()),
        inputs=tuple(_tensor(value) for value in opened.graph.inputs),
        outputs=tuple(_tensor(value) for value in opened.graph.outputs),
        external_data=external,
        folded=0 if source is None else sum(len(origins) - 1 for origins in (source.origins or {}).values()),
        quantized_already=quantized,
        targets=() if source is None else tuple(_target(target, source) for target in TARGETS.values()),
        surprises=tuple(_surprises(opened, source, refused, external)),
    )


def _tensor(value: ir.Value) -> TensorSummary:
    shape = None
    if value.shape is not None:
        shape = tuple(dim if isinstance(dim, int) else dim.value or "" for dim in value.shape)
    return TensorSummary(name=value.name or "", type="" if value.dtype is None else _type(value.dtype), shape=shape)


def _type(dtype: ir.DataType) -> str:
    try:
        return str(dtype.numpy().name)
    except TypeError:
        return dtype.name.lower()


def _target(target: Target, source: FusedModel) -> TargetSummary:
    decisions: tuple[Decision, ...] = ()
    error = ""
    try:
        target.check(source, Request())
        decisions = target.decisions(source, Request())
    except AmctError as reason:
        error = str(reason)
    known, sizes = source.facts.layers, _weight_sizes(source.source.model)
    quantized = [decision.layer for decision in decisions if decision.quantized]
    return TargetSummary(
        target=target.name,
        decisions=decisions,
        layers=sum(decision.layer in known for decision in decisions),
        quantized_layers=sum(name in known for name in quantized),
        share=sum(sizes.get(name, 0) for name in quantized) / max(sum(sizes.values()), 1),
        error=error,
    )


def _weight_sizes(model: ir.Model) -> dict[str, int]:
    """The elements of the floats of each node that reads some as initializers."""
    found = {}
    for node in model.graph.all_nodes():
        tensors = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
        floats = [tensor for tensor in tensors if tensor.dtype.is_floating_point()]
        if node.name and floats:
            found[node.name] = sum(math.prod(shape_of(tensor)) for tensor in floats)
    return found


def _surprises(model: ir.Model, source: FusedModel | None, refused: str, external: bool) -> Iterator[str]:
    opset = default_opset(model)
    if refused:
        yield f"it cannot be quantized as it is: {refused}"
    if 0 < opset < MINIMUM_OPSET and str(MINIMUM_OPSET) not in refused:
        yield f"opset {opset} is older than {MINIMUM_OPSET}, the oldest that is supported: export it again."
    yield from _about_shapes(model)
    foreign = Counter(node.domain for node in all_nodes(model) if node.domain not in _STANDARD)
    foreign.subtract({function.domain: 1 for function in model.functions.values() if function.domain in foreign})
    if names := [f"{domain} ({count} nodes)" for domain, count in foreign.items() if count > 0]:
        yield f"custom operators of {listed(names, _NAMED)} stay in float, and a runtime has to know them."
    if model.functions:
        yield f"{len(model.functions)} model functions: layers inside stay in float, inline them first."
    branches = [node.name or node.op_type for node in model.graph.all_nodes() if node.op_type in _BRANCHES]
    if branches:
        yield f"control flow ({listed(branches, _NAMED)}): what is inside may run never or many times."
    random = [node.name or node.op_type for node in all_nodes(model) if node.op_type.startswith(_RANDOM)]
    if random:
        yield f"random numbers ({listed(random, _NAMED)}): two runs of one model differ."
    defaults = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
    if defaults:
        yield f"{len(defaults)} initializers are inputs too ({listed(defaults, _NAMED)}), and are taken as constants."
    if external:
        yield "its weights are in external files: keep them beside it; a quantized model has such a file too."
    elif model_bytes(model) > _LARGE:
        yield "it has more than 2 GB in memory: results have their weights in a file beside them."
    types = {value.dtype for value in (*model.graph.inputs, *model.graph.outputs) if value.dtype is not None}
    halves = [kind.name.lower() for kind in types if kind.is_floating_point() and kind != ir.DataType.FLOAT]
    if halves:
        yield f"it computes in {' and '.join(sorted(halves))}: most targets quantize float32 layers only."
    yield from _about_weights(model)
    if source is not None:
        yield from _about_layers(source.facts)


def _about_shapes(model: ir.Model) -> Iterator[str]:
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    if not inputs:
        yield "it has no inputs: it cannot be calibrated."
    unknown = [value.name or "" for value in inputs if value.shape is None]
    if unknown:
        yield f"the shape of {listed(unknown, _NAMED)} is unknown: say it by shapes= (--input_shape)."
    known = [value for value in inputs if value.shape is not None and len(value.shape)]
    open_ones = [v.name or "" for v in known if any(not isinstance(d, int) or d < 0 for d in list(v.shape or ())[1:])]
    if open_ones:
        text = "have sizes beside the batch that are open"
        yield f"{listed(open_ones, _NAMED)} {text}: calibrate with the sizes that will be used."
    fixed = {v.name or "": v.shape[0] for v in known if v.shape is not None and isinstance(v.shape[0], int)}
    larger = [f"{name} ({size})" for name, size in fixed.items() if isinstance(size, int) and size > 1]
    if larger:
        yield f"the batch is fixed: {listed(larger, _NAMED)}; data are joined to that size."


def _about_weights(model: ir.Model) -> Iterator[str]:
    """Weights that hold NaN or Inf, as far as the largest ones of all models may be looked at."""
    left, spoilt = _READ, []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or tensor.nbytes > left:
            continue
        left -= tensor.nbytes
        if not np.isfinite(np.asarray(array_of(tensor), np.float32)).all():
            spoilt.append(name)
    if spoilt:
        yield f"weights hold NaN or Inf ({listed(spoilt, _NAMED)}): their layers stay in float."


def _about_layers(facts: GraphFacts) -> Iterator[str]:
    if not facts.layers:
        yield "it has no convolution, product or recurrent layer: there is nothing to gain from int8."
