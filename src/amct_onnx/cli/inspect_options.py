"""The command line `amct_onnx inspect`."""

from __future__ import annotations

import argparse
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.model_and_data import add_model, read_model
from amct_onnx.cli.output import Output


def _read(namespace: argparse.Namespace, command: Parser) -> str:
    return read_model(namespace, command)


def _run(model: Any, output: Output) -> None:
    import amct_onnx
    from amct_onnx.cli.show import show_result

    show_result(output, INSPECT.name, amct_onnx.inspect(model))


INSPECT = Command(
    name="inspect",
    summary="what can be quantized of a model for each target, and why not the rest",
    about="What a model is and what can be quantized of it, without data: amct_onnx inspect model.onnx",
    usage="MODEL",
    declare=add_model,
    read=_read,
    run=_run,
)
