"""The command line `amct_onnx report`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.output import Output

_MOST = 2


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """What a command line `report` asks for. runs: one or two run files, or prefixes. save_path: of the page."""

    runs: tuple[str, ...]
    save_path: str | None = None


def _declare(command: Parser) -> None:
    text = "the --save_path of amct_onnx quantize, or a run file; two are shown side by side"
    command.add_argument("runs", nargs="+", metavar="RUN", help=text)
    text = "the page, an .html file; beside the first run if not given"
    command.add_argument("--save_path", metavar="FILE", help=text)


def _read(namespace: argparse.Namespace, command: Parser) -> ReportCommand:
    if len(namespace.runs) > _MOST:
        command.error(f"{len(namespace.runs)} runs were given: one is shown, or two side by side")
    return ReportCommand(runs=tuple(namespace.runs), save_path=namespace.save_path)


def _run(command: Any, output: Output) -> None:
    from amct_onnx.cli.report import run_report

    run_report(command, output)


REPORT = Command(
    name="report",
    summary="a page that shows what quantize did: accuracy, layers, a map, what to do next",
    about="A page of one run, or of two side by side: amct_onnx report out/m",
    usage="RUN [RUN]",
    declare=_declare,
    read=_read,
    run=_run,
)
