"""The command line `amct_onnx sensitivity`."""

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
from amct_onnx.options import add_options, given_options, positive_number
from amct_onnx.ptq.options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class SensitivityCommand:
    """What a command line `sensitivity` asks for."""

    model: str
    data: str | Mapping[str, str]
    """A path, or one for each input."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments of the function `sensitivity` that were given."""


def _declare(command: Parser) -> None:
    add_model(command)
    add_options(command, QuantizeOptions, ["target"])
    command.add_argument(
        "--samples", type=positive_number, metavar="N", help="samples that effects are measured with (16, or as cheap)"
    )
    add_options(command, QuantizeOptions, (*SOLVING, *RUNNING))
    add_data(command.add_argument_group("data", image_epilog()))


def _read(namespace: argparse.Namespace, command: Parser) -> SensitivityCommand:
    model = read_model(namespace, command)
    if namespace.data is None:
        command.error("give --data, to calibrate and to measure with")
    samples = {} if namespace.samples is None else {"samples": namespace.samples}
    return SensitivityCommand(
        model=model,
        data=read_data(namespace.data, command),
        arguments=given_options(QuantizeOptions, namespace) | read_data_options(namespace, command) | samples,
    )


def _run(command: Any, output: Output) -> None:
    from amct_onnx.cli.sensitivity import run_sensitivity

    run_sensitivity(command, output)


SENSITIVITY = Command(
    name="sensitivity",
    summary="what quantizing each layer does to the output of a model",
    about="Which layers cost accuracy: amct_onnx sensitivity model.onnx --data images/",
    usage="MODEL --data PATH",
    declare=_declare,
    read=_read,
    run=_run,
)
