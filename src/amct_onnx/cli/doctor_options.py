"""The command line `amct_onnx doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.output import Output


def _declare(command: Parser) -> None:
    """It has no options of its own."""


def _read(namespace: argparse.Namespace, command: Parser) -> None:
    return None


def _run(value: Any, output: Output) -> None:
    import amct_onnx
    from amct_onnx.cli.show import show_result

    show_result(output, DOCTOR.name, amct_onnx.doctor())


DOCTOR = Command(
    name="doctor",
    summary="what this machine and this installation have",
    about="Versions, the processor, what is compiled, which extras are there: amct_onnx doctor",
    usage="",
    declare=_declare,
    read=_read,
    run=_run,
)
