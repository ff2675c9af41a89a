"""Reads and writes config.json, AMCT's quantization configuration (amct_formats.md: config.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from amct_onnx.errors import ConfigError, ConfigTypeError, Nearest
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
from amct_onnx.files.config_rules import (
    ACT_KEY,
    GLOBAL_RULES,
    LAYER_RULES,
    TENSOR_RULES,
    WTS_KEY,
    WTS_KEYS,
    WTS_SOLVERS,
    check_names,
    check_object,
    check_value,
)
from amct_onnx.files.whole_files import Mistakes, read_json
from amct_onnx.frozen import FrozenDict
from amct_onnx.graph.layers import LAYER_OPS
from amct_onnx.numerics.settings import (
    ActivationSettings,
    Hfmg,
    Ifmr,
    LayerSettings,
    Settings,
    TensorSettings,
    WeightSettings,
)
from amct_onnx.values.layers import GraphFacts


def default_settings(
    facts: GraphFacts, *, skip_layers: Sequence[str] = (), batch_num: int = 1, activation_offset: bool = True
) -> Settings:
    """The settings of `create_quant_config` without a .cfg (amct_formats.md: create_quant_config). A MatMul of two
    activations is off.

    Raises ConfigError: no supported layer, a layer named like a global key, a skip layer that is not in the graph,
    not quantizable or repeated, nothing left to quantize, batch_num below 1.
    """
    mistakes = Mistakes(None)
    check_value(batch_num, GLOBAL_RULES["batch_num"], "batch_num", mistakes)
    check_graph(facts, mistakes)
    skipped = check_skip_layers(skip_layers, facts, mistakes)
    if facts.supported and set(facts.supported) <= set(skipped):
        mistakes.add("skip_layers", "Except skip_layers, no layer needs to quantize.")
    raise_mistakes(mistakes)
    layers = {
        name: fit_layer(
            Choice(),
            traits,
            Origin("common", name, name, name),
            mistakes,
            asymmetric=activation_offset,
            quant_enable=name not in skipped and not traits.two_operands,
        )
        for name, traits in facts.supported.items()
    }
    return Settings(batch_num=batch_num, activation_offset=activation_offset, layers=FrozenDict(layers))


def check_skip_layers(names: Sequence[Any], facts: GraphFacts, mistakes: Mistakes) -> tuple[str, ...]:
    """The layers to skip. A layer that cannot be quantized may be named too if others of its type can."""
    nearest = Nearest(facts.layers)

    def problem(name: str) -> str | None:
        if name not in facts.nodes:
            return f"Layer {name} does not exist in the graph.{nearest.to(name)}"
        if name not in facts.layers and facts.nodes[name] not in LAYER_OPS:
            return f"Layer {name} does not support quantization. (its type is {facts.nodes[name]})"
        return None

    return check_names(names, "skip_layers", mistakes, problem=problem)


def raise_mistakes(mistakes: Mistakes) -> None:
    """Raise ConfigTypeError if every mistake is a wrong type, and ConfigError if there are others."""
    mistakes.raise_any(ConfigTypeError if all(mistake.is_type for mistake in mistakes) else ConfigError)


def read_config(path: str | os.PathLike[str], facts: GraphFacts) -> Settings:
    """The settings of a config.json. Supported layers that it does not name are not quantized
    (amct_formats.md: Reading rules).

    A file that enables no layer is accepted. Raises FileMissingError, or ConfigError with every mistake of the file
    (ConfigTypeError if all of them are wrong types).
    """
    advice = "correct the file or create it again with create_quant_config"
    document = read_json(path, what="config file", advice=advice, hook=_make_object)
    if not isinstance(document, _Object):
        raise ConfigTypeError(f"{os.fspath(path)}: must be one JSON object, but is {type(document).__name__}")
    mistakes = Mistakes(path)
    _check_duplicates(document, "", mistakes)
    top = {key: value for key, value in document.items() if key in GLOBAL_RULES}
    values = check_object(top, GLOBAL_RULES, "", mistakes, owner="the config file")
    asymmetric = values.get("activation_offset", True)
    check_graph(facts, mistakes, tensors=values.get("tensor_quantize", ()))
    _check_layer_names(document, facts, mistakes)
    layers = {
        name: _read_layer(name, document.get(name, {}), facts, asymmetric, mistakes)
        for name in facts.supported
        if name not in GLOBAL_RULES
    }
    tensors = [
        _read_tensor(f"tensor_quantize[{index}]", entry, facts, asymmetric, mistakes)
        for index, entry in enumerate(values.get("tensor_quantize", ()))
    ]
    mode = values.get("fakequant_precision_mode")
    settings = Settings(
        batch_num=values.get("batch_num", 1),
        activation_offset=asymmetric,
        joint_quant=values.get("joint_quant", False),
        do_fusion=values.get("do_fusion", True),
        fakequant_precision_mode=None if mode == "DEFAULT" else mode,
        skip_fusion_layers=check_skip_fusion(values.get("skip_fusion_layers", ()), facts, mistakes),
        tensor_quantize=check_repeated_tensors(tensors, mistakes),
        layers=FrozenDict(layers),
    )
    raise_mistakes(mistakes)
    return settings


class _Object(dict[str, Any]):
    """A JSON object that remembers keys given twice. They are reported later, when its path is known."""

    repeated: tuple[str, ...] = ()


def _make_object(pairs: list[tuple[str, Any]]) -> _Object:
    made = _Object(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        made.repeated = tuple(key for key in made if keys.count(key) > 1)
    return made


def _check_duplicates(value: Any, where: str, mistakes: Mistakes) -> None:
    if isinstance(value, _Object):
        for key in value.repeated:
            place = f"{where}.{key}" if where else key
            mistakes.add(place, f"Please delete repeated items in {where or 'the config file'}, repeated is {key}")
        for key, child in value.items():
            _check_duplicates(child, f"{where}.{key}" if where else key, mistakes)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _check_duplicates(child, f"{where}[{index}]", mistakes)


def _check_layer_names(document: _Object, facts: GraphFacts, mistakes: Mistakes) -> None:
    """Note entries of unknown nodes, and those that enable a node which cannot be quantized.

    An entry that leaves such a node in float asks for what happens anyway; AMCT writes some for nodes that it supports.
    """
    nearest = Nearest([*GLOBAL_RULES, *facts.supported])
    for name, entry in document.items():
        if name in GLOBAL_RULES or name in facts.supported:
            continue
        if name not in facts.nodes and name not in facts.layers:
            mistakes.add(name, f"{name} is an invalid layer name or parameter.{nearest.to(name)}")
            continue
        values = check_value(entry, LAYER_RULES[ACT_KEY], name, mistakes) or {}
        rule, place = LAYER_RULES["quant_enable"], f"{name}.quant_enable"
        if check_value(values.get("quant_enable", False), rule, place, mistakes):
            traits = facts.layers.get(name)
            reason = traits.reason if traits is not None else f"type {facts.nodes[name]}"
            advice = "Set quant_enable to false or delete the entry"
            mistakes.add(name, f"layer {name} does not support quant. ({reason}) {advice}")


def _read_layer(name: str, entry: Any, facts: GraphFacts, asymmetric: bool, mistakes: Mistakes) -> LayerSettings:
    entry = check_value(entry, LAYER_RULES[ACT_KEY], name, mistakes)
    owner = f"layer {name}"
    values = check_object(entry or {}, LAYER_RULES, name, mistakes, owner=owner)
    act, wts = f"{name}.{ACT_KEY}", f"{name}.{WTS_KEY}"
    choice = Choice(
        dmq_strength=values.get("dmq_balancer_param"),
        **parse_activation(values.get(ACT_KEY, {}), act, mistakes, owner=owner),
        **parse_weight(values.get(WTS_KEY, {}), wts, mistakes, owner=owner),
    )
    origin = Origin("json", act, wts, f"{name}.dmq_balancer_param")
    if entry and "quant_enable" not in entry:
        logger.warning("%s has no quant_enable, it will not be quantized", owner)
    enabled = values.get("quant_enable", False)
    return fit_layer(choice, facts.layers[name], origin, mistakes, asymmetric=asymmetric, quant_enable=enabled)


def _read_tensor(
    where: str, entry: Any, facts: GraphFacts, asymmetric: bool, mistakes: Mistakes
) -> TensorSettings | None:
    entry = check_value(entry, TENSOR_RULES[ACT_KEY], where, mistakes)
    if entry is None:
        return None
    values = check_object(entry, TENSOR_RULES, where, mistakes, owner=where)
    act = parse_activation(values.get(ACT_KEY, {}), f"{where}.{ACT_KEY}", mistakes, owner=where)
    if any(key in entry and key not in values for key in ("layer_name", "input_index")):
        return None  # its type was wrong, which is reported already
    name, index = values.get("layer_name"), values.get("input_index")
    return fit_tensor(name, index, Choice(**act), where, facts, mistakes, asymmetric=asymmetric)


def format_config(settings: Settings, facts: GraphFacts) -> str:
    """The text of config.json: indented by 4 blanks, global keys in AMCT's order, then layers by name.

    joint_quant and tensor_quantize appear only if they are set, as in AMCT's own files. A supported layer without
    settings is written as not quantized.
    """
    document: dict[str, Any] = {
        "version": 1,
        "batch_num": settings.batch_num,
        "activation_offset": settings.activation_offset,
    }
    if settings.joint_quant:
        document["joint_quant"] = True
    document["do_fusion"] = settings.do_fusion
    if settings.fakequant_precision_mode is not None:
        document["fakequant_precision_mode"] = settings.fakequant_precision_mode
    document["skip_fusion_layers"] = list(settings.skip_fusion_layers)
    if settings.tensor_quantize:
        document["tensor_quantize"] = [_format_tensor(tensor) for tensor in settings.tensor_quantize]
    for name in sorted({*facts.supported, *settings.layers}):
        layer = settings.layers.get(name)
        if layer is None:
            layer = _read_layer(name, {}, facts, settings.activation_offset, Mistakes(None))
        document[name] = _format_layer(layer)
    return json.dumps(document, indent=4, separators=(",", ":"))


def _format_layer(layer: LayerSettings) -> dict[str, Any]:
    entry: dict[str, Any] = {"quant_enable": layer.quant_enable}
    if layer.dmq_strength is not None:
        entry["dmq_balancer_param"] = float(layer.dmq_strength)
    return entry | {ACT_KEY: _format_activation(layer.activation), WTS_KEY: _format_weight(layer.weight)}


def _format_tensor(tensor: TensorSettings) -> dict[str, Any]:
    return {
        "layer_name": tensor.layer_name,
        "input_index": tensor.input_index,
        ACT_KEY: _format_activation(tensor.activation),
    }


def _format_activation(activation: ActivationSettings) -> dict[str, Any]:
    solver = activation.solver
    if isinstance(solver, Hfmg):
        return {
            "num_bits": activation.num_bits,
            "act_algo": "hfmg",
            "asymmetric": activation.asymmetric,
            "num_of_bins": solver.num_of_bins,
        }
    if not isinstance(solver, Ifmr):
        raise ValueError(f"{type(solver).__name__} has no name in config.json")
    return {
        "num_bits": activation.num_bits,
        "max_percentile": solver.max_percentile,
        "min_percentile": solver.min_percentile,
        "search_range": [solver.search_start, solver.search_end],
        "search_step": solver.search_step,
        "act_algo": "ifmr",
        "asymmetric": activation.asymmetric,
    }


def _format_weight(weight: WeightSettings) -> dict[str, Any]:
    algo = next(name for name, kind in WTS_SOLVERS.items() if kind is type(weight.solver))
    own = {key: getattr(weight.solver, key) for key in WTS_KEYS[algo]}
    return {"num_bits": weight.num_bits, **own, "channel_wise": weight.channel_wise, "wts_algo": algo}
