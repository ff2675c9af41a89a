"""Runs `amct_onnx sensitivity`: prints what quantizing each layer does to the outputs."""

from __future__ import annotations

import amct_onnx
from amct_onnx.cli.output import Output
from amct_onnx.cli.sensitivity_options import SensitivityCommand
from amct_onnx.progress import show_on_terminal


def run_sensitivity(command: SensitivityCommand, output: Output) -> None:
    """Print the table of `sensitivity`. Raises AmctError."""
    found = amct_onnx.sensitivity(command.model, command.data, progress=show_on_terminal, **command.arguments)
    if output.is_text:
        print(found)
