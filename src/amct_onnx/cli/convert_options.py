"""The command line `amct_onnx convert`, as AMCT has it (amct_formats.md: Command line)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from amct_onnx.cli.calibration_options import add_paths
from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.output import Output
from amct_onnx.options import given_options


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """What a command line `convert` asks for."""

    model: str
    save_path: str


def _declare(command: Parser) -> None:
    add_paths(command, "QAT")


def _read(namespace: argparse.Namespace, command: Parser) -> ConvertCommand:
    return ConvertCommand(**given_options(ConvertCommand, namespace))


def _run(command: Any, output: Output) -> None:
    import amct_onnx

    amct_onnx.convert_qat_model(command.model, command.save_path)


CONVERT = Command(
    name="convert",
    summary="convert a model with QuantizeLinear and DequantizeLinear nodes",
    about="Convert a model of quantization-aware training, with QuantizeLinear and DequantizeLinear nodes.",
    usage="--model FILE --save_path PREFIX",
    declare=_declare,
    read=_read,
    run=_run,
    shows=False,
)
