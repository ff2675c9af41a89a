"""What the user asks of `quantize`, checked: names become solvers, and nodes that do not exist are refused."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from amct_onnx.errors import ArgumentError, ArgumentTypeError, did_you_mean
from amct_onnx.files.config_json import read_config
from amct_onnx.files.config_text import read_cfg
from amct_onnx.numerics.settings import ActivationSolver, Entropy, Hfmg, Ifmr, MinMax, Mse, Percentile, Settings
from amct_onnx.values.layers import GraphFacts
from amct_onnx.values.request import Request

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
            raise ArgumentError(f"algorithm {algorithm!r} is unknown: {hint}")
        algorithm = ALGORITHMS[algorithm]()
    if algorithm is not None and not isinstance(algorithm, tuple(ALGORITHMS.values())):
        raise ArgumentTypeError(f"algorithm must be a name or a solver's settings, got {type(algorithm).__name__}")
    if isinstance(skip_layers, str):
        raise ArgumentTypeError(f"skip_layers must be a list of names, got the text {skip_layers!r}")
    for name in skip_layers:
        if name not in facts.nodes:
            hint = did_you_mean(name, facts.nodes, "its nodes have other names.")
            raise ArgumentError(f"skip_layers: the model has no node {name!r}, {hint}")
    if settings is not None and not isinstance(settings, Settings):
        if not isinstance(settings, str | os.PathLike):
            raise ArgumentTypeError(f"settings must be Settings, a path or None, got {type(settings).__name__}")
        settings = (read_cfg if Path(settings).suffix == ".cfg" else read_config)(settings, facts)
    return Request(
        settings=settings, algorithm=algorithm, skip_layers=tuple(skip_layers), reduce_range=bool(reduce_range)
    )
