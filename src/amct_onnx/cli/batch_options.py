"""The command line `amct_onnx batch`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from amct_onnx.cli.command import Command, Parser
from amct_onnx.cli.output import Output


@dataclass(frozen=True, kw_only=True)
class BatchCommand:
    """What a command line `batch` asks for. jobs: the path of a file of jobs. page: that of the page over all."""

    jobs: str
    again: bool = False
    page: str | None = None


def _declare(command: Parser) -> None:
    command.add_argument("jobs", metavar="JOBS", help="a TOML file with [defaults] and [[job]] tables")
    command.add_argument("--again", action="store_true", help="do all jobs, those too that are done")
    command.add_argument("--page", metavar="FILE", help="the page over all jobs, beside JOBS if not given")


def _read(namespace: argparse.Namespace, command: Parser) -> BatchCommand:
    return BatchCommand(jobs=namespace.jobs, again=namespace.again, page=namespace.page)


def _run(command: Any, output: Output) -> None:
    from amct_onnx.cli.batch import run_batch

    run_batch(command, output)


BATCH = Command(
    name="batch",
    summary="quantize many models for many targets, as a file says it",
    about="Quantize what a file of jobs names, and only what is left of it: amct_onnx batch jobs.toml",
    usage="JOBS",
    declare=_declare,
    read=_read,
    run=_run,
)
