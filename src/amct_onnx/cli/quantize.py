"""Runs `amct_onnx quantize`: one calibration, files for each target, and a summary of what came of it."""

from __future__ import annotations

import logging
import os

import amct_onnx
from amct_onnx.cli.command import AlreadyTold
from amct_onnx.cli.output import Output
from amct_onnx.cli.quantize_options import QuantizeCommand
from amct_onnx.cli.quantize_summary import Saved, document, show
from amct_onnx.errors import AmctError, one_line
from amct_onnx.files.whole_files import check_writable
from amct_onnx.progress import TerminalProgress
from amct_onnx.ptq.quantized_model import QuantizedModel, SavedModel, check_results
from amct_onnx.ptq.saved_report import reason_lines
from amct_onnx.targets.table import TARGETS
from amct_onnx.targets.target import without_suffix
from amct_onnx.tools.heard import warnings_heard
from amct_onnx.tools.user_script import session_evaluator

_log = logging.getLogger("amct_onnx.Quantize")


def run_quantize(command: QuantizeCommand, output: Output) -> None:
    """Quantize `command.model` and write the results.

    Targets whose files cannot be written are told of first; the others are written all the same. Raises AmctError where
    none is left, and AlreadyTold where one failed.
    """
    failed = _check_paths(command)
    with warnings_heard() as warnings:
        result = _quantized(command, output)
        for step in result.steps:
            _log.info("%s%s", str(step)[:1].upper(), str(step)[1:])
        for line in str(result.precision).splitlines() if result.precision is not None else ():
            _log.info("%s", line)
        if command.save_statistics is not None:
            amct_onnx.save_statistics(result.statistics, command.save_statistics)
            _log.info("The statistics are saved in %s", command.save_statistics)
        saved: list[Saved] = []
        for target in (target for target in command.targets if target not in failed):
            try:
                saved.append(_write(result if target == result.target else result.to(target), command, output))
            except AmctError as error:
                failed[target] = error
                _log.error("%s", error)
    show(output, command, result, saved, warnings)
    output.document(document(command, result, saved, warnings, list(failed.values())))
    if failed:
        raise AlreadyTold


def _quantized(command: QuantizeCommand, output: Output) -> QuantizedModel:
    data = amct_onnx.load_statistics(command.statistics) if command.statistics is not None else command.data
    progress = TerminalProgress(output.say) if output.is_text else False
    arguments = {**command.arguments, "target": command.targets[0], "progress": progress}
    if command.evaluator is None:
        return amct_onnx.quantize(command.model, data, **arguments)
    with session_evaluator(command.evaluator) as evaluator:
        return amct_onnx.quantize(command.model, data, evaluator=evaluator, **arguments)


def _prefix(command: QuantizeCommand) -> str:
    """The prefix of results; several targets cannot all have the name of one file."""
    return command.save_path if len(command.targets) == 1 else without_suffix(command.save_path)


def _check_paths(command: QuantizeCommand) -> dict[str, AmctError]:
    """The targets whose files could not be written in the end, logged. Raises OutputError where there is no other."""
    if command.save_statistics is not None:
        check_writable(command.save_statistics)
    model = command.model if os.path.exists(command.model) else None
    failed: dict[str, AmctError] = {}
    for target in command.targets:
        try:
            check_results(TARGETS[target].files(_prefix(command)), model)
        except AmctError as error:
            failed[target] = error
    if len(failed) == len(command.targets):
        raise next(iter(failed.values()))
    for told in failed.values():
        _log.error("%s", told)
    return failed


def _write(result: QuantizedModel, command: QuantizeCommand, output: Output) -> Saved:
    """Write the files of one target, and tell the log what they are."""
    quantized = sum(decision.quantized for decision in result.decisions)
    text = "Target %s: %d of %d nodes that it could quantize are quantized."
    _log.info(text, result.target, quantized, len(result.decisions))
    for line in reason_lines(result.decisions):
        _log.info("%s", line)
    saved = result.save(_prefix(command), inspect=command.report)
    for file in saved.files:
        _log.info("The file is saved in %s", file)
    for line in saved.report.runtime_lines() if saved.report is not None else ():
        _log.info("%s", line)
    run = _save_run(result, saved, _prefix(command), shown=output.is_text) if command.report else None
    return Saved(model=result, files=saved.files, report=saved.report, run=run)


def _save_run(result: QuantizedModel, saved: SavedModel, prefix: str, *, shown: bool) -> str | None:
    """Leave what a report needs beside the model, which is written whatever fails here; the path of it."""
    try:
        run = amct_onnx.save_run(result, without_suffix(prefix), saved=saved, progress=shown)
    except Exception as error:
        _log.warning("%s is written, but there is no run file for a report of it: %s", saved.files[0], one_line(error))
        return None
    _log.info("The run is saved in %s", run)
    return run
