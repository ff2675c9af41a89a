"""The command line `amct_onnx quantize`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.model_and_data import (
    RUNNING,
    SOLVING,
    add_data,
    add_model,
    image_epilog,
    read_data,
    read_data_options,
    read_model,
)
from amct_onnx.cli.output import Output
from amct_onnx.errors import did_you_mean
from amct_onnx.options import add_options, given_options
from amct_onnx.ptq.options import TARGET_NAMES, QuantizeOptions

_LEAST_BLOCK = 16
_GOALS = ("min_sqnr", "max_drop", "target_accuracy", "max_slowdown")


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


def _declare(command: Parser) -> None:
    """Declare the options of the command `quantize`."""
    add_model(command)
    command.add_argument(
        "--save_path", required=True, metavar="PREFIX", help="folder and prefix of the results, or one .onnx file"
    )
    command.add_argument(
        "--target",
        default=TARGET_NAMES[0],
        metavar="NAMES",
        help=f"{', '.join(TARGET_NAMES)}; or several",
    )
    add_options(command, QuantizeOptions, (*SOLVING, "effort", "full_int8", "weight_only", "block_size", "dynamic"))
    add_options(command, QuantizeOptions, (*RUNNING, "state"))
    command.add_argument("--no_report", action="store_true", help="measure neither accuracy nor latency, leave no run")
    mixed = command.add_argument_group("mixed precision", None)
    add_options(mixed, QuantizeOptions, (*_GOALS, "evaluator"))
    data = command.add_argument_group("data", image_epilog())
    add_data(data)
    data.add_argument("--statistics", metavar="FILE", help="what --save_statistics wrote; no data is run")
    data.add_argument("--save_statistics", metavar="FILE", help="write the statistics of the calibration (.npz)")


def _read(namespace: argparse.Namespace, command: Parser) -> QuantizeCommand:
    """What a parsed command line asks for. A wrong one ends in `command.error`."""
    model = read_model(namespace, command)
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
            hint = did_you_mean(target, TARGET_NAMES, f"use {', '.join(TARGET_NAMES)}")
            command.error(f"--target: {target!r} is unknown, {hint}")
    _check_goal(namespace, command, targets)
    arguments = given_options(QuantizeOptions, namespace) | read_data_options(namespace, command)
    return QuantizeCommand(
        model=model,
        save_path=namespace.save_path,
        data=None if namespace.data is None else read_data(namespace.data, command),
        statistics=namespace.statistics,
        save_statistics=namespace.save_statistics,
        targets=targets,
        report=not namespace.no_report,
        evaluator=namespace.evaluator,
        arguments={name: value for name, value in arguments.items() if name not in ("target", "evaluator")},
    )


def _check_goal(namespace: argparse.Namespace, command: Parser, targets: tuple[str, ...]) -> None:
    goals = [name for name in _GOALS if getattr(namespace, name) is not None]
    if len(goals) > 1:
        command.error(f"{' and '.join(f'--{name}' for name in goals)} are different targets, give one of them")
    if (goals in (["max_drop"], ["target_accuracy"])) != (namespace.evaluator is not None):
        command.error("--max_drop and --target_accuracy go with --evaluator; --min_sqnr and --max_slowdown need none")
    if goals and len(targets) > 1:
        command.error(f"--{goals[0]} searches for one target, give one")
    if goals and namespace.statistics is not None:
        command.error(f"--{goals[0]} runs samples, give --data in the place of --statistics")


def _check_weight_only(namespace: argparse.Namespace, command: Parser) -> None:
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


def _check_dynamic(namespace: argparse.Namespace, command: Parser) -> None:
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


def _run(command: Any, output: Output) -> None:
    from amct_onnx.cli.quantize import run_quantize

    run_quantize(command, output)


QUANTIZE = Command(
    name="quantize",
    summary="quantize a float model in one call, for ONNX Runtime, TensorRT, OpenVINO or Ascend",
    about="Example: amct_onnx quantize model.onnx --data photos/ --save_path out/m",
    usage="MODEL --data PATH --save_path PREFIX",
    declare=_declare,
    read=_read,
    run=_run,
)
