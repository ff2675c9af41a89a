"""Runs `amct_onnx report`: makes a page of what `amct_onnx quantize` left of one run, or of two."""

from __future__ import annotations

import logging
import os

from amct_onnx.cli.output import Output
from amct_onnx.cli.report_options import ReportCommand
from amct_onnx.files.run_file import ENDING, find_run
from amct_onnx.report.write import write_report

_log = logging.getLogger("amct_onnx.Report")


def run_report(command: ReportCommand, output: Output) -> None:
    """Write the page and say where it is. Raises AmctError."""
    first, *others = (find_run(run) for run in command.runs)
    path = command.save_path or f"{first.removesuffix(ENDING).removesuffix('.json')}_report.html"
    if os.path.isdir(path):
        path = os.path.join(path, "report.html")
    write_report(first, path, beside=others[0] if others else None)
    _log.info("The report is saved in %s", path)
    output.say(f"The report is in {path}")
    output.document({"command": "report", "file": path, "runs": [first, *others]})
