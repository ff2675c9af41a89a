"""Checks that the two configuration formats share: the algorithms of a layer, and whether the layer can do them.

What a `config.json` or a `.cfg` says of a layer becomes a `Choice`, which `fit_layer` turns into `LayerSettings`. A
function that finds a mistake notes it and goes on, so that one reading finds all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from amct_onnx.errors import Nearest, listed
from amct_onnx.files.config_rules import (
    ACT_KEY,
    ACT_RULES,
    GLOBAL_RULES,
    HFMG_KEYS,
    IFMR_KEYS,
    WTS_KEYS,
    WTS_RULES,
    WTS_SOLVERS,
    check_names,
    check_object,
)
from amct_onnx.files.whole_files import Mistakes
from amct_onnx.numerics.settings import (
    MOST_CANDIDATES,
    ActivationSettings,
    AdaRound,
    Arq,
    Hfmg,
    Ifmr,
    LayerSettings,
    Nuq,
    TensorSettings,
    WeightSettings,
    count_candidates,
)
from amct_onnx.values.layers import GraphFacts, LayerTraits

logger = logging.getLogger("amct_onnx")

INPUTS_OF_TENSOR_TYPES = {"MaxPool": 1, "Add": 2}


def check_skip_fusion(names: Iterable[Any], facts: GraphFacts, mistakes: Mistakes) -> tuple[str, ...]:
    nearest = Nearest(facts.fusable)

    def problem(name: str) -> str | None:
        if name not in facts.nodes:
            return f'Layer "{name}" in skip_fusion_layers does not exist in the graph.{nearest.to(name)}'
        if name not in facts.fusable:
            return f'Skip fusion layer "{name}"\'s type {facts.nodes[name]} is not fused with anything, delete it'
        return None

    return check_names(names, "skip_fusion_layers", mistakes, problem=problem)


def check_graph(facts: GraphFacts, mistakes: Mistakes, *, tensors: Collection[Any] = ()) -> None:
    """Note a mistake if there is nothing to quantize, or if a layer has the name of a global key."""
    if not facts.supported and not tensors:
        reasons = listed([f"{name}: {traits.reason}" for name, traits in facts.layers.items()], 5, "; ")
        mistakes.add("", "No layer support quantization in the graph." + (f" ({reasons})" if reasons else ""))
    for name in facts.supported:
        if name in GLOBAL_RULES:
            mistakes.add(name, f"{name} is a global parameter, can not be a layer name; rename the node in the model")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a document says of one layer. None is left to the default of the layer."""

    dmq_strength: float | None = None
    act_bits: int = 8
    asymmetric: bool | None = None
    act_solver: Ifmr | Hfmg = field(default_factory=Ifmr)
    wts_bits: int = 8
    channel_wise: bool | None = None
    wts_solver: Arq | AdaRound | Nuq = field(default_factory=Arq)


@dataclass(frozen=True)
class Origin:
    """Where a choice was made: its kind, and the paths of its parts in the document."""

    kind: Literal["json", "override", "common"]
    """A "json" entry and an "override" are about certain layers: it is a mistake if these cannot do what is asked.
    "common" settings are about many layers, of which each takes what it can do."""
    activation: str
    weight: str
    balancer: str


def parse_activation(document: Mapping[str, Any], where: str, mistakes: Mistakes, *, owner: str) -> dict[str, Any]:
    """The fields of `Choice` that an activation_quant_params object decides."""
    ifmr = [key for key in IFMR_KEYS if key in document]
    hfmg = [key for key in HFMG_KEYS if key in document]
    values = check_object(document, ACT_RULES, where, mistakes, owner=owner)
    algo = values.get("act_algo")
    if (ifmr and (hfmg or algo == "hfmg")) or (hfmg and algo == "ifmr"):
        ifmr += ["act_algo ifmr"] if algo == "ifmr" else []
        hfmg += ["act_algo hfmg"] if algo == "hfmg" else []
        mistakes.add(where, f"{ifmr} and {hfmg} can not appear at same time, delete one of them")
    solver: Ifmr | Hfmg
    if algo == "hfmg" or (algo is None and hfmg):
        solver = Hfmg(**{key: values[key] for key in HFMG_KEYS if key in values})
    else:
        own = {key: values[key] for key in IFMR_KEYS if key in values}
        start, end = own.pop("search_range", (Ifmr.search_start, Ifmr.search_end))
        wrong = [key for key in ("search_range", "search_step") if key in document and key not in values]
        what = None if wrong else _range_problem(start, end, own.get("search_step", Ifmr.search_step))
        if what is not None:
            mistakes.add(f"{where}.search_step", what)
        if wrong or what is not None:
            own.pop("search_step", None)
            start, end = Ifmr.search_start, Ifmr.search_end
        solver = Ifmr(search_start=start, search_end=end, **own)
    return {"act_bits": values.get("num_bits", 8), "asymmetric": values.get("asymmetric"), "act_solver": solver}


def _range_problem(start: float, end: float, step: float) -> str | None:
    """Why the step does not fit a search range, in decimals: 1.3 - 0.7 is below 0.6 in binary."""
    got = f"(got {step} for [{start}, {end}])"
    if Decimal(str(step)) > Decimal(str(end)) - Decimal(str(start)):
        return f"The search_step must be less than or equal to (search_range[1] - search_range[0]) {got}"
    if count_candidates(start, end, step) > MOST_CANDIDATES:
        return f"The search_step must be larger, at most {MOST_CANDIDATES} steps of a search range are tried {got}"
    return None


def parse_weight(document: Mapping[str, Any], where: str, mistakes: Mistakes, *, owner: str) -> dict[str, Any]:
    """The fields of `Choice` that a weight_quant_params object decides."""
    values = check_object(document, WTS_RULES, where, mistakes, owner=owner)
    algo = values.get("wts_algo", "arq_quantize")
    own = {key: values[key] for key in WTS_KEYS[algo] if key in values}
    for key in values:
        if key not in own and any(key in keys for keys in WTS_KEYS.values()):
            mistakes.add(f"{where}.{key}", f"{key} is not valid param of quantize {algo}")
    return {
        "wts_bits": values.get("num_bits", 8),
        "channel_wise": values.get("channel_wise"),
        "wts_solver": WTS_SOLVERS[algo](**own),
    }


def fit_layer(
    choice: Choice,
    traits: LayerTraits,
    origin: Origin,
    mistakes: Mistakes,
    *,
    asymmetric: bool,
    quant_enable: bool,
) -> LayerSettings:
    """A layer's settings: the choice, and defaults for what it leaves open. `asymmetric` is the global default."""

    def refuse(place: str, key: str, what: str) -> None:
        if origin.kind == "common":
            logger.debug("%s: %s", name, what)
        else:
            mistakes.add(f"{place}.{key}" if key else place, what)

    name, kind = traits.name, traits.op_type
    act_bits, wts_bits, strength = choice.act_bits, choice.wts_bits, choice.dmq_strength
    if choice.asymmetric and traits.symmetric_only and origin.kind == "json" and quant_enable:
        # AMCT forces a .cfg to symmetric here, and lets the entry of a layer that is off say what it likes.
        refuse(origin.activation, "asymmetric", f"current layer {name} only support act symmetric quant.")
    if act_bits == 16 and not traits.supports_int16:
        refuse(origin.activation, "num_bits", f"current layer {name} does not support int16 quant.")
        act_bits = 8
    if act_bits == 4 and traits.two_operands:
        refuse(origin.activation, "num_bits", f"current layer {name} multiplies two activations, use 8 bits")
        act_bits = 8
    if choice.channel_wise and not traits.channel_wise:
        refuse(origin.weight, "channel_wise", f"The channel_wise must be False for layer type {kind}")
    if wts_bits not in traits.weight_bits:
        # In config.json AMCT takes 6 and 7 bits for 8 where they are not supported, whatever the layer is.
        if origin.kind == "override" or (wts_bits == 4 and quant_enable):
            key = "quant_bits" if origin.kind == "override" else "num_bits"
            refuse(origin.weight, key, f"layer {name} of type {kind} does not support {wts_bits} bits, use 8")
        wts_bits = 8
    wts_solver = choice.wts_solver
    if not _supports_solver(traits, wts_solver):
        dilated = " with dilations" if traits.dilated else ""
        text = f"layer {name} of type {kind}{dilated} does not support this algorithm, use arq_quantize"
        refuse(origin.weight, "", text)
        wts_solver = Arq()
    if isinstance(wts_solver, Nuq):
        if origin.kind == "common" and kind != "Conv":
            # only convolutions are meant, unless a layer or its type is named (amct_formats.md: NUQ layers)
            wts_solver = Arq()
        elif wts_bits != 8:
            refuse(origin.weight, "num_bits", f"nuq_quantize makes levels of 8 bits, got {wts_bits} for layer {name}")
    if strength is not None and not traits.supports_balancing:
        refuse(origin.balancer, "", f"Layer {name} does not support dmq_balancer")
        if origin.kind == "common":
            logger.warning("Layer %s does not support dmq_balancer, remove dmq_balancer in config file", name)
        strength = None
    return LayerSettings(
        quant_enable=quant_enable,
        activation=ActivationSettings(
            num_bits=act_bits,
            asymmetric=(asymmetric if choice.asymmetric is None else choice.asymmetric) and not traits.symmetric_only,
            solver=choice.act_solver,
        ),
        weight=WeightSettings(
            num_bits=wts_bits,
            channel_wise=traits.channel_wise and choice.channel_wise is not False,
            solver=wts_solver,
        ),
        dmq_strength=strength,
    )


def fit_tensor(
    name: str | None,
    index: int | None,
    choice: Choice,
    where: str,
    facts: GraphFacts,
    mistakes: Mistakes,
    *,
    asymmetric: bool,
    block: str = ACT_KEY,
) -> TensorSettings | None:
    """The settings of one tensor_quantize entry, or None after a mistake.

    `block` is the name that the format has for the entry's activation settings.
    """
    if name is None:
        mistakes.add(f"{where}.layer_name", 'To quantize tensor, must set "layer_name" at first.')
    if index is None:
        mistakes.add(f"{where}.input_index", 'To quantize tensor, must set "input_index" at first.')
    if name is None or index is None:
        return None
    kind = facts.nodes.get(name)
    if kind is None:
        nearest = Nearest([node for node, kind in facts.nodes.items() if kind in INPUTS_OF_TENSOR_TYPES])
        mistakes.add(f"{where}.layer_name", f"Layer {name} does not exist in the graph.{nearest.to(name)}")
        return None
    if kind not in INPUTS_OF_TENSOR_TYPES:
        types = " and ".join(INPUTS_OF_TENSOR_TYPES)
        mistakes.add(f"{where}.layer_name", f"layer {name} has type {kind}, tensor_quantize is for {types} only")
        return None
    if not 0 <= index < INPUTS_OF_TENSOR_TYPES[kind]:
        last = INPUTS_OF_TENSOR_TYPES[kind] - 1
        mistakes.add(f"{where}.input_index", f"must be in [0, {last}] for layer type {kind}, got {index}")
        return None
    fitted = fit_layer(
        choice,
        LayerTraits(name=name, op_type=kind),
        Origin("json", f"{where}.{block}", where, where),
        mistakes,
        asymmetric=asymmetric,
        quant_enable=True,
    )
    return TensorSettings(layer_name=name, input_index=index, activation=fitted.activation)


def check_repeated_tensors(tensors: Iterable[TensorSettings | None], mistakes: Mistakes) -> tuple[TensorSettings, ...]:
    good: dict[tuple[str, int], TensorSettings] = {}
    for index, tensor in enumerate(tensors):
        if tensor is not None and good.setdefault((tensor.layer_name, tensor.input_index), tensor) is not tensor:
            place = f"{tensor.layer_name}:{tensor.input_index}"
            what = f"Please delete repeated items in tensor_quantize, repeated is {place}"
            mistakes.add(f"tensor_quantize[{index}]", what)
    return tuple(good.values())


def _supports_solver(traits: LayerTraits, solver: Arq | AdaRound | Nuq) -> bool:
    if isinstance(solver, Nuq):
        return traits.supports_clusters
    # A weight of LSTM or GRU is multiplied with two kinds of input, step by step: no columns stand for them.
    return isinstance(solver, Arq) or (traits.has_weight and traits.op_type not in ("LSTM", "GRU"))
