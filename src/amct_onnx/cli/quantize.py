"""Runs the commands `amct_onnx quantize` (one calibration, files for each target) and `amct_onnx sensitivity`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import amct_onnx
from amct_onnx.cli.evaluator import session_evaluator
from amct_onnx.cli.quantize_options import QuantizeCommand, SensitivityCommand
from amct_onnx.errors import AmctError, listed, one_line
from amct_onnx.progress import show_on_terminal
from amct_onnx.ptq.quantized_model import QuantizedModel, SavedModel
from amct_onnx.values.layers import Decision

_SHOWN = 3  # reasons to stay in float that are shown, and nodes for each of them
_log = logging.getLogger("amct_onnx.Quantize")


def run_quantize(command: QuantizeCommand) -> None:
    """Quantize `command.model` and write the results. Raises AmctError, of one target after the others are written."""
    data = amct_onnx.load_statistics(command.statistics) if command.statistics is not None else command.data
    first = command.targets[0]
    arguments = {**command.arguments, "target": first, "progress": show_on_terminal}
    if command.evaluator is None:
        result = amct_onnx.quantize(command.model, data, **arguments)
    else:
        with session_evaluator(command.evaluator) as evaluator:
            result = amct_onnx.quantize(command.model, data, evaluator=evaluator, **arguments)
    for assumption in result.assumptions:
        _log.info("Assumed: %s.", assumption)
    for step in result.steps:
        _log.info("%s%s", str(step)[:1].upper(), str(step)[1:])
    for line in str(result.precision).splitlines() if result.precision is not None else ():
        _log.info("%s", line)
    if command.save_statistics is not None:
        amct_onnx.save_statistics(result.statistics, command.save_statistics)
        _log.info("The statistics are saved in %s", command.save_statistics)
    failed: list[AmctError] = []
    for target in command.targets:
        try:
            _write(result if target == first else result.to(target), command)
        except AmctError as error:
            failed.append(error)
    for other in failed[1:]:
        _log.error("%s", other)
    if failed:
        raise failed[0]


def _write(result: QuantizedModel, command: QuantizeCommand) -> None:
    """Write the files of one target, and tell what they are."""
    for line in decision_lines(result.target, result.decisions):
        _log.info("%s", line)
    saved = result.save(command.save_path, inspect=command.report)
    for file in saved.files:
        _log.info("The file is saved in %s", file)
    for line in saved.report.lines() if saved.report is not None else ():
        _log.info("%s", line)
    if command.report:
        _save_run(result, saved, command.save_path)


def _save_run(result: QuantizedModel, saved: SavedModel, prefix: str) -> None:
    """Leave what a report needs beside the model; the model is written, whatever fails here."""
    try:
        run = amct_onnx.save_run(result, prefix, saved=saved, progress=show_on_terminal)
    except Exception as error:
        _log.warning("%s is written, but there is no run file for a report of it: %s", saved.files[0], one_line(error))
    else:
        _log.info("The run is saved in %s: amct_onnx report %s makes a page of it", run, run)


def run_sensitivity(command: SensitivityCommand) -> None:
    """Print the table of `sensitivity`. Raises AmctError."""
    print(amct_onnx.sensitivity(command.model, command.data, progress=show_on_terminal, **command.arguments))


def decision_lines(target: str, decisions: Sequence[Decision]) -> list[str]:
    """Lines for the log: how many nodes are quantized, and some that are not, for the most frequent reasons."""
    quantized = sum(decision.quantized for decision in decisions)
    reasons: dict[str, list[str]] = {}
    for decision in decisions:
        if not decision.quantized:
            reasons.setdefault(decision.reason, []).append(decision.layer)
    lines = [f"Target {target}: {quantized} of {len(decisions)} nodes that it could quantize are quantized."]
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
        lines.append(f"In float, since {reason}: {listed(names, _SHOWN)}.")
    return lines
