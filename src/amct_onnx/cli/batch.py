"""Runs `amct_onnx batch`: the jobs of a file, and one table over all of them."""

from __future__ import annotations

import amct_onnx
from amct_onnx.cli.batch_options import BatchCommand
from amct_onnx.cli.command import AlreadyTold
from amct_onnx.cli.output import Output
from amct_onnx.progress import TerminalProgress
from amct_onnx.values.batch_result import DONE, FAILED, KEPT, BatchResult

_LEFT = ("job", "target", "state")  # columns of words
_STYLES = {DONE: "green", KEPT: "green", FAILED: "bold red"}


def run_batch(command: BatchCommand, output: Output) -> None:
    """Do what is left. Raises AmctError where nothing can begin, and AlreadyTold where a job failed."""
    progress = TerminalProgress(output.say) if output.is_text else False
    result = amct_onnx.batch(command.jobs, again=command.again, page=command.page, progress=progress)
    output.document({"command": "batch", "version": amct_onnx.__version__, **result.to_dict()})
    if output.is_text:
        _show(output, result)
    if result.failed:
        raise AlreadyTold


def _show(output: Output, result: BatchResult) -> None:
    from rich.table import Table
    from rich.text import Text

    (table,) = result.tables()
    drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in table.columns:
        drawn.add_column(name, justify="left" if name in _LEFT else "right", overflow="fold", min_width=4)
    for job, cells in zip(result.jobs, table.texts(), strict=True):
        drawn.add_row(*map(Text, cells[:-1]), Text(cells[-1], style=_STYLES.get(job.state, "")))
    output.say()
    output.show(drawn)
    for line in result.lines():
        output.say(line)
    for job in result.failed:
        output.say(f"Failed: {job}: {job.error}")
    output.say(f"The page is {result.page}")
