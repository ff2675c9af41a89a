"""Runs `amct_onnx sensitivity`: shows what quantizing each layer does to the outputs."""

from __future__ import annotations

from dataclasses import replace

import amct_onnx
from amct_onnx.cli.output import Output
from amct_onnx.cli.sensitivity_options import SensitivityCommand
from amct_onnx.cli.show import show_result
from amct_onnx.progress import TerminalProgress

_SHOWN = 20  # layers


def run_sensitivity(command: SensitivityCommand, output: Output) -> None:
    """Answer with the layers by what they cost. Raises AmctError."""
    progress = TerminalProgress(output.say) if output.is_text else False
    found = amct_onnx.sensitivity(command.model, command.data, progress=progress, **command.arguments)
    (table,) = found.tables()
    rest = len(table.rows) - _SHOWN
    notes = [f"and {rest} layers that cost less, which --json has"] if rest > 0 else []
    show_result(output, "sensitivity", found, [replace(table, rows=table.rows[:_SHOWN])], notes)
