"""Reads a .cfg, a protobuf text, as the `Settings` of a config.json (amct_formats.md: Simplified configuration)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amct_onnx.errors import Nearest
from amct_onnx.files.config_check import (
    Choice,
    Origin,
    check_graph,
    check_repeated_tensors,
    check_skip_fusion,
    fit_layer,
    fit_tensor,
    logger,
    parse_activation,
    parse_weight,
)
from amct_onnx.files.config_json import check_skip_layers, raise_mistakes
from amct_onnx.files.config_message import parse_cfg
from amct_onnx.files.config_rules import ACT_KEY, GLOBAL_RULES, LAYER_RULES, Rule, check_names, check_value
from amct_onnx.files.nuq_mapping import find_named_layers
from amct_onnx.files.schema import shortest_float32
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.layers import LAYER_OPS
from amct_onnx.numerics.settings import LayerSettings, Nuq, Settings, TensorSettings
from amct_onnx.values.layers import GraphFacts, LayerTraits
from amct_onnx.words import either

_BITS = {1: 8, 2: 16}  # DataType
_QUANT_BITS = Rule("int", lambda value: value in (6, 7, 8), "must be in [6, 7, 8]")
_STRENGTH = replace(LAYER_RULES["dmq_balancer_param"], kind="float")
_DEFAULT_STRENGTH = 0.5


@dataclass(frozen=True)
class _Source:
    """What a CalibrationConfig block says of the layers that it is for."""

    choice: Choice
    origin: Origin
    has_weights: bool = False
    """Whether it says how weights are quantized."""
    place: str = ""
    """The path of the field around it."""


@dataclass(frozen=True)
class _NuqSource:
    """A nuq_config block."""

    solver: Nuq
    named: frozenset[str] | None
    """The names in its mapping file; None if it has none and means all Conv layers."""

    def apply(self, name: str, traits: LayerTraits, source: _Source, mistakes: Mistakes) -> _Source:
        """The source of a layer, with weights as nuq_config wants them if it is meant for the layer.

        nuq_config wins over a common block, and over an override that does not mention weights. An override that asks
        for other weights wins if there is no mapping file. If there is one that names the layer, the two contradict
        each other, which is a mistake.
        """
        meant = traits.op_type == "Conv" and traits.supports_clusters
        if not meant or (self.named is not None and name not in self.named):
            return source
        if source.origin.kind != "override" or not source.has_weights:
            choice = replace(source.choice, wts_solver=self.solver, wts_bits=8)
            return replace(source, choice=choice, origin=replace(source.origin, weight="nuq_config"))
        if self.named is not None and source.choice.wts_solver != self.solver:
            text = f"contradicts nuq_config, whose mapping file names layer {name}; delete one of the two"
            mistakes.add(source.origin.weight, text)
        return source


def read_cfg(path: str | os.PathLike[str], facts: GraphFacts) -> Settings:
    """The settings of a simplified configuration.

    Raises FileMissingError, or ConfigError with line and column: for text that does not parse, or else for every
    mistake of the file at once.
    """
    config, mistakes = parse_cfg(path)
    settings = _read(config, facts, mistakes, Path(path).parent)
    raise_mistakes(mistakes)
    return settings


def _read(config: Any, facts: GraphFacts, mistakes: Mistakes, folder: Path) -> Settings:
    given = config.batch_num if config.HasField("batch_num") else 1
    batch_num = check_value(given, GLOBAL_RULES["batch_num"], "batch_num", mistakes) or 1
    if config.enable_auto_nuq:
        mistakes.add("enable_auto_nuq", "layers for NUQ are not chosen here: delete it, or name them in nuq_config")
    offset = config.activation_offset if config.HasField("activation_offset") else True
    check_graph(facts, mistakes, tensors=config.tensor_quantize)
    enabled = _find_enabled(config, facts, mistakes)
    enabled -= _products_left_off(config, facts)
    common = _read_block(config, "common_config", "common", mistakes)
    nuq = _read_nuq(config.nuq_config, folder, facts, mistakes) if config.HasField("nuq_config") else None
    layers = _read_layers(config, facts, enabled, common, offset, nuq, mistakes)
    tensors = [
        _read_tensor(entry, f"tensor_quantize[{index}]", facts, common, offset, mistakes)
        for index, entry in enumerate(config.tensor_quantize)
    ]
    return Settings(
        batch_num=batch_num,
        activation_offset=offset,
        joint_quant=config.joint_quant,
        do_fusion=config.do_fusion if config.HasField("do_fusion") else True,
        fakequant_precision_mode="FORCE_FP16_QUANT" if config.fakequant_precision_mode else None,
        skip_fusion_layers=check_skip_fusion(config.skip_fusion_layers, facts, mistakes),
        tensor_quantize=check_repeated_tensors(tensors, mistakes),
        layers=FrozenDict(layers),
    )


def _find_enabled(config: Any, facts: GraphFacts, mistakes: Mistakes) -> set[str]:
    """The layers that are neither in skip_layers nor of a type in skip_layer_types."""
    skipped = check_skip_layers(config.skip_layers, facts, mistakes)
    types = check_names(config.skip_layer_types, "skip_layer_types", mistakes, problem=_type_problem)
    enabled = {name for name, traits in facts.supported.items() if name not in skipped and traits.op_type not in types}
    if facts.supported and not enabled and not config.tensor_quantize:
        mistakes.add("skip_layers", "Except skip_layers or skip_types, no layer need to quantize.")
    return enabled


def _products_left_off(config: Any, facts: GraphFacts) -> set[str]:
    """MatMuls of two activations that no block of the file mentions by name or by type. They stay in float.

    AMCT quantizes them unless they are skipped, which costs accuracy (amct_formats.md: MatMul of two activations).
    """
    names = {entry.layer_name for entry in config.override_layer_configs}
    types = {entry.layer_type for entry in config.override_layer_types}
    products = {name: traits for name, traits in facts.supported.items() if traits.two_operands}
    return {name for name, traits in products.items() if name not in names and traits.op_type not in types}


def _type_problem(kind: str) -> str | None:
    if kind in LAYER_OPS:
        return None
    hint = Nearest(LAYER_OPS).to(kind) or f" Use one of {', '.join(LAYER_OPS)}"
    return f"Layer type {kind} does not support quantize.{hint}"


def _read_layers(
    config: Any,
    facts: GraphFacts,
    enabled: set[str],
    common: _Source | None,
    offset: bool,
    nuq: _NuqSource | None,
    mistakes: Mistakes,
) -> dict[str, LayerSettings]:
    """The settings of each layer, from one whole block: its own, its type's or the common one
    (amct_formats.md: Precedence).
    """

    nearest = Nearest(facts.supported)

    def layer_problem(name: str) -> str | None:
        traits = facts.layers.get(name)
        if name not in facts.nodes and traits is None:
            return f"Layer {name} does not exist in the graph.{nearest.to(name)}"
        if traits is None:
            return f"Layer {name} does not support quantization. (its type is {facts.nodes[name]})"
        return None if traits.reason is None else f"Layer {name} does not support quantization. ({traits.reason})"

    by_type = _read_overrides(config, "override_layer_types", "layer_type", mistakes, _type_problem)
    by_name = _read_overrides(config, "override_layer_configs", "layer_name", mistakes, layer_problem)
    _warn_of_skipped(facts, enabled, by_type, by_name, mistakes)
    old = _read_deprecated(config, mistakes)
    layers: dict[str, LayerSettings] = {}
    for name, traits in facts.supported.items():
        source = by_name.get(name) or by_type.get(traits.op_type) or old.get(traits.channel_wise) or common
        source = source or _Source(Choice(), Origin("common", "", "", ""))
        if nuq is not None and name in enabled:
            source = nuq.apply(name, traits, source, mistakes)
        origin = source.origin if name in enabled else replace(source.origin, kind="common")
        layers[name] = fit_layer(
            source.choice,
            traits,
            origin,
            mistakes,
            asymmetric=_inherit_asymmetric(source.choice, common, offset),
            quant_enable=name in enabled,
        )
    return layers


def _read_nuq(block: Any, folder: Path, facts: GraphFacts, mistakes: Mistakes) -> _NuqSource:
    """The block nuq_config, with the names in its mapping file (amct_formats.md: Messages)."""
    where = "nuq_config.nuq_quantize"
    document = _weight_document(block.nuq_quantize, "nuq_quantize", where, mistakes)
    solver = parse_weight(document, where, mistakes, owner=where)["wts_solver"]
    if not block.HasField("mapping_file"):
        return _NuqSource(solver, None)
    where = "nuq_config.mapping_file"
    return _NuqSource(solver, find_named_layers(block.mapping_file, folder, facts, where, mistakes))


def _warn_of_skipped(
    facts: GraphFacts,
    enabled: set[str],
    by_type: Mapping[str, _Source],
    by_name: Mapping[str, _Source],
    mistakes: Mistakes,
) -> None:
    """Warn of overrides of layers that stay in float. For AMCT they are no mistake, and they have no effect."""
    for name, source in by_name.items():
        if name in facts.supported and name not in enabled:
            text = "%s: layer %s is skipped by skip_layers or skip_layer_types, so its override has no effect"
            logger.warning(text, mistakes.place(source.place), name)
    for kind, source in by_type.items():
        names = [name for name, traits in facts.supported.items() if traits.op_type == kind]
        if names and not enabled.intersection(names):
            text = "%s: all layers of type %s are skipped, so their override has no effect"
            logger.warning(text, mistakes.place(source.place), kind)


def _inherit_asymmetric(choice: Choice, common: _Source | None, offset: bool) -> bool:
    """The value for a block that does not set `asymmetric`: that of the common block if both use one algorithm."""
    if common is None or common.choice.asymmetric is None:
        return offset
    return common.choice.asymmetric if type(common.choice.act_solver) is type(choice.act_solver) else offset


def _read_overrides(
    config: Any, field: str, key: str, mistakes: Mistakes, problem: Callable[[str], str | None]
) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for index, entry in enumerate(getattr(config, field)):
        where, name = f"{field}[{index}]", getattr(entry, key)
        source = _read_block(entry, "calibration_config", "override", mistakes, parent=where)
        if source is None:
            mistakes.add(f"{where}.calibration_config", "is missing, say what is overridden")
            source = _Source(Choice(), Origin("common", "", "", ""))
        if not name:
            mistakes.add(f"{where}.{key}", f"is missing, say for which {key} this is")
        elif name in sources:
            mistakes.add(f"{where}.{key}", f"Please delete repeated items in {field}, repeated items are ['{name}']")
        elif (what := problem(name)) is not None:
            mistakes.add(f"{where}.{key}", what)
        sources.setdefault(name, replace(source, place=where))
    return sources


def _read_deprecated(config: Any, mistakes: Mistakes) -> dict[bool, _Source]:
    """The blocks of early releases: one for channel-wise types (True), one for the others (False)."""
    names = {True: "conv_calibration_config", False: "fc_calibration_config"}
    given = {channel_wise: name for channel_wise, name in names.items() if config.HasField(name)}
    if given and (config.HasField("common_config") or config.override_layer_types):
        logger.warning("%s ignored, because common_config or override_layer_types is set", ", ".join(given.values()))
        return {}
    sources: dict[bool, _Source] = {}
    for channel_wise, name in given.items():
        logger.warning("%s is deprecated, use common_config or override_layer_types", name)
        source = _read_block(config, name, "common", mistakes)
        if source is not None:
            sources[channel_wise] = source
    return sources


def _read_block(message: Any, field: str, kind: Any, mistakes: Mistakes, *, parent: str = "") -> _Source | None:
    """A CalibrationConfig, or None if it is absent. Its mistakes are noted here, once for all layers that use it."""
    if not message.HasField(field):
        return None
    block, where = getattr(message, field), f"{parent}.{field}" if parent else field
    weights = block.WhichOneof("weights")
    if block.weight_compress_only:
        other = either("call quantize(model, None, weight_only=8)", "give --weight_only 8")
        text = f"weights and activations are quantized here: delete it, or {other}"
        mistakes.add(f"{where}.weight_compress_only", text)
    act = _read_activation(block, where, mistakes)
    wts_where = f"{where}.{weights}" if weights else where
    document = _weight_document(getattr(block, weights), weights, wts_where, mistakes) if weights else {}
    wts = parse_weight(document, wts_where, mistakes, owner=where)
    strength: float | None = None
    place = f"{where}.dmq_balancer"
    if block.HasField("dmq_balancer"):
        given = _given(block.dmq_balancer).get("migration_strength", _DEFAULT_STRENGTH)
        strength = check_value(given, _STRENGTH, f"{place}.migration_strength", mistakes)
    algo = block.WhichOneof("activations")
    origin = Origin(kind, f"{where}.{algo}" if algo else where, wts_where, place)
    return _Source(Choice(dmq_strength=strength, **act, **wts), origin, weights is not None)


def _given(message: Any) -> dict[str, Any]:
    """The fields that are set. Floats become the decimals that the file shows."""
    values = {field.name: value for field, value in message.ListFields()}
    return {key: shortest_float32(value) if isinstance(value, float) else value for key, value in values.items()}


def _read_activation(message: Any, where: str, mistakes: Mistakes) -> dict[str, Any]:
    algo = message.WhichOneof("activations")
    if algo is None:
        return parse_activation({}, where, mistakes, owner=where)
    document = _given(getattr(message, algo)) | {"act_algo": algo.removesuffix("_quantize")}
    if "dst_type" in document:
        document["num_bits"] = _BITS[document.pop("dst_type")]
    _join_range(document, "search_range", 0.7, 1.3)
    return parse_activation(document, f"{where}.{algo}", mistakes, owner=f"{where}.{algo}")


def _weight_document(message: Any, algo: str, where: str, mistakes: Mistakes) -> dict[str, Any]:
    document = _given(message) | {"wts_algo": algo}
    _join_range(document, "beta_range", 20.0, 2.0)
    if document.pop("asymmetric", False):
        mistakes.add(
            f"{where}.asymmetric", "weights are quantized symmetrically, as AMCT does with activations: delete it"
        )
    if "quant_bits" in document:
        bits = check_value(document.pop("quant_bits"), _QUANT_BITS, f"{where}.quant_bits", mistakes)
        document["num_bits"] = bits or 8
    return document


def _join_range(document: dict[str, Any], name: str, start: float, end: float) -> None:
    """Replace the two fields <name>_start and <name>_end by one list, as config.json has it.

    The one of the two that is not set gets its default, `start` or `end`.
    """
    given = [document.pop(f"{name}_{side}", None) for side in ("start", "end")]
    if given != [None, None]:
        document[name] = [start if given[0] is None else given[0], end if given[1] is None else given[1]]


def _read_tensor(
    entry: Any, where: str, facts: GraphFacts, common: _Source | None, offset: bool, mistakes: Mistakes
) -> TensorSettings | None:
    choice = Choice(**_read_activation(entry, where, mistakes))
    name = entry.layer_name if entry.HasField("layer_name") else None
    index = entry.input_index if entry.HasField("input_index") else None
    asymmetric = _inherit_asymmetric(choice, common, offset)
    block = entry.WhichOneof("activations") or ACT_KEY
    return fit_tensor(name, index, choice, where, facts, mistakes, asymmetric=asymmetric, block=block)
