"""Reads the command lines of `amct_onnx quantize` and `amct_onnx sensitivity`.

Only what is light is imported here: `--help` must not wait for numpy or ONNX Runtime.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amct_onnx.data.options import DataOptions
from amct_onnx.options import add_options, given_options, positive_number
from amct_onnx.ptq.options import TARGET_NAMES, QuantizeOptions

_LEAST_BLOCK = 16
_GOALS = ("min_sqnr", "max_drop", "target_accuracy", "max_slowdown")
_SHARED = ("settings", "algorithm", "skip_layers", "reduce_range")  # options of both commands


@dataclass(frozen=True, kw_only=True)
class QuantizeCommand:
    """What a command line `quantize` asks for."""

    model: str
    save_path: str
    data: str | Mapping[str, str] | None
    """A path, or one for each input."""
    statistics: str | None
    """A file of `save_statistics` in the place of data."""
    save_statistics: str | None
    targets: tuple[str, ...]
    report: bool
    """Whether the result is opened in ONNX Runtime and described."""
    evaluator: str | None = None
    """A Python script."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of the function `quantize` that were given."""


@dataclass(frozen=True, kw_only=True)
class SensitivityCommand:
    """What a command line `sensitivity` asks for."""

    model: str
    data: str | Mapping[str, str]
    """A path, or one for each input."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of the function `sensitivity` that were given."""


def add_sensitivity_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of the command `sensitivity`."""
    _add_model(command)
    add_options(command, QuantizeOptions, ["target"])
    command.add_argument(
        "--samples", type=positive_number, metavar="N", help="samples that effects are measured with (16, or as cheap)"
    )
    add_options(command, QuantizeOptions, _SHARED)
    _add_data(command.add_argument_group("data"))


def add_quantize_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of the command `quantize`."""
    _add_model(command)
    command.add_argument(
        "--save_path", required=True, metavar="PREFIX", help="folder and prefix of the results: ./results/resnet101"
    )
    command.add_argument(
        "--target",
        default=TARGET_NAMES[0],
        metavar="NAMES",
        help=f"where the model will run: {', '.join(TARGET_NAMES)}; several with commas, from one calibration",
    )
    add_options(command, QuantizeOptions, (*_SHARED, "effort", "full_int8", "weight_only", "block_size", "dynamic"))
    command.add_argument(
        "--no_report", action="store_true", help="do not look at what ONNX Runtime makes of it, and leave no run"
    )
    mixed = command.add_argument_group("mixed precision", "layers stay in float as far as a target of accuracy takes")
    add_options(mixed, QuantizeOptions, (*_GOALS, "evaluator"))
    data = command.add_argument_group("data", "--data, or --statistics of an earlier calibration")
    _add_data(data)
    data.add_argument("--statistics", metavar="FILE", help="statistics that --save_statistics wrote; no data is run")
    data.add_argument("--save_statistics", metavar="FILE", help="write the statistics of the calibration, as .npz")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", nargs="?", help="the float model, an .onnx file")
    command.add_argument("--model", dest="model_option", metavar="FILE", help=argparse.SUPPRESS)


def _add_data(data: argparse._ArgumentGroup) -> None:
    data.add_argument(
        "--data",
        metavar="PATH",
        action="append",
        help="a folder of images, .npy or .bin files, a .npy or a .npz file; NAME=PATH, repeated, for several inputs",
    )
    add_options(data, DataOptions)


def read_quantize_options(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> QuantizeCommand:
    """What a parsed command line asks for. A wrong one ends in `command.error`."""
    model = _model(namespace, command)
    _check_weight_only(namespace, command)
    _check_dynamic(namespace, command)
    without_data = namespace.dynamic or (namespace.weight_only is not None and namespace.data is None)
    if not without_data and (namespace.data is None) == (namespace.statistics is None):
        command.error("give either --data or --statistics")
    if namespace.statistics is not None and namespace.save_statistics is not None:
        command.error("--save_statistics would copy --statistics: delete one of them")
    targets = tuple(dict.fromkeys(part.strip() for part in namespace.target.split(",")))
    for target in targets:
        if target not in TARGET_NAMES:
            command.error(f"--target: {target!r} is unknown, use {', '.join(TARGET_NAMES)}")
    _check_goal(namespace, command, targets)
    arguments = given_options(QuantizeOptions, namespace) | given_options(DataOptions, namespace)
    return QuantizeCommand(
        model=model,
        save_path=namespace.save_path,
        data=None if namespace.data is None else _data(namespace.data, command),
        statistics=namespace.statistics,
        save_statistics=namespace.save_statistics,
        targets=targets,
        report=not namespace.no_report,
        evaluator=namespace.evaluator,
        arguments={name: value for name, value in arguments.items() if name not in ("target", "evaluator")},
    )


def _check_goal(namespace: argparse.Namespace, command: argparse.ArgumentParser, targets: tuple[str, ...]) -> None:
    goals = [name for name in _GOALS if getattr(namespace, name) is not None]
    if len(goals) > 1:
        command.error(f"{' and '.join(f'--{name}' for name in goals)} are different targets, give one of them")
    if (goals in (["max_drop"], ["target_accuracy"])) != (namespace.evaluator is not None):
        command.error("--max_drop and --target_accuracy go with --evaluator; --min_sqnr and --max_slowdown need none")
    if goals and len(targets) > 1:
        command.error(f"--{goals[0]} searches for one target, give one")
    if goals and namespace.statistics is not None:
        command.error(f"--{goals[0]} runs samples, give --data in the place of --statistics")


def _check_weight_only(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    if namespace.weight_only is None:
        if namespace.block_size is not None:
            command.error("--block_size belongs to --weight_only: give that too")
        return
    if namespace.statistics is not None or namespace.save_statistics is not None:
        command.error("--weight_only has no statistics of activations: delete --statistics and --save_statistics")
    if namespace.target != TARGET_NAMES[0]:
        command.error(f"--weight_only needs --target {TARGET_NAMES[0]}")
    if any(getattr(namespace, name) is not None for name in _GOALS):
        command.error("--weight_only does not search for mixed precision: delete the target of accuracy")
    size = namespace.block_size
    if size is not None and (size < _LEAST_BLOCK or size & (size - 1)):
        command.error(f"--block_size {size} is no power of two from {_LEAST_BLOCK} on")


def _check_dynamic(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    if not namespace.dynamic:
        return
    useless = [name for name in ("data", "statistics", "save_statistics") if getattr(namespace, name) is not None]
    if useless:
        command.error(f"--dynamic quantizes activations as they come: delete --{useless[0]}")
    if namespace.weight_only is not None:
        command.error("--weight_only leaves activations in float, and --dynamic quantizes them: give one of them")
    if namespace.algorithm is not None:
        command.error("--dynamic has no ranges of activations to find: delete --algorithm")
    if namespace.target != TARGET_NAMES[0]:
        command.error(f"--dynamic needs --target {TARGET_NAMES[0]}")
    if any(getattr(namespace, name) is not None for name in _GOALS):
        command.error("--dynamic does not search for mixed precision: delete the target of accuracy")


def read_sensitivity_options(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> SensitivityCommand:
    """What a parsed command line asks for. A wrong one ends in `command.error`."""
    model = _model(namespace, command)
    if namespace.data is None:
        command.error("give --data, to calibrate and to measure with")
    samples = {} if namespace.samples is None else {"samples": namespace.samples}
    return SensitivityCommand(
        model=model,
        data=_data(namespace.data, command),
        arguments=given_options(QuantizeOptions, namespace) | given_options(DataOptions, namespace) | samples,
    )


def _model(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> str:
    if (namespace.model is None) == (namespace.model_option is None):
        command.error(f"give one model: {command.prog} model.onnx ...")
    return str(namespace.model or namespace.model_option)


def _data(words: list[str], command: argparse.ArgumentParser) -> str | dict[str, str]:
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    paths = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            command.error(f"--data {word!r}: several inputs are given as NAME=PATH, each with a --data of its own")
        if name in paths:
            command.error(f"--data: the input {name!r} is given twice")
        paths[name] = path
    return paths
