"""What the user asks of `quantize`, checked: names become solvers, and nodes that do not exist are refused."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from amct_onnx.errors import ArgumentError, ArgumentTypeError, did_you_mean, listed
from amct_onnx.files.config_json import read_config
from amct_onnx.files.config_text import read_cfg
from amct_onnx.numerics.settings import (
    ACTIVATION_BITS,
    ActivationSolver,
    Entropy,
    Hfmg,
    Ifmr,
    MinMax,
    Mse,
    Percentile,
    Settings,
)
from amct_onnx.ptq.layer_patterns import matching_nodes
from amct_onnx.values.layers import GraphFacts
from amct_onnx.values.request import Request
from amct_onnx.words import named

ALGORITHMS: Mapping[str, type[ActivationSolver]] = {
    "mse": Mse,
    "min_max": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "ifmr": Ifmr,
    "hfmg": Hfmg,
}


def make_request(
    facts: GraphFacts,
    settings: Settings | str | os.PathLike[str] | None,
    algorithm: str | ActivationSolver | None,
    skip_layers: Collection[str],
    reduce_range: bool,
) -> Request:
    """The request that arguments of `quantize` express, of a model of which `facts` are.

    `settings` are read where they are the path of a config.json or (by its suffix) a .cfg. Raises ArgumentError,
    ArgumentTypeError, ConfigError.
    """
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            hint = did_you_mean(algorithm, ALGORITHMS, f"use one of {', '.join(ALGORITHMS)}.")
            raise ArgumentError(f"{named('algorithm')} {algorithm!r} is unknown: {hint}")
        algorithm = ALGORITHMS[algorithm]()
    if algorithm is not None and not isinstance(algorithm, tuple(ALGORITHMS.values())):
        raise ArgumentTypeError(f"algorithm must be a name or a solver's settings, got {type(algorithm).__name__}")
    skipped = matching_nodes(skip_layers, facts.nodes)
    if settings is not None and not isinstance(settings, Settings):
        if not isinstance(settings, str | os.PathLike):
            raise ArgumentTypeError(f"settings must be Settings, a path or None, got {type(settings).__name__}")
        settings = (read_cfg if Path(settings).suffix == ".cfg" else read_config)(settings, facts)
    if settings is not None:
        _check_layers(settings, facts)
    return Request(settings=settings, algorithm=algorithm, skip_layers=skipped, reduce_range=bool(reduce_range))


def _check_layers(settings: Settings, facts: GraphFacts) -> None:
    """Raise ArgumentError for settings of nodes that the model does not have, or of widths that a layer does not have.

    Those of a file are checked already, with their place in it.
    """
    for name, entry in settings.layers.items():
        if name not in facts.nodes:
            hint = did_you_mean(name, facts.layers, f"its layers are {listed(list(facts.layers), 5)}.")
            raise ArgumentError(f"settings.layers: the model has no node {name!r}, {hint}")
        traits, activation, weight = facts.layers.get(name), entry.activation.num_bits, entry.weight.num_bits
        if traits is None or not entry.quant_enable:
            continue
        place = f"settings.layers[{name!r}]"
        if weight not in traits.weight_bits:
            widths = ", ".join(map(str, traits.weight_bits))
            text = f"{traits.op_type} takes weights of {widths} bits, got {weight}"
            raise ArgumentError(f"{place}.weight.num_bits: {text}")
        if activation not in ACTIVATION_BITS:
            widths = ", ".join(map(str, ACTIVATION_BITS))
            raise ArgumentError(f"{place}.activation.num_bits must be one of {widths}, got {activation}")
