"""The command `amct_onnx report`: makes a page of one run of `amct_onnx quantize`, or of two side by side.

Only what is light is imported here: `--help` must not wait for numpy or ONNX Runtime.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass

_log = logging.getLogger("amct_onnx.Report")


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """What a command line `report` asks for. runs: one or two run files, or prefixes. save_path: of the page."""

    runs: tuple[str, ...]
    save_path: str | None = None


def add_report_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of the command `report`."""
    text = "the --save_path of amct_onnx quantize, or a run file; two are compared"
    command.add_argument("runs", nargs="+", metavar="RUN", help=text)
    command.add_argument(
        "--save_path", metavar="FILE", help="the page, an .html file; beside the first run if not given"
    )


def read_report_options(namespace: argparse.Namespace, command: argparse.ArgumentParser) -> ReportCommand:
    """What a parsed command line asks for. A wrong one ends in `command.error`."""
    if len(namespace.runs) > 2:
        command.error(f"{len(namespace.runs)} runs were given: one is shown, or two side by side")
    return ReportCommand(runs=tuple(namespace.runs), save_path=namespace.save_path)


def run_report(command: ReportCommand) -> None:
    """Write the page and print its path. Raises AmctError."""
    from amct_onnx.files.run_file import ENDING, find_run
    from amct_onnx.report.write import write_report

    first, *others = (find_run(run) for run in command.runs)
    path = command.save_path or f"{first.removesuffix(ENDING).removesuffix('.json')}_report.html"
    if os.path.isdir(path):
        path = os.path.join(path, "report.html")
    write_report(first, path, beside=others[0] if others else None)
    _log.info("The report is saved in %s", path)
    print(path)
